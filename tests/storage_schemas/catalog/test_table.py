"""The log: versions, commits that are all or nothing, idempotence, concurrency, quarantine."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from deltalake import DeltaTable
from hypothesis import given
from hypothesis import strategies as st

from storage_schemas.catalog.commits import CommitResult, commit
from storage_schemas.catalog.quarantine import QuarantineRow, add_quarantine, quarantined
from storage_schemas.catalog.rows import EpisodeRow, split_of
from storage_schemas.catalog.table import create_dataset, dataset_exists, dataset_id, same_dataset
from storage_schemas.episode import Episode
from storage_schemas.errors import UserError
from storage_schemas.schema import DatasetSpec
from storage_schemas.store.dataset import open_dataset, summary
from storage_schemas.store.parts import write_part

Make = Callable[..., Episode]
Add = Callable[..., CommitResult]


def row(name: str, fingerprint: str = "f") -> EpisodeRow:
    return EpisodeRow(
        episode_id=name, part="p", start=0, length=5, fps=15.0, source_uri=f"file#{name}", source_format="test",
        source_fingerprint=fingerprint, collection="lab", language=["do it"], success=None, cameras=[],
        frame_sizes=["", "", ""], action_steps=0, split=split_of(name), run_id="run",
        ingested_at=datetime(2026, 1, 2, tzinfo=UTC), checksum=0,
    )  # fmt: skip


@pytest.fixture
def uri(tmp_path: Path, spec: DatasetSpec) -> str:
    place = tmp_path / "a dataset, with ünusual #name?"
    create_dataset(place, spec)
    (place / "parts/p").mkdir(parents=True)
    (place / "parts/p/zarr.json").touch()  # the part that every `row` names
    return str(place)


def test_a_new_dataset_is_empty(uri: str, spec: DatasetSpec) -> None:
    dataset = open_dataset(uri)
    assert (dataset.version, dataset.spec, len(dataset)) == (0, spec, 0)
    assert summary(dataset).lengths == ()
    assert dataset.episodes.select(split="val").tolist() == []
    assert dataset.episodes.statistics("action").count == 0


def test_creating_again(uri: str, spec: DatasetSpec) -> None:
    create_dataset(uri, spec)
    assert open_dataset(uri).version == 0
    with pytest.raises(UserError, match="other settings"):
        create_dataset(uri, spec.model_copy(update={"action_dim": 9}))


def test_bad_calls_are_user_errors(tmp_path: Path, uri: str) -> None:
    with pytest.raises(UserError, match="does not exist"):
        open_dataset(tmp_path / "nope")
    with pytest.raises(UserError, match="not a dataset"):
        open_dataset(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="not a dataset"):
        open_dataset(tmp_path / "file")
    for version in (1, 99, -1):
        with pytest.raises(UserError, match=f"no version {version}: its newest is 0"):
            open_dataset(uri, version)
    with pytest.raises(UserError, match="percent code"):
        create_dataset(tmp_path / "a%41", DatasetSpec(cameras=("a",), action_dim=1))
    assert not dataset_exists(tmp_path / "nope")
    assert dataset_exists(uri)


def test_a_foreign_delta_table_is_no_dataset(tmp_path: Path) -> None:
    import pyarrow as pa

    DeltaTable.create(str(tmp_path / "x" / "episodes"), pa.schema([("a", pa.int64())]))
    with pytest.raises(UserError, match="written by something else"):
        open_dataset(tmp_path / "x")


def test_commits_add_once_and_keep_the_order(uri: str) -> None:
    assert commit(uri, [row("b"), row("a")]) == CommitResult(version=1, added=2, replaced=0, present=0)
    assert commit(uri, [row("a"), row("b")]) == CommitResult(version=1, added=0, replaced=0, present=2)
    assert commit(uri, [row("a"), row("c"), row("c")]) == CommitResult(version=2, added=1, replaced=0, present=2)
    assert commit(uri, []) == CommitResult(version=2, added=0, replaced=0, present=0)
    assert open_dataset(uri).episodes.episode_ids == ["b", "a", "c"]
    assert open_dataset(uri, 1).episodes.episode_ids == ["b", "a"]
    assert open_dataset(uri).episodes.column("source_uri") == ["file#b", "file#a", "file#c"]


def test_a_changed_source_replaces_its_episode(uri: str) -> None:
    commit(uri, [row("a"), row("b"), row("c")])
    result = commit(uri, [row("a"), row("b", "new"), row("d")])
    assert result == CommitResult(version=2, added=1, replaced=1, present=1)
    now, before = open_dataset(uri).episodes, open_dataset(uri, 1).episodes
    assert now.episode_ids == ["a", "c", "b", "d"]
    assert now.column("source_fingerprint") == ["f", "f", "new", "f"]
    assert before.column("source_fingerprint") == ["f", "f", "f"]


def test_rows_come_back_whole(uri: str) -> None:
    commit(uri, [row("a"), row("b")])
    table = open_dataset(uri).episodes
    assert list(table.rows()) == [replace(row("a"), ordinal=0), replace(row("b"), ordinal=1)]
    with pytest.raises(IndexError):
        table.row(2)


def test_old_versions_are_never_cleaned_up(uri: str) -> None:
    configuration = DeltaTable(f"{uri}/episodes").metadata().configuration
    assert configuration["delta.enableExpiredLogCleanup"] == "false"


@given(st.text(min_size=1), st.integers(0, 100))
def test_splits_depend_on_the_id_alone_and_grow_with_the_share(name: str, percent: int) -> None:
    assert split_of(name, 0) == "train"
    assert split_of(name, 100) == "val"
    if split_of(name, percent) == "val":
        assert split_of(name, min(100, percent + 1)) == "val"


def test_splits_have_the_share_they_should() -> None:
    held_out = sum(split_of(f"episode-{i}", 10) == "val" for i in range(5000))
    assert 400 < held_out < 600


def _commit_some(uri: str, worker: int, rounds: int) -> None:
    for i in range(rounds):
        commit(uri, [row(f"own-{worker}-{i}"), row(f"shared-{i}"), row("changing", f"{worker}.{i}")])


def test_concurrent_commits_lose_and_double_nothing(uri: str) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_commit_some, args=(uri, w, 5)) for w in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    table = open_dataset(uri).episodes
    own = {f"own-{w}-{i}" for w in range(3) for i in range(5)}
    assert sorted(table.episode_ids) == sorted(own | {f"shared-{i}" for i in range(5)} | {"changing"})
    assert len(set(table.column("ordinal"))) == len(table)


def _write_for_ever(uri: str, make: Callable[[str], Episode]) -> None:
    for i in range(10_000):
        commit(uri, write_part(uri, [make(f"{i}-{k}") for k in range(3)], run_id="killed"))


def test_a_killed_writer_leaves_whole_commits(tmp_path: Path, make_episode: Make, spec: DatasetSpec) -> None:
    from storage_schemas.maintenance.verify import verify

    uri = str(tmp_path / "killed")
    create_dataset(uri, spec)
    writer = multiprocessing.get_context("spawn").Process(target=_write_for_ever, args=(uri, _Maker(make_episode("x"))))
    writer.start()
    deadline = time.monotonic() + 60
    while open_dataset(uri).version < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert writer.pid is not None
    os.kill(writer.pid, signal.SIGKILL)
    writer.join(10)
    before = open_dataset(uri)
    assert before.version >= 3
    assert len(before) == 3 * before.version
    assert verify(uri).ok
    assert commit(uri, write_part(uri, [make_episode("last")], run_id="rerun")).added == 1


class _Maker:
    """Copies of one episode under other ids; picklable."""

    def __init__(self, episode: Episode) -> None:
        self.episode = episode

    def __call__(self, name: str) -> Episode:
        return replace(self.episode, meta=replace(self.episode.meta, episode_id=name))


def quarantine_row(name: str, fingerprint: str = "f", reason: str = "truncated") -> QuarantineRow:
    when = datetime(2026, 1, 2, tzinfo=UTC)
    return QuarantineRow(source_uri=name, fingerprint=fingerprint, reason=reason, detail="line", run_id="r", time=when)


def test_quarantine_is_recorded_once_and_makes_no_version(uri: str) -> None:
    assert quarantined(uri) == []
    assert add_quarantine(uri, []) == 0
    assert add_quarantine(uri, [quarantine_row("a"), quarantine_row("a"), quarantine_row("b")]) == 2
    assert add_quarantine(uri, [quarantine_row("a"), quarantine_row("a", reason="crc_mismatch")]) == 1
    assert {(entry.source_uri, entry.reason) for entry in quarantined(uri)} == {
        ("a", "truncated"), ("b", "truncated"), ("a", "crc_mismatch"),
    }  # fmt: skip
    assert open_dataset(uri).version == 0
    assert summary(open_dataset(uri)).quarantined == 3


def test_what_became_an_episode_leaves_the_quarantine(uri: str) -> None:
    add_quarantine(uri, [quarantine_row("file#a"), quarantine_row("file#a", "older"), quarantine_row("file")])
    commit(uri, [row("a")])
    assert [(entry.source_uri, entry.fingerprint) for entry in quarantined(uri)] == [("file#a", "older")]


def test_a_dataset_is_known_wherever_it_lies(add: Add, make_episode: Make, tmp_path: Path) -> None:
    add([make_episode("a")])
    add([make_episode("a")], name="other")
    identity = dataset_id(tmp_path / "data")
    (tmp_path / "link").symlink_to(tmp_path / "data")
    assert same_dataset(tmp_path / "link", tmp_path / "data")
    assert same_dataset(f"file://{tmp_path}/x/../data", tmp_path / "data")
    assert not same_dataset(tmp_path / "other", tmp_path / "data")
    assert not same_dataset(tmp_path / "absent", tmp_path / "data")
    (tmp_path / "data").rename(tmp_path / "moved")
    assert dataset_id(tmp_path / "moved") == identity
