"""A copy is a whole dataset at some version, whatever happens beside it, and never more than needed."""

import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from s3_server import FaultProxy

from storage_schemas.catalog.commits import CommitResult
from storage_schemas.catalog.quarantine import quarantined, withdraw
from storage_schemas.catalog.versions import drop_tag, set_tag, tags
from storage_schemas.episode import Episode
from storage_schemas.errors import UserError
from storage_schemas.maintenance import backup
from storage_schemas.maintenance.backup import back_up
from storage_schemas.maintenance.verify import verify
from storage_schemas.store.dataset import open_dataset
from storage_schemas.store.parts import write_part

Make = Callable[..., Episode]
Add = Callable[..., CommitResult]


@pytest.fixture
def uri(make_episode: Make, add: Add, tmp_path: Path) -> Path:
    """Three versions, one tag, something in the quarantine, and an orphan."""
    add([make_episode("a"), make_episode("b")])
    add([make_episode("b", version=1), make_episode("c")])
    withdraw(tmp_path / "data", ["episode-c"])
    set_tag(tmp_path / "data", "paper", 1)
    write_part(tmp_path / "data", [make_episode("lost")], run_id="dead")
    return tmp_path / "data"


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_all_versions_come_along_and_nothing_else(uri: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    report = back_up(uri, copy)
    assert report.version == 3
    assert (report.copied, report.present) == (len(files(copy)), 0)
    assert report.bytes == sum(map(len, files(copy).values())) - len(files(copy / "tags").popitem()[1])
    assert files(copy).items() < files(uri).items()
    assert len(list((uri / "parts").iterdir())) == len(list((copy / "parts").iterdir())) + 1  # the orphan
    assert all(verify(copy, version).ok for version in range(1, 4))
    assert [tag.name for tag in tags(copy)] == ["paper"]
    assert quarantined(copy) == quarantined(uri)


def test_again_only_what_is_new(uri: Path, make_episode: Make, add: Add, tmp_path: Path) -> None:
    first = back_up(uri, tmp_path / "copy")
    assert back_up(uri, tmp_path / "copy").copied == 1  # the tag, which may have moved
    drop_tag(uri, "paper")
    add([make_episode("d")])
    again = back_up(uri, tmp_path / "copy")
    assert (again.version, again.present) == (4, first.copied - 1)
    assert verify(tmp_path / "copy").ok
    assert tags(tmp_path / "copy") == []


def test_restored_and_written_on(uri: Path, make_episode: Make, add: Add, tmp_path: Path) -> None:
    back_up(uri, tmp_path / "copy")
    shutil.rmtree(uri)
    back_up(tmp_path / "copy", uri)
    assert verify(uri).ok
    assert add([make_episode("d"), make_episode("a")]).added == 1
    assert open_dataset(uri).version == 4


def test_while_somebody_writes(make_episode: Make, add: Add, tmp_path: Path) -> None:
    """Every copy that is made meanwhile verifies and holds the first so many commits."""
    add([make_episode("0")])
    done = threading.Event()

    def write() -> None:
        for number in range(1, 10):
            add([make_episode(str(number), length=4)])
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    versions = set()
    while not done.is_set():
        copy = tmp_path / f"copy-{len(versions)}"
        version = back_up(tmp_path / "data", copy).version
        versions.add(version)
        assert verify(copy).ok
        held = set(open_dataset(copy).episodes.column("episode_id"))
        assert held == {f"episode-{number}" for number in range(version)}
    writer.join()
    assert back_up(tmp_path / "data", tmp_path / "copy-0").version == 10
    assert verify(tmp_path / "copy-0").ok
    assert len(versions) > 1


def test_an_interrupted_copy_is_no_dataset_or_an_older_one(
    uri: Path, make_episode: Make, add: Add, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "copy"
    whole = backup._copy
    for stop in (2, 9):
        left = list(range(stop))

        def once_more(*args: Any, left: list[int] = left) -> int:
            left.pop()
            return whole(*args)

        monkeypatch.setattr(backup, "_copy", once_more)
        with pytest.raises(IndexError):
            back_up(uri, copy)
        with pytest.raises(UserError, match="is not a dataset"):
            open_dataset(copy)
    monkeypatch.undo()
    back_up(uri, copy)
    add([make_episode("d")])
    monkeypatch.setattr(backup, "_copy", lambda *args: [].pop())
    with pytest.raises(IndexError):
        back_up(uri, copy)
    assert open_dataset(copy).version == 3
    assert verify(copy).ok


def test_the_wrong_target_is_refused(uri: Path, make_episode: Make, add: Add, tmp_path: Path) -> None:
    add([make_episode("z")], name="other")
    with pytest.raises(UserError, match="copy of another dataset"):
        back_up(uri, tmp_path / "other")
    back_up(uri, tmp_path / "copy")
    add([make_episode("d")], name="copy")
    with pytest.raises(UserError, match="can't go over the newer"):
        back_up(uri, tmp_path / "copy")
    (tmp_path / "home").mkdir()
    (tmp_path / "home/letters").write_text("x")
    with pytest.raises(UserError, match="holds letters"):
        back_up(uri, tmp_path / "home")
    with pytest.raises(UserError, match="does not exist"):
        back_up(tmp_path / "nothing", tmp_path / "new")


def test_a_file_that_vanishes_is_named(uri: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = backup._data

    def shrink(source: backup.Location) -> dict[str, int]:
        found = data(source)
        Path(source.path, min(found)).unlink()
        return found

    monkeypatch.setattr(backup, "_data", shrink)
    with pytest.raises(UserError, match="vanished during the copy"):
        back_up(uri, tmp_path / "copy")


def test_to_an_object_store_and_back(uri: Path, s3: FaultProxy, tmp_path: Path) -> None:
    back_up(uri, "s3://bucket/backup/data")
    assert verify("s3://bucket/backup/data").ok
    back_up("s3://bucket/backup/data", tmp_path / "back")
    assert files(tmp_path / "back").items() < files(uri).items()
    assert verify(tmp_path / "back").ok
