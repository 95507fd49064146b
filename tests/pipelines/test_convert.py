"""Batches that are converted elsewhere, in any order and more than once, give what one process gives."""

import pickle
import random
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipelines.convert import Batch, convert
from pipelines.ingest import IngestProgress, IngestReport, ingest
from pipelines.options import IngestOptions
from storage_schemas.catalog.quarantine import quarantined
from storage_schemas.maintenance.verify import verify
from storage_schemas.store.dataset import open_dataset

Make = Callable[..., Any]


class Elsewhere(Executor):
    """Converts batches in a random order, some of them twice; all that goes there and back is pickled."""

    def __init__(self, seed: int = 0) -> None:
        self.random = random.Random(seed)  # noqa: S311
        self.batches: list[Batch] = []
        self.waiting: list[tuple[Batch, Future[Any]]] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        (batch,) = args
        assert (fn, kwargs) == (convert, {})
        self.batches.append(batch)
        self.waiting.append((batch, Waiting(self.work)))
        return self.waiting[-1][1]

    def work(self) -> None:
        for batch, future in self.random.sample(self.waiting, len(self.waiting)) + self.waiting[:1]:
            result = pickle.loads(pickle.dumps(convert(pickle.loads(pickle.dumps(batch)))))  # noqa: S301
            if not future.done():
                future.set_result(result)
        self.waiting = []


class Waiting(Future[Any]):
    """A result that is made when somebody waits for it."""

    def __init__(self, work: Callable[[], None]) -> None:
        super().__init__()
        self.work = work

    def result(self, timeout: float | None = None) -> Any:
        if not self.done():
            self.work()
        return super().result(timeout)


def outcome(store: str, report: IngestReport) -> object:
    """All that a user sees of an ingestion, but for times, run ids and the names of parts."""
    episodes = open_dataset(store).episodes
    columns = ("episode_id", "source_uri", "source_fingerprint", "length", "checksum", "collection")
    return (
        list(zip(*(episodes.column(name) for name in columns), strict=True)),
        replace(report, store_uri="", seconds=0, run_id=""),
        [replace(row, run_id="", time=None) for row in quarantined(store)],  # type: ignore[arg-type]
    )


@pytest.fixture
def troubled(tmp_path: Path, write_rlds: Make, make_features: Make) -> str:
    """Good and bad records; the same one again; the same episode with other content; one that looks like another."""

    def record(number: int, seed: int | None = None, **changes: Any) -> Any:
        path = f"LAB/success/day/{number}/trajectory.h5"
        return make_features(6, path=path, seed=(number if seed is None else seed) * 50, **changes)

    records = [record(1), record(2), record(3, steps__is_first=[1] * 6), record(1), record(4), record(2, seed=9),
               record(5, seed=4), record(6), record(7, seed=1), record(8), record(8), record(9, seed=8)]  # fmt: skip
    return str(write_rlds(tmp_path / "set", *[[made] for made in records]))


@pytest.mark.parametrize("reject", [[], ["duplicate"], ["copy"]], ids=["all", "duplicate", "copy"])
@pytest.mark.parametrize("batch", [1, 5])
def test_elsewhere_is_as_here(troubled: str, tmp_path: Path, reject: list[str], batch: int) -> None:
    here, there, whole = (str(tmp_path / name) for name in ("here", "there", "whole"))
    calm = ingest(troubled, here, IngestOptions(batch_episodes=batch, reject=reject))
    spread = ingest(troubled, there, IngestOptions(batch_episodes=batch, reject=reject), executor=Elsewhere(batch))
    assert outcome(there, spread) == outcome(here, calm)
    assert verify(there).ok
    reasons = {rejection.reason for rejection in calm.quarantined}
    assert reasons >= {"bad_boundaries", "duplicate_episode"} | ({"duplicate"} if reject else set())
    in_one = ingest(troubled, whole, IngestOptions(batch_episodes=64, reject=reject))
    assert outcome(whole, in_one) == outcome(here, replace(calm, version=in_one.version))


def test_videos_elsewhere_are_as_here(tmp_path: Path, write_video: Make) -> None:
    for number in range(4):
        write_video(tmp_path / f"clips/{number}.mp4", frames=30, seed=number * 40)
    (tmp_path / "clips/2.mp4").write_bytes(b"no video")
    options = IngestOptions(clip_steps=10, collection="web", batch_episodes=2)
    found = []
    for name, executor in (("here", None), ("there", Elsewhere())):
        store = str(tmp_path / name)
        report = ingest(str(tmp_path / "clips"), store, options, executor=executor)
        found.append(outcome(store, report))
    assert found[0] == found[1]


def test_a_copy_of_a_video_that_breaks_late_is_not_taken_for_a_duplicate(tmp_path: Path, write_video: Make) -> None:
    whole = write_video(tmp_path / "clips/b.mp4", frames=60).read_bytes()
    middle = len(whole) // 2
    (tmp_path / "clips/a.mp4").write_bytes(whole[:middle] + bytes(300) + whole[middle + 300 :])
    for batch in (1, 2):
        store = str(tmp_path / f"store-{batch}")
        report = ingest(
            str(tmp_path / "clips"),
            store,
            IngestOptions(clip_steps=60, batch_episodes=batch, reject=("duplicate",)),
        )
        assert [Path(rejection.source_uri).name for rejection in report.quarantined] == ["a.mp4"]
        assert report.added == 1


def test_progress_comes_batch_by_batch(troubled: str, tmp_path: Path) -> None:
    seen: list[IngestProgress] = []
    elsewhere = Elsewhere()
    ingest(troubled, str(tmp_path / "store"), IngestOptions(batch_episodes=5), executor=elsewhere, progress=seen.append)
    assert [len(batch.refs) for batch in elsewhere.batches] == [5, 5, 2]
    assert [(p.done, p.total) for p in seen] == [(5, 12), (10, 12), (12, 12)]
    again = Elsewhere()
    ingest(troubled, str(tmp_path / "store"), IngestOptions(batch_episodes=5), executor=again)
    assert sum(len(batch.refs) for batch in again.batches) < 12, "what is there is not given to anybody"


def test_a_batch_ends_at_a_number_of_bytes(troubled: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.ingest._BATCH_BYTES", 1)
    elsewhere = Elsewhere()
    ingest(troubled, str(tmp_path / "store"), executor=elsewhere)
    assert [len(batch.refs) for batch in elsewhere.batches] == [1] * 12


def test_a_batch_is_written_in_parts_of_bounded_size(
    troubled: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, pieces = str(tmp_path / "whole"), str(tmp_path / "pieces")
    expected = ingest(troubled, whole)
    monkeypatch.setattr("pipelines.convert._MAX_BYTES", 1)
    report = ingest(troubled, pieces)
    assert (report.version, report.added) == (expected.version, expected.added), "it is one commit all the same"
    assert len(set(open_dataset(whole).episodes.column("part"))) == 1
    assert len(set(open_dataset(pieces).episodes.column("part"))) == report.added
    assert outcome(pieces, report) == outcome(whole, expected)


def test_threads_commit_what_comes_before_a_failure(troubled: str, tmp_path: Path) -> None:
    """The third of six batches fails: the first two are stored, and what has not begun by then is never begun."""
    begun: list[int] = []

    class Failing(ThreadPoolExecutor):
        def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
            return super().submit(self.call, fn, *args, **kwargs)

        def call(self, fn: Callable[..., Any], batch: Batch) -> Any:
            begun.append(len(begun))
            if len(begun) == 3:
                raise OSError("the disk is gone")
            return fn(batch)

    store = str(tmp_path / "store")
    with Failing(1) as executor, pytest.raises(OSError, match="the disk is gone"):
        ingest(troubled, store, IngestOptions(batch_episodes=2), executor=executor, in_flight=2)
    assert len(open_dataset(store)) == 2, "one of four records is bad, and one is another's double"
    assert len(begun) <= 4
    assert ingest(troubled, store, IngestOptions(batch_episodes=2)).added > 0
    assert verify(store).ok
