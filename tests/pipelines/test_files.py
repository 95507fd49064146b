"""Files under any name; nothing that is no file is opened."""

import os
import socket
from pathlib import Path

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.checks.quality import LeftOut, Rejection
from pipelines.files import SourceFile, find, printable, raw_path
from storage_schemas.errors import UserError

NAMES = [
    b"new\nline.mp4",
    b"sp ace  double.mp4",
    "ünïcödé_日本語_🤖.mp4".encode(),
    b"-leading-dash.mp4",
    b"quote'\"$HOME`;.mp4",
    b"UPPER.MP4",
    b".hidden.mp4",
    b"percent%03d.mp4",
    b"hash#1.mp4",
    b"star*[a]?.mp4",
    b"colon_Fri_Jul__7_09:42:23_2023.mp4",
    b"latin1_\xe9.mp4",
]


def is_mp4(name: str) -> bool:
    return name.lower().endswith(".mp4")


@given(st.binary(min_size=1).map(os.fsdecode))
def test_printable_goes_there_and_back(path: str) -> None:
    text = printable(path)
    assert raw_path(text) == raw_path(f"{text}#clip=0") == path
    assert text.isprintable()
    text.encode()


def test_any_name(tmp_path: Path) -> None:
    for name in NAMES:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_bytes(name)
    found = find(str(tmp_path), is_mp4)
    assert {file.read() for file in found if isinstance(file, SourceFile)} == set(NAMES)
    for file in found:
        assert isinstance(file, SourceFile)
        assert Path(raw_path(file.uri)).read_bytes() == file.read()
        assert find(file.path, is_mp4) == [file]


def test_what_is_no_file_is_named_and_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.mp4")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket.mp4"))
        (tmp_path / "self.mp4").symlink_to("self.mp4")
        (tmp_path / "dangling.mp4").symlink_to("nowhere")
        (tmp_path / "device.mp4").symlink_to("/dev/zero")
        found = find(str(tmp_path), is_mp4)
    reasons = {Path(item.source_uri).name: item.reason for item in found if isinstance(item, Rejection)}
    assert reasons == {
        "fifo.mp4": "not_a_file",
        "socket.mp4": "not_a_file",
        "device.mp4": "not_a_file",
        "self.mp4": "unreadable",
        "dangling.mp4": "unreadable",
    }


def test_folders_behind_links_are_listed_once(tmp_path: Path) -> None:
    (tmp_path / "root/a").mkdir(parents=True)
    (tmp_path / "root/a/ok.mp4").write_bytes(b"x")
    (tmp_path / "root/a/loop").symlink_to("..")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/secret.mp4").write_bytes(b"x")
    (tmp_path / "root/outside").symlink_to(tmp_path / "outside")
    (tmp_path / "root/linked.mp4").symlink_to("a/ok.mp4")
    found = find(str(tmp_path / "root"), is_mp4)
    assert [item.path.removeprefix(f"{tmp_path}/root/") for item in found if isinstance(item, SourceFile)] == [
        "a/ok.mp4",
        "linked.mp4",
        "outside/secret.mp4",
    ]


def test_what_else_is_there_is_counted(tmp_path: Path) -> None:
    for name in ("a.mp4", "a.json", "b.json", "c.txt", "README", ".DS_Store", "info.json", "x.verylongsuffix"):
        (tmp_path / name).write_bytes(b"x")
    left_out = [item for item in find(str(tmp_path), is_mp4, beside=["info.json"]) if isinstance(item, LeftOut)]
    assert {item.what for item in left_out} == {"2 files *.json", "1 file *.txt", "3 files without a suffix"}
    assert not [item for item in find(str(tmp_path / "*.json"), is_mp4) if isinstance(item, LeftOut)]


def test_a_folder_named_like_a_file_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "dir.mp4").mkdir()
    (tmp_path / "dir.mp4/inside.mp4").write_bytes(b"x")
    for source in (tmp_path, tmp_path / "dir.mp4"):
        assert [item.name for item in find(str(source), is_mp4) if isinstance(item, SourceFile)] == ["inside.mp4"]


def test_file_glob_and_nothing(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.mp4", "c.txt"):
        (tmp_path / name).write_bytes(b"x")
    assert len(find(str(tmp_path / "c.txt"), is_mp4)) == 1  # asked for by name
    assert len(find(str(tmp_path / "*.mp4"), is_mp4)) == 2
    assert find(str(tmp_path / "*.avi"), is_mp4) == []
    with pytest.raises(UserError, match="nothing at"):
        find(str(tmp_path / "absent"), is_mp4)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list anything")
def test_a_locked_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0)
    assert [item.reason for item in find(str(tmp_path), is_mp4) if isinstance(item, Rejection)] == ["unreadable"]


def test_remote() -> None:
    fs = fsspec.filesystem("memory")
    fs.pipe({"/find/a.mp4": b"0123456789", "/find/sub/b.mp4": b"b", "/find/c.txt": b"c"})
    found = find("memory://find", is_mp4)
    assert [item.what for item in found if isinstance(item, LeftOut)] == ["1 file *.txt"]
    assert [item.uri for item in found if isinstance(item, SourceFile)] == [
        "memory://find/a.mp4",
        "memory://find/sub/b.mp4",
    ]
    first = found[0]
    assert isinstance(first, SourceFile)
    assert (first.size, first.read(2, 3)) == (10, b"234")
    with first.open() as file:
        assert file.read() == b"0123456789"
    assert len(find("memory://find/*.mp4", is_mp4)) == 1
    assert len(find("memory://find/c.txt", is_mp4)) == 1
    with pytest.raises(UserError, match="nothing at"):
        find("memory://find/absent", is_mp4)
    fs.rm("/find", recursive=True)
