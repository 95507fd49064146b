"""A local disk that is full, forbidden, odd or away: one line that says so, or it simply works; nothing half made."""

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

from storage_schemas.catalog.commits import CommitResult, commit
from storage_schemas.catalog.table import create_dataset
from storage_schemas.catalog.versions import set_tag, tags
from storage_schemas.documents import write_document
from storage_schemas.episode import Episode
from storage_schemas.errors import DamagedError, StorageError, UserError
from storage_schemas.location import locate, persistent, storage_errors
from storage_schemas.maintenance.backup import back_up
from storage_schemas.maintenance.orphans import collect_orphans
from storage_schemas.maintenance.verify import verify
from storage_schemas.schema import DatasetSpec
from storage_schemas.store.dataset import open_dataset
from storage_schemas.store.parts import write_part

Make = Callable[..., Episode]
Add = Callable[..., CommitResult]


def life(root: Path, make: Make, spec: DatasetSpec) -> None:
    """Every operation on a dataset once."""
    uri = root / "data"
    create_dataset(uri, spec)
    commit(uri, write_part(uri, [make("a"), make("b", length=5)], run_id="r"))
    write_part(uri, [make("c")], run_id="r")
    set_tag(uri, "good")
    assert len(collect_orphans(uri, age=timedelta(0), remove=True).orphans) == 1
    back_up(uri, root / "copy")
    for place in (uri, root / "copy"):
        assert verify(place, "good").ok
        assert open_dataset(place).frames(0, "left", [3]).any()


def refuse(monkeypatch: pytest.MonkeyPatch, owner: object, name: str, number: int) -> None:
    def failing(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(owner, name, failing)


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP])
def test_without_hard_links_one_writer_wins_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    refuse(monkeypatch, Path, "hardlink_to", number)
    write_document(locate(tmp_path / "a.json"), {"first": 1}, exclusive=True)
    with pytest.raises(FileExistsError):
        write_document(locate(tmp_path / "a.json"), {"second": 2}, exclusive=True)
    assert "first" in (tmp_path / "a.json").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_share_that_refuses_to_sync_folders(
    tmp_path: Path, make_episode: Make, spec: DatasetSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine = os.fsync

    def picky(descriptor: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):  # noqa: PTH112
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        genuine(descriptor)

    monkeypatch.setattr(os, "fsync", picky)
    life(tmp_path, make_episode, spec)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT, errno.EIO, errno.ESTALE])
def test_what_a_disk_refuses_is_one_line_and_leaves_nothing(
    tmp_path: Path, make_episode: Make, add: Add, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    add([make_episode("a")])
    before = sorted(tmp_path.rglob("*"))
    refuse(monkeypatch, os, "fsync", number)
    for act in (
        lambda: write_part(tmp_path / "data", [make_episode("b")], run_id="r"),
        lambda: set_tag(tmp_path / "data", "t"),
        lambda: write_document(locate(tmp_path / "data/x.json"), {}),
    ):
        with pytest.raises(StorageError, match=os.strerror(number)) as caught:
            act()
        assert "\n" not in str(caught.value)
    assert [path for path in sorted(tmp_path.rglob("*")) if path.name != "tags"] == before


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
def test_what_can_not_be_read_is_one_line(
    tmp_path: Path, make_episode: Make, add: Add, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    add([make_episode("a")])
    dataset = open_dataset(tmp_path / "data")
    refuse(monkeypatch, os, "pread", number)
    for read in (lambda: dataset.frames(0, "left", [0]), lambda: dataset.array(0, "action")):
        with pytest.raises(StorageError, match=os.strerror(number)):
            read()


def test_a_share_that_came_back_is_read_on(
    tmp_path: Path, make_episode: Make, add: Add, monkeypatch: pytest.MonkeyPatch
) -> None:
    add([make_episode("a")])
    dataset = open_dataset(tmp_path / "data")
    before = dataset.frames(0, "left", [0, 5])
    genuine, calls = os.pread, []

    def stale(*arguments: int) -> bytes:
        calls.append(arguments)
        if len(calls) == 1:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return genuine(*arguments)

    monkeypatch.setattr(os, "pread", stale)
    assert np.array_equal(dataset.frames(0, "left", [0, 5]), before)


@pytest.mark.parametrize("name", ["a*b", "a?b", "a#b", "a b", "ü", "a:b", "{a}", "a'b", "-r"])
def test_odd_names_simply_work(tmp_path: Path, make_episode: Make, spec: DatasetSpec, name: str) -> None:
    life(tmp_path / name, make_episode, spec)


@pytest.mark.parametrize("name", ["a[1]", "a|b", "a\\b", "a\tb", "a\nb", "a^b", "a%41b"])
def test_names_that_delta_can_not_hold_are_refused(
    tmp_path: Path, make_episode: Make, add: Add, spec: DatasetSpec, name: str
) -> None:
    with pytest.raises(UserError, match="Delta Lake can't write below a folder") as caught:
        create_dataset(tmp_path / name / "data", spec)
    assert "\n" not in str(caught.value)
    assert not any(tmp_path.iterdir())
    add([make_episode("a")])
    (tmp_path / name).mkdir()
    (tmp_path / "data").rename(tmp_path / name / "moved")
    with pytest.raises(UserError):
        commit(tmp_path / name / "moved", write_part(tmp_path / name / "moved", [make_episode("b")], run_id="r"))


def test_names_that_are_too_long(tmp_path: Path, spec: DatasetSpec) -> None:
    for act in (lambda uri: create_dataset(uri, spec), open_dataset):
        with pytest.raises(UserError, match="File name too long"):
            act(tmp_path / ("x" * 300) / "data")


def test_files_and_folders_in_each_others_place(tmp_path: Path, spec: DatasetSpec) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(UserError):
        create_dataset(tmp_path / "file" / "data", spec)
    with pytest.raises(StorageError, match="a file is where a folder belongs"):
        write_document(locate(tmp_path / "file" / "a.json"), {})
    for exclusive in (False, True):
        with pytest.raises((StorageError, FileExistsError)):
            write_document(locate(tmp_path / "folder.json"), {}, exclusive=exclusive)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.json"]


def test_a_table_file_that_is_damaged_or_gone_is_named(tmp_path: Path, make_episode: Make, add: Add) -> None:
    add([make_episode("a")])
    (file,) = (tmp_path / "data/episodes").glob("*.parquet")
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(DamagedError, match=f"{file.name} is damaged"):
        open_dataset(tmp_path / "data")
    file.unlink()
    with pytest.raises(DamagedError, match=f"{file.name} is missing"):
        open_dataset(tmp_path / "data")


def test_a_backup_onto_itself_is_refused(tmp_path: Path, make_episode: Make, add: Add) -> None:
    add([make_episode("a")])
    (tmp_path / "link").symlink_to(tmp_path / "data")
    for target in ("data", "link", "data/", "data/../data", "data/copy", "link/parts"):
        with pytest.raises(UserError, match="lies in the dataset"):
            back_up(tmp_path / "data", f"{tmp_path}/{target}")
    with pytest.raises(UserError, match="lies in the dataset"):
        back_up(tmp_path / "link", f"file://{tmp_path}/data")
    assert tags(tmp_path / "data") == []


def test_a_commit_without_hard_links_says_what_is_missing(tmp_path: Path) -> None:
    from deltalake.exceptions import DeltaError

    def failing() -> None:
        raise DeltaError("Generic LocalFileSystem error: Operation not permitted (os error 1)")

    with pytest.raises(StorageError, match="need hard links"), storage_errors(locate(tmp_path)):
        failing()
    with pytest.raises(StorageError, match="need hard links"):
        persistent(locate(tmp_path), failing)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of a megabyte."""
    root = tmp_path / "disk"
    root.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(root)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"a disk can't be mounted here: {done.stderr.strip()}")
    yield root
    subprocess.run(["umount", "-l", str(root)], check=True)


@pytest.mark.slow
def test_a_disk_that_fills_up(small_disk: Path, make_episode: Make, spec: DatasetSpec) -> None:
    uri = small_disk / "data"
    create_dataset(uri, spec)
    rows = 0
    with pytest.raises(StorageError, match="No space left on device"):  # noqa: PT012 - until it is full
        for number in range(1000):
            episode = make_episode(str(number), length=40)
            rows += commit(uri, write_part(uri, [episode], run_id="r", codec="lossless")).added
    assert rows > 1
    dataset = open_dataset(uri)
    assert len(dataset) == rows
    assert verify(uri).ok
    assert not list(small_disk.rglob(".tmp-*"))
    orphans = collect_orphans(uri, age=timedelta(0)).orphans
    assert all(orphan.name.startswith("parts/") for orphan in orphans)  # one, when the commit itself had no room
    for number in range(200):  # and what is small enough to be tried is refused as clearly
        try:
            set_tag(uri, f"t{number}")
        except StorageError as error:
            assert "No space left" in str(error)
            break


@pytest.mark.slow
def test_a_disk_that_is_read_only(small_disk: Path, make_episode: Make, spec: DatasetSpec) -> None:
    uri = small_disk / "data"
    create_dataset(uri, spec)
    commit(uri, write_part(uri, [make_episode("a", length=3)], run_id="r"))
    rows = [replace(row, episode_id="b") for row in write_part(uri, [make_episode("c", length=3)], run_id="r")]
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert verify(uri).ok
    for act in (
        lambda: write_part(uri, [make_episode("b", length=3)], run_id="r"),
        lambda: commit(uri, rows),
        lambda: create_dataset(small_disk / "other", spec),
        lambda: collect_orphans(uri, age=timedelta(0), remove=True),
        lambda: set_tag(uri, "t"),
    ):
        with pytest.raises(StorageError, match="Read-only file system"):
            act()
