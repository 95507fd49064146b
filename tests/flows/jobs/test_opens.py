"""The opened dataset is handed down: an ingestion and its pages open the episode table three times at most."""

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import deltalake
import pytest

import flows.ingest
import flows.publish
from flows.jobs.ingest import run_ingest

EXAMPLES = Path(__file__).resolve().parents[3] / "examples/data/video"


@pytest.fixture
def opens(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every opening of an episode table from now on, by whatever way."""
    opened: list[str] = []
    construct = deltalake.DeltaTable.__init__

    def counted(self: deltalake.DeltaTable, table_uri: Any, *arguments: Any, **options: Any) -> None:
        if str(table_uri).rstrip("/").endswith("/episodes"):
            opened.append(str(table_uri))
        construct(self, table_uri, *arguments, **options)

    monkeypatch.setattr(deltalake.DeltaTable, "__init__", counted)
    return opened


def counts(opens: list[str], ingest: Callable[[str, str], Any]) -> list[int]:
    """Openings of an ingestion into a new store, of more into it, and of the same again."""
    counted = []
    for source in (EXAMPLES / "city.mov", EXAMPLES, EXAMPLES):
        opens.clear()
        ingest(str(source), "data/clips")
        counted.append(len(opens))
    return counted


def test_a_job_opens_the_episode_table_three_times_at_most(away: Path, opens: list[str]) -> None:
    assert counts(opens, run_ingest) == [2, 2, 2]


def test_the_flow_with_its_pages_opens_it_three_times(
    away: Path, opens: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The body of the flow with the pages that it publishes; what a server would answer is left out."""
    published: list[str] = []

    def publish_page(key: str, text: str) -> bool:
        published.append(key)
        assert "can't be read" not in text
        return True

    for module in (flows.ingest, flows.publish):
        monkeypatch.setattr(module, "get_run_logger", lambda: logging.getLogger("test"))
    monkeypatch.setattr(flows.ingest, "publish_lineage", flows.publish.publish_lineage.fn)
    monkeypatch.setattr(flows.publish, "_publish_page", publish_page)
    monkeypatch.setattr(flows.ingest, "emit_dataset_event", lambda *_: False)
    monkeypatch.setattr(flows.ingest, "TaskExecutor", lambda *_: ThreadPoolExecutor(1))
    assert counts(opens, flows.ingest.ingest.fn) == [3, 3, 2]
    assert {"dataset-clips-1", "dataset-clips-2"} <= set(published)
