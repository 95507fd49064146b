"""Inputs of the world's bug reports: what `expected.json` says of each holds after `uwm ingest`."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from painted import corners_of, disc_is_round, number_of

from flows.cli import run
from storage_schemas.catalog.quarantine import quarantined
from storage_schemas.catalog.table import dataset_exists
from storage_schemas.store.dataset import Dataset, open_dataset

ROOT = Path(os.environ.get("UWM_CASES") or Path(__file__).resolve().parents[3] / "shared/cases").resolve()
EXPECTED = ROOT / "expected.json"
CASES: list[dict[str, Any]] = json.loads(EXPECTED.read_text())["cases"] if EXPECTED.exists() else []

pytestmark = [
    pytest.mark.ground_truth,
    pytest.mark.skipif(not CASES, reason=f"no {EXPECTED}: set UWM_CASES to a folder with the cases"),
]


def sources_of(case: dict[str, Any]) -> list[str]:
    source: str | list[str] = case["source"]
    return [source] if isinstance(source, str) else source


def views(dataset: Dataset, episode: int) -> list[str]:
    sizes = dataset.episodes.sizes[episode]
    return [camera for view, camera in enumerate(dataset.spec.cameras) if sizes[view, 0]]


def only_view(dataset: Dataset, episode: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    (camera,) = views(dataset, episode)
    return dataset.frames(episode, camera, range(int(dataset.episodes.lengths[episode])))


def check_episodes(case: dict[str, Any], dataset: Dataset, reasons: Sequence[str]) -> None:
    """What a case says of the episodes of the dataset."""
    count = len(dataset)
    assert count == case.get("episodes", count), reasons
    assert count >= case.get("episodes_min", 0), reasons
    columns = {name: dataset.episodes.column(name) for name in ("source_uri", "language", "fps")}
    assert not [word for word in case.get("source_not", ()) for uri in columns["source_uri"] if word in uri]
    if "language" in case:
        assert count, reasons
        assert [list(value) for value in columns["language"]] == [case["language"]] * count
    if "fps" in case:
        assert columns["fps"] == pytest.approx([case["fps"]] * count)
    if case.get("never_without_cameras"):
        assert all(views(dataset, episode) for episode in range(count))
    if "cameras_of_stored" in case:
        assert {len(views(dataset, episode)) for episode in range(count)} <= {case["cameras_of_stored"]}
    if "episodes_or_reason" in case:
        assert count or any(case["episodes_or_reason"] in reason for reason in reasons)


def check_pictures(case: dict[str, Any], dataset: Dataset, reasons: Sequence[str]) -> None:
    """What a case says of the frames that were stored."""
    shown = [only_view(dataset, episode) for episode in range(len(dataset))] if PICTURES & set(case) else []
    assert shown or not PICTURES & set(case), reasons
    numbers = [[number_of(frame) for frame in frames] for frames in shown]
    if "numbers" in case:
        assert numbers == case["numbers"]
    if "numbers_start" in case:
        assert [row[: len(start)] for row, start in zip(numbers, case["numbers_start"], strict=True)] == case[
            "numbers_start"
        ]
    if "corners" in case:
        assert {corners_of(frame) for frames in shown for frame in frames[:3]} == {case["corners"]}
    if "round_disc" in case:
        assert all(disc_is_round(frame) for frames in shown for frame in frames)


PICTURES = {"numbers", "numbers_start", "corners", "round_disc"}


@pytest.mark.parametrize("case", [pytest.param(case, id=sources_of(case)[0]) for case in CASES])
def test_case(case: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    store = str(tmp_path / "store")
    for source in sources_of(case):
        code = run(["ingest", str(ROOT / source), store, *case["args"]])
        printed = capfd.readouterr().err
        assert code in (0, 2), printed
        assert "Traceback" not in printed
    dataset = open_dataset(store) if dataset_exists(store) else None
    rows = [] if dataset is None else quarantined(store)
    reasons = [f"{row.reason}: {row.detail}" for row in rows] or [printed]
    assert not [word for word in case.get("reason_not", ()) for reason in reasons if word in reason]
    if case.get("quarantined"):
        assert rows
    if case.get("or_quarantined") and not dataset:
        assert reasons
        return
    if dataset is None:
        assert case.get("episodes") == 0, reasons
        return
    check_episodes(case, dataset, reasons)
    check_pictures(case, dataset, reasons)
