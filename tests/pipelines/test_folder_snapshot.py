import os
from collections.abc import Callable
from pathlib import Path

import pytest
from s3_server import FaultProxy

from pipelines.folder_snapshot import take_snapshot, wait_until_quiet
from storage_schemas.errors import UserError
from storage_schemas.location import locate


class Clock:
    """Time that passes only in sleep; things may happen meanwhile."""

    def __init__(self, now: float) -> None:
        self.now = now
        self.slept = 0.0
        self.events: list[tuple[float, Callable[[], object]]] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept += seconds
        due = [event for time, event in self.events if time <= self.slept]
        self.events = [(time, event) for time, event in self.events if time > self.slept]
        for event in due:
            event()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.mp4").write_bytes(b"a")
    return tmp_path / "in"


def test_a_folder_that_has_been_left_alone_is_not_waited_for(folder: Path) -> None:
    clock = Clock(take_snapshot(str(folder)).changed + 31)
    seen = wait_until_quiet(str(folder), quiet=30, patience=100, clock=clock, sleep=clock.sleep)
    assert seen == take_snapshot(str(folder))
    assert clock.slept == 0


def test_files_that_keep_coming_are_waited_for_together(folder: Path) -> None:
    clock = Clock(take_snapshot(str(folder)).changed)
    for number in range(20):
        clock.events.append((2.0 * number, lambda number=number: (folder / f"{number}.mp4").write_bytes(b"x")))
    seen = wait_until_quiet(str(folder), quiet=30, patience=1000, clock=clock, sleep=clock.sleep)
    assert seen is not None
    assert len(seen.files) == 21
    assert 30 + 38 <= clock.slept < 30 + 38 + 10


def test_a_file_that_grows_counts_as_being_written(folder: Path) -> None:
    clock = Clock(take_snapshot(str(folder)).changed)
    clock.events.append((20, lambda: (folder / "a.mp4").write_bytes(b"longer")))
    assert wait_until_quiet(str(folder), quiet=30, patience=1000, clock=clock, sleep=clock.sleep)
    assert clock.slept >= 50


def test_a_folder_that_never_rests_is_left_for_the_next_time(folder: Path) -> None:
    clock = Clock(take_snapshot(str(folder)).changed)
    for second in range(200):
        clock.events.append((second, lambda second=second: (folder / "a.mp4").write_bytes(b"x" * second)))
    assert wait_until_quiet(str(folder), quiet=30, patience=100, clock=clock, sleep=clock.sleep) is None
    assert clock.slept <= 100


def test_an_old_file_that_was_moved_here_is_a_new_change(folder: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "b.mp4"
    elsewhere.write_bytes(b"b")
    os.utime(elsewhere, (1e9, 1e9))
    before = take_snapshot(str(folder)).changed
    elsewhere.rename(folder / "b.mp4")
    assert take_snapshot(str(folder)).changed >= before


def test_the_digest_tells_of_every_kind_of_change(folder: Path) -> None:
    seen = [take_snapshot(str(folder)).digest]
    (folder / "deep").mkdir()
    (folder / "deep" / "b.mp4").write_bytes(b"b")
    seen.append(take_snapshot(str(folder)).digest)
    (folder / "a.mp4").write_bytes(b"aa")
    seen.append(take_snapshot(str(folder)).digest)
    (folder / "deep" / "b.mp4").rename(folder / "b.mp4")
    seen.append(take_snapshot(str(folder)).digest)
    assert len(set(seen)) == 4
    assert take_snapshot(str(folder)).digest == seen[-1]


def test_a_glob_watches_the_folder_that_it_starts_from(folder: Path) -> None:
    assert take_snapshot(f"{folder}/**/*.mp4") == take_snapshot(str(folder))


@pytest.mark.parametrize(("name", "kind", "held"), [("c.part", None, False), ("c.mp4", "video", True)])
def test_only_names_of_the_format_are_worth_an_ingestion(
    tmp_path: Path, name: str, kind: str | None, held: bool
) -> None:
    (tmp_path / name).write_bytes(b"")
    assert take_snapshot(str(tmp_path)).holds(kind) is held
    assert not take_snapshot(str(tmp_path)).holds("droid-rlds")


def test_a_folder_that_is_not_there_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no folder"):
        take_snapshot(str(tmp_path / "missing"))


def test_a_prefix_of_an_object_store_is_watched_alike(s3: FaultProxy) -> None:
    (locate("s3://bucket/in") / "a.mp4").write_bytes(b"a")
    before = take_snapshot("s3://bucket/in")
    (locate("s3://bucket/in") / "b.mp4").write_bytes(b"b")
    after = take_snapshot("s3://bucket/in")
    assert (len(before.files), len(after.files)) == (1, 2)
    assert before.digest != after.digest
    assert after.changed >= before.changed > 1e9
