"""Shards: three readers agree on every shard, and damage is an error."""

import os
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage_schemas.errors import DamagedError
from storage_schemas.location import locate
from storage_schemas.store.remote import RemoteParts
from storage_schemas.store.shards import LocalParts, PartReader, encode_shard, index_bytes, parse_index

CHUNKS = st.lists(st.none() | st.binary(min_size=1, max_size=40), min_size=1, max_size=30)


@pytest.fixture(params=["local", "tensorstore"])
def reader(request: pytest.FixtureRequest, tmp_path: Path) -> PartReader:
    return LocalParts(str(tmp_path), limit=2) if request.param == "local" else RemoteParts(locate(tmp_path))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(CHUNKS, st.data())
def test_readers_give_the_chunks_back(
    reader: PartReader, tmp_path: Path, chunks: list[bytes | None], data: st.DataObject
) -> None:
    name = os.urandom(8).hex()
    (tmp_path / name).write_bytes(encode_shard(chunks))
    ids = sorted(data.draw(st.sets(st.integers(0, len(chunks) - 1), min_size=1)))
    found = reader.chunks(name, len(chunks), np.array(ids))
    assert [None if chunk is None else bytes(chunk) for chunk in found] == [chunks[i] for i in ids]


def test_an_absent_shard_is_all_holes(reader: PartReader) -> None:
    assert list(reader.chunks("nope", 4, np.array([0, 3]))) == [None, None]


def test_spans_and_whole_files(reader: PartReader, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"0123456789" + google_crc32c.value(b"0123456789").to_bytes(4, "little"))
    assert reader.numbers("file", 3, 4, 10) == b"3456"
    assert reader.whole("file")[:10] == b"0123456789"
    (tmp_path / "cut").write_bytes(b"0123456789")
    with pytest.raises(DamagedError, match="cut short"):
        reader.numbers("cut", 8, 4, 12)
    with pytest.raises(DamagedError, match="missing"):
        reader.numbers("nope", 0, 1, 10)
    with pytest.raises(FileNotFoundError):
        reader.whole("nope")


def test_a_truncated_shard_is_damage(reader: PartReader, tmp_path: Path) -> None:
    shard = encode_shard([b"abc", None, b"de"])
    for keep in (0, 10, len(shard) - 1):
        (tmp_path / f"cut{keep}").write_bytes(shard[:keep])
        with pytest.raises(DamagedError):
            reader.chunks(f"cut{keep}", 3, np.array([0, 2]))


def test_an_index_that_points_outside_is_damage(tmp_path: Path) -> None:
    shard = bytearray(encode_shard([b"abc", b"de"]))
    shard[5 + 7] = 0x7F  # the first offset becomes huge
    (tmp_path / "bad").write_bytes(shard)
    with pytest.raises(DamagedError, match="outside"):
        LocalParts(str(tmp_path)).chunks("bad", 2, np.array([0, 1]))
    with pytest.raises(DamagedError, match="checksum"):
        parse_index(bytes(shard[-index_bytes(2) :]), len(shard))


def test_index_checksum(tmp_path: Path) -> None:
    shard = encode_shard([b"abc", None])
    index = parse_index(shard[-index_bytes(2) :], len(shard))
    assert index[0].tolist() == [0, 3]


def _open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_files_are_closed_when_there_are_too_many(tmp_path: Path) -> None:
    reader = LocalParts(str(tmp_path), limit=2)
    for name in "abcd":
        (tmp_path / name).write_bytes(name.encode())
    before = _open_files()
    assert [reader.numbers(name, 0, 1, 1) for name in "abcdabcd"] == [name.encode() for name in "abcdabcd"]
    assert _open_files() == before + 2
    del reader
    assert _open_files() == before
