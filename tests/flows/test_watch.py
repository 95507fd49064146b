"""A watched folder is compared with what its dataset took of it, wherever the dataset lies by now."""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import flows.ingest
from flows.jobs.ingest import run_ingest
from storage_schemas.store.dataset import open_dataset

CLIP = Path(__file__).resolve().parents[2] / "examples/data/video/city.mov"


@pytest.fixture
def watch(away: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], bool]:
    """Runs the body of the flow, without a server, on the folder `raw`, and says whether it ingested."""
    (away / "raw").mkdir()
    shutil.copy(CLIP, away / "raw")
    ingested: list[str] = []

    def ingest(source: str, store: str, options: object, _runner: object) -> object:
        ingested.append(store)
        return run_ingest(source, store, options)  # type: ignore[arg-type]

    monkeypatch.setattr(flows.ingest, "get_run_logger", lambda: logging.getLogger("test"))
    monkeypatch.setattr(flows.ingest, "as_function", lambda _: ingest)

    def run(store: Path) -> bool:
        ingested.clear()
        flows.ingest.watch.fn(str(away / "raw"), str(store), quiet=0)
        return bool(ingested)

    return run


def test_a_folder_is_ingested_when_it_changed(away: Path, watch: Callable[[Path], bool]) -> None:
    store = away / "lab" / "clips"
    assert watch(store)
    assert not watch(store)
    shutil.copy(CLIP, away / "raw" / "more.mov")
    assert watch(store)


def test_a_dataset_that_moved_with_its_lineage_knows_what_it_took(away: Path, watch: Callable[[Path], bool]) -> None:
    assert watch(away / "lab" / "clips")
    (away / "link").symlink_to(away / "lab")
    assert not watch(away / "link" / "clips"), "the same dataset, spelt otherwise"
    (away / "lab").rename(away / "disk")
    (away / "disk" / "clips").rename(away / "disk" / "videos")
    assert not watch(away / "disk" / "videos")


def test_another_dataset_in_its_place_takes_the_folder_anew(away: Path, watch: Callable[[Path], bool]) -> None:
    store = away / "lab" / "clips"
    assert watch(store)
    before = open_dataset(store).table_id
    shutil.rmtree(store)
    assert watch(store)
    assert open_dataset(store).table_id != before
