"""Places: one name for every library, and whole-file writes that are atomic."""

import multiprocessing
import os
import pickle
import uuid
from pathlib import Path

import pytest

from storage_schemas.errors import StorageError, UserError
from storage_schemas.location import Location, locate


@pytest.fixture(params=["local", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    return locate(tmp_path if request.param == "local" else f"memory://test-{uuid.uuid4().hex}")


def test_local_spellings_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    expected = locate(tmp_path / "a")
    for spelling in ("a", "./b/../a/", f"file://{tmp_path}/a", f"local://{tmp_path}/a", f"{tmp_path}//a"):
        assert locate(spelling) == expected
    assert expected.uri == str(tmp_path / "a")
    assert expected.is_local
    assert (expected.name, expected.parent) == ("a", locate(tmp_path))


def test_remote_names_for_every_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    place = locate("s3://bucket/some/data/") / "parts"
    assert (place.uri, place.path, place.name) == ("s3://bucket/some/data/parts", "bucket/some/data/parts", "parts")
    assert place.parent == locate("s3://bucket/some/data")
    options = place.delta_options()
    assert (options["conditional_put"], options["allow_http"]) == ("etag", "true")
    assert options["aws_endpoint"] == "http://127.0.0.1:9"
    store = place.kvstore()
    assert store is not None
    assert (store["driver"], store["bucket"], store["path"]) == ("s3", "bucket", "some/data/parts/")
    assert store["endpoint"] == "http://127.0.0.1:9"
    assert locate("memory://x").kvstore() is None


@pytest.mark.parametrize("uri", ["", "nonsense://a/b"])
def test_bad_uris_are_user_errors(uri: str) -> None:
    with pytest.raises(UserError):
        locate(uri)


def test_write_read_list_remove(folder: Location) -> None:
    place = folder / "a/b.bin"
    assert not place.exists()
    assert place.parent.names() == []
    place.write_bytes(b"0123456789")
    place.write_bytes(b"012345678")
    assert (place.read_bytes(), place.read_bytes(2, 4), place.read_bytes(start=-3)) == (b"012345678", b"23", b"678")
    assert (place.size(), place.exists(), place.is_dir(), place.parent.is_dir()) == (9, True, False, True)
    assert place.parent.names() == ["b.bin"]
    place.parent.remove()
    assert not place.exists()


def test_exclusive_write_keeps_the_first(folder: Location) -> None:
    place = folder / "once"
    place.write_bytes(b"first", exclusive=True)
    with pytest.raises(FileExistsError):
        place.write_bytes(b"second", exclusive=True)
    assert place.read_bytes() == b"first"
    assert folder.names() == ["once"]


def test_missing_file(folder: Location) -> None:
    with pytest.raises(FileNotFoundError):
        (folder / "nope").read_bytes()
    with pytest.raises(FileNotFoundError):
        (folder / "nope").size()


def _claim(uri: str, number: int, barrier: object, wins: object) -> None:
    barrier.wait()  # type: ignore[attr-defined]
    try:
        locate(uri).write_bytes(b"%d" % number, exclusive=True)
    except FileExistsError:
        return
    wins.put(number)  # type: ignore[attr-defined]


def test_one_of_many_exclusive_writers_wins(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier, wins = context.Barrier(4), context.Queue()
    uri = str(tmp_path / "claim")
    workers = [context.Process(target=_claim, args=(uri, i, barrier, wins)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    winner = wins.get(timeout=5)
    assert wins.empty()
    assert locate(uri).read_bytes() == b"%d" % winner
    assert [path.name for path in tmp_path.iterdir()] == ["claim"]


def test_a_failed_write_leaves_the_old_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = locate(tmp_path / "file")
    place.write_bytes(b"old")

    def fail(descriptor: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StorageError, match="disk full"):
        place.write_bytes(b"new")
    assert place.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_locations_pickle(folder: Location) -> None:
    assert pickle.loads(pickle.dumps(folder)) == folder  # noqa: S301
