"""An S3 that fails in every way: each operation succeeds after a retry, or ends in one clear error."""

import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, get_args

import numpy as np
import pytest
from s3_server import Fault, FaultProxy, Rule

from storage_schemas.catalog.commits import commit
from storage_schemas.catalog.quarantine import QuarantineRow, add_quarantine, quarantined
from storage_schemas.catalog.table import create_dataset
from storage_schemas.catalog.versions import set_tag, tags
from storage_schemas.episode import Episode
from storage_schemas.errors import StorageError, UserError
from storage_schemas.maintenance.orphans import collect_orphans
from storage_schemas.maintenance.verify import verify
from storage_schemas.schema import DatasetSpec
from storage_schemas.store.dataset import Dataset, open_dataset
from storage_schemas.store.parts import write_part

Make = Callable[..., Episode]
URI = "s3://bucket/data"
STEPS = [(0, 0), (0, 20), (1, 3)]
"""Episode and step."""


def some(*fast: Fault) -> list[Any]:
    """All faults; those that are not named wait too long for the fast suite."""
    return [fault if fault in fast else pytest.param(fault, marks=pytest.mark.slow) for fault in get_args(Fault)]


def life(make: Make, spec: DatasetSpec) -> Any:
    """Every operation once; returns what must not depend on the faults."""
    create_dataset(URI, spec)
    commit(URI, write_part(URI, [make("a"), make("b", length=5)], run_id="r", codec="lossless"))
    row = QuarantineRow(
        source_uri="s", fingerprint="f", reason="bad", detail="", run_id="r",
        time=open_dataset(URI).episodes.row(0).ingested_at,
    )  # fmt: skip
    add_quarantine(URI, [row])
    set_tag(URI, "good")
    collect_orphans(URI, age=timedelta(0), remove=True)
    return facts()


def facts() -> Any:
    dataset = open_dataset(URI, "good")
    assert verify(URI).ok
    return (
        dataset.version,
        dataset.episodes.episode_ids,
        len(quarantined(URI)),
        [tag.name for tag in tags(URI)],
        [sums(dataset, *place) for place in STEPS],
    )


def sums(dataset: Dataset, episode: int, step: int) -> tuple[int, int, float]:
    steps = np.clip([step - 1, step, step + 15, step + 16], 0, dataset.episodes.lengths[episode] - 1).tolist()
    left, wrist = (int(dataset.frames(episode, camera, steps).sum()) for camera in ("left", "wrist"))
    return left, wrist, float(dataset.actions(episode, step, 16)[0].sum())


@pytest.fixture
def expected(make_episode: Make) -> Any:
    frames = [make_episode("a"), make_episode("b", length=5)]
    sums = []
    for row, step in STEPS:
        episode = frames[row]
        steps = np.clip([step - 1, step, step + 15, step + 16], 0, len(episode) - 1)
        pixels = [int(np.asarray(episode.frames[camera])[steps].sum()) for camera in ("left", "wrist")]
        action = np.zeros((16, 3), np.float32)
        chunk = episode.action[step : step + 16]
        action[: len(chunk)] = chunk
        sums.append((*pixels, float(action.sum())))
    return (1, ["episode-a", "episode-b"], 1, ["good"], sums)


@pytest.mark.parametrize("fault", some("error", "truncate", "short"))
def test_now_and_then(s3: FaultProxy, make_episode: Make, spec: DatasetSpec, expected: Any, fault: Fault) -> None:
    """Every seventh request of a dataset's life is spoiled, wherever that hits."""
    every = 40 if fault == "hang" else 7
    s3.reset(Rule(fault=fault, every=every, skip=3))
    try:
        found = life(make_episode, spec)
    except UserError as error:
        assert fault == "short", f"{fault} should end well after a retry: {error}"  # nothing tells that more was there
        s3.reset()
        found = life(make_episode, spec)
    assert found == expected


@pytest.mark.parametrize("fault", some("reset", "slow", "truncate", "short"))
@pytest.mark.parametrize("what", ["shard", "numbers", "schema", "log", "rows"])
def test_reads_that_never_succeed(
    s3: FaultProxy, make_episode: Make, spec: DatasetSpec, expected: Any, what: str, fault: Fault,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    if fault == "hang" and what in ("schema", "rows", "numbers"):
        pytest.skip("hangs in the same call as another case")
    monkeypatch.setenv("UWM_STORAGE_RETRIES", "1")
    life(make_episode, spec)
    dataset = open_dataset(URI)
    pattern = {
        "shard": "rgb/c/", "numbers": "action/c/", "schema": "zarr.json$", "log": "_delta_log", "rows": "parquet",
    }[what]  # fmt: skip
    s3.reset(Rule(fault=fault, methods=("GET",), pattern=pattern))
    began = time.monotonic()
    try:
        if what in ("log", "rows"):
            dataset = open_dataset(URI)
            assert dataset.episodes.episode_ids == expected[1]
        assert sums(dataset, *STEPS[0]) == expected[4][0]
    except UserError as error:
        assert fault != "slow"
        assert "\n" not in str(error)
        assert str(error)
    else:
        assert fault == "slow"
    assert s3.spoiled
    assert time.monotonic() - began < 30


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["error", "slowdown", "reset", "lost"])
def test_writes_that_never_succeed_leave_nothing_visible(
    s3: FaultProxy, make_episode: Make, spec: DatasetSpec, fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UWM_STORAGE_RETRIES", "1")
    create_dataset(URI, spec)
    for pattern in ("parts/", "parquet"):
        s3.reset(Rule(fault=fault, methods=("PUT", "POST"), pattern=pattern))
        with pytest.raises(StorageError):
            commit(URI, write_part(URI, [make_episode("a")], run_id="r"))
        s3.reset()
        assert (open_dataset(URI).version, len(open_dataset(URI))) == (0, 0)
    assert commit(URI, write_part(URI, [make_episode("a")], run_id="r")).version == 1
    assert verify(URI).ok
