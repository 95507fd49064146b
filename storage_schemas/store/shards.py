"""The shard format of Zarr v3 (`sharding_indexed`, index at the end) and a reader for local files.

A shard is its chunks one after the other, then (offset, size) of each as little-endian uint64, then
the CRC-32C of that index. The local reader is plain `pread`: nothing to warm up, no threads, no cache,
so it is safe in forked workers and costs no memory however large the dataset is.
"""

import errno
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from itertools import starmap
from typing import NamedTuple, Protocol, TypeVar

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from storage_schemas.errors import DamagedError, StorageError

T = TypeVar("T")
HOLE = np.uint64(2**64 - 1)
"""Offset and size of a chunk that the shard does not hold."""
_ENTRY = 16
_CHECKSUM = 4


class ShardRead(NamedTuple):
    """Chunks of one shard."""

    key: str
    entries: int
    """Chunks that the shard has room for."""
    ids: NDArray[np.int64]
    """Ascending."""


class PartReader(Protocol):
    """Byte access to the parts of one dataset."""

    def chunks(self, key: str, entries: int, ids: NDArray[np.int64]) -> Sequence[bytes | memoryview | None]:
        """Verbatim bytes of the chunks `ids` of a shard of `entries` chunks; None for a hole or absent shard.

        Raises:
            DamagedError: when the shard is cut short or its index points outside of it.
        """
        ...

    def stream(self, reads: Sequence[ShardRead]) -> Iterator[Sequence[bytes | memoryview | None]]:
        """What `chunks` gives for each of many reads, in their order; remote ones are under way at once."""
        ...

    def numbers(self, key: str, start: int, size: int, total: int) -> bytes:
        """Bytes `start` to `start + size` of an array of numbers of `total` bytes and its checksum.

        Raises:
            DamagedError: when the file is missing or shorter.
        """
        ...

    def whole(self, key: str) -> bytes:
        """A whole small file. Raises FileNotFoundError."""
        ...


def encode_shard(chunks: Sequence[bytes | None]) -> bytes:
    """A shard of those chunks; None is a hole, which costs 16 bytes."""
    return b"".join(shard_pieces(chunks))


def shard_pieces(chunks: Sequence[bytes | None]) -> list[bytes]:
    """The bytes of a shard in the order in which they are written, without a copy of the chunks."""
    sizes = np.fromiter((0 if chunk is None else len(chunk) for chunk in chunks), np.uint64, len(chunks))
    index = np.stack([np.cumsum(sizes) - sizes, sizes], axis=1)
    index[[chunk is None for chunk in chunks]] = HOLE
    data = index.astype("<u8").tobytes()
    present = [chunk for chunk in chunks if chunk is not None]
    return [*present, data, google_crc32c.value(data).to_bytes(_CHECKSUM, "little")]


def parse_index(tail: bytes, size: int) -> NDArray[np.uint64]:
    """The index (entries, 2) in the last bytes of a shard of `size` bytes, checked.

    Raises:
        DamagedError: when the checksum is wrong or an entry points outside of the shard.
    """
    data = tail[:-_CHECKSUM]
    if google_crc32c.value(data) != int.from_bytes(tail[-_CHECKSUM:], "little"):
        raise DamagedError("the shard's index does not match its checksum")
    index = np.frombuffer(data, "<u8").reshape(-1, 2)
    _check_inside(index, size - len(tail))
    return index


def index_bytes(entries: int) -> int:
    """Bytes at the end of a shard that hold the index of that many chunks and its checksum."""
    return entries * _ENTRY + _CHECKSUM


def _check_inside(index: NDArray[np.uint64], size: int) -> None:
    # both numbers by themselves before their sum, which may wrap around
    present = index[index[:, 0] != HOLE]
    if len(present) and (present.max() > size or (present.sum(axis=1) > size).any()):
        raise DamagedError("the shard's index points outside of the shard")


class LocalParts:
    """`PartReader` of a folder on a mounted file system; keeps the most recently used files open."""

    def __init__(self, folder: str, limit: int = 128) -> None:
        self._folder = folder
        self._limit = limit
        self._files: OrderedDict[str, tuple[int, int]] = OrderedDict()

    def __del__(self) -> None:
        for descriptor, _ in self._files.values():
            os.close(descriptor)

    def __reduce__(self) -> tuple[type["LocalParts"], tuple[str, int]]:
        # an open descriptor means nothing in another process
        return LocalParts, (self._folder, self._limit)

    def chunks(self, key: str, entries: int, ids: NDArray[np.int64]) -> Sequence[bytes | memoryview | None]:
        """See `PartReader`. Neighbouring chunks are read at once."""

        def read(file: int, size: int) -> Sequence[bytes | memoryview | None]:
            data_size = size - index_bytes(entries)
            if data_size < 0:
                raise DamagedError(f"{key} is cut short")
            # Only the entries in between: all of the index, for its checksum, would be more bytes than some samples'
            # frames. `uwm verify` compares the checksum; here an entry is only kept from pointing outside.
            first, last = int(ids.min()), int(ids.max())
            index = np.frombuffer(os.pread(file, (last - first + 1) * _ENTRY, data_size + first * _ENTRY), "<u8")
            index = index.reshape(-1, 2)[ids - first]
            _check_inside(index, data_size)
            return _read_ranges(file, index)

        try:
            return self._read(key, read)
        except FileNotFoundError:
            return [None] * len(ids)

    def stream(self, reads: Sequence[ShardRead]) -> Iterator[Sequence[bytes | memoryview | None]]:
        """See `PartReader`. Read one by one: what was just read is still in the processor's cache."""
        return starmap(self.chunks, reads)

    def numbers(self, key: str, start: int, size: int, total: int) -> bytes:
        """See `PartReader`. Reads just that range."""
        try:
            data = self._read(key, lambda file, _: os.pread(file, size, start))
        except FileNotFoundError as error:
            raise DamagedError(f"{key} is missing") from error
        if len(data) != size:
            raise DamagedError(f"{key} is cut short")
        return data

    def whole(self, key: str) -> bytes:
        """See `PartReader`."""
        return self._read(key, lambda file, size: os.pread(file, size, 0))

    def _read(self, key: str, read: Callable[[int, int], T]) -> T:
        """What `read` makes of a file's descriptor and size.

        A share that was away and came back refuses what was opened before (ESTALE): the file is opened again, once.
        """
        for last in (False, True):
            try:
                return read(*self._open(key))
            except FileNotFoundError:
                raise
            except OSError as error:
                if key in self._files:
                    os.close(self._files.pop(key)[0])
                if last or error.errno != errno.ESTALE:
                    raise StorageError(f"{self._folder}/{key}: the storage failed: {error.strerror}") from error
        raise AssertionError("unreachable")

    def _open(self, key: str) -> tuple[int, int]:
        """Descriptor and size of a file; forked processes share descriptors harmlessly, for pread has no position."""
        file = self._files.get(key)
        if file is not None:
            self._files.move_to_end(key)
            return file
        descriptor = os.open(f"{self._folder}/{key}", os.O_RDONLY)
        file = self._files[key] = descriptor, os.fstat(descriptor).st_size
        if len(self._files) > self._limit:
            os.close(self._files.popitem(last=False)[1][0])
        return file


def _read_ranges(file: int, index: NDArray[np.uint64]) -> list[bytes | memoryview | None]:
    """Read (offset, size) ranges, one system call for each run of ranges that touch."""
    chunks: list[bytes | memoryview | None] = []
    ranges = index.tolist()
    hole = int(HOLE)
    i = 0
    while i < len(ranges):
        start, size = ranges[i]
        if start == hole:
            chunks.append(None)
            i += 1
            continue
        end, j = start + size, i + 1
        while j < len(ranges) and ranges[j][0] == end:
            end, j = end + ranges[j][1], j + 1
        # one buffer for the whole run, of which the chunks are views: decoders read where the kernel wrote
        data = memoryview(os.pread(file, end - start, start))
        if len(data) != end - start:
            raise DamagedError("a shard is shorter than when it was opened")
        chunks.extend(data[a - start : a - start + n] for a, n in ranges[i:j])
        i = j
    return chunks
