"""Arrays of a Zarr v2 group in a folder, on an object store or in a zip, read chunk by chunk and nothing believed.

zarr-python gives the fill value where a chunk is lost, and decodes whatever a file's metadata names. Here a lost chunk
is an error, sizes are checked before memory is taken, and only known codecs run; there are no object arrays.

Letters: N rows of an array, its first dimension.
"""

import json
import math
import posixpath
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipelines.checks.quality import BadDataError
from pipelines.files import SourceFile
from storage_schemas.errors import UserError
from storage_schemas.location import Location

_MAX_METADATA = 1 << 20
_MAX_BLOCK = 1 << 30
"""Bytes of the chunks that hold the same rows."""
_MAX_CHUNKS = 10_000
"""Chunks that hold the same rows."""
_MAX_ARRAYS = 1000
_LOCAL_HEADER = 30
"""Bytes of a zip file's header of a file, without its name."""
_DTYPE = re.compile(r"[<>|][biuf][1248]")


class Group(Protocol):
    """Where the bytes of a group lie."""

    def read(self, key: str, limit: int) -> bytes:
        """A file of the group, of at most `limit` bytes. Raises FileNotFoundError, BadDataError."""
        ...

    def digest(self, key: str) -> str:
        """Changes when a file changes, as far as that is cheap to know. Raises FileNotFoundError."""
        ...

    def folders(self, key: str) -> list[str]:
        """Names of the folders in one, sorted."""
        ...


class FolderGroup:
    """A folder, local or remote."""

    def __init__(self, place: Location) -> None:
        self._place = place

    def read(self, key: str, limit: int) -> bytes:
        """See `Group`."""
        data = (self._place / key).read_bytes(0, limit + 1)
        if len(data) > limit:
            raise BadDataError("too_large", f"{key} is larger than {limit} bytes")
        return data

    def digest(self, key: str) -> str:
        """The file's size."""
        return str((self._place / key).size())

    def folders(self, key: str) -> list[str]:
        """See `Group`; files may be among them."""
        return (self._place / key).names()


class ZipGroup:
    """A group in a zip file, of which the directory is read once and each file by its place, with its checksum.

    Raises:
        BadDataError: "not_a_zip".
        OSError: when the file can't be read.
    """

    def __init__(self, file: SourceFile) -> None:
        self._file = file
        try:
            with file.open() as opened, zipfile.ZipFile(opened) as archive:
                self._known = {info.filename: info for info in archive.infolist()}
        except (zipfile.BadZipFile, NotImplementedError, ValueError, RuntimeError, OverflowError, EOFError) as error:
            raise BadDataError("not_a_zip", f"no directory of a zip file: {error}") from error
        ends = [name for name in self._known if name.endswith(f"{ENDS}/.zarray")]
        self._root = min(ends, key=len).removesuffix(f"{ENDS}/.zarray") if ends else ""

    def read(self, key: str, limit: int) -> bytes:
        """See `Group`."""
        info = self._info(key)
        if info.file_size > limit or info.compress_size > limit + limit // 8 + 4096:
            raise BadDataError("too_large", f"{key} has {info.file_size} bytes")
        header = self._bytes(key, info.header_offset, _LOCAL_HEADER)
        if len(header) < _LOCAL_HEADER or header[:4] != b"PK\3\4":
            raise BadDataError("corrupt", f"{key}: the zip file has no header where its directory says")
        skipped = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        data = self._bytes(key, info.header_offset + _LOCAL_HEADER + skipped, info.compress_size)
        if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise BadDataError("not_a_zip", f"{key} is encrypted or packed in another way than zip's own")
        if info.compress_type == zipfile.ZIP_DEFLATED:
            try:
                data = zlib.decompressobj(wbits=-15).decompress(data, info.file_size + 1)
            except zlib.error as error:
                raise BadDataError("corrupt", f"{key}: {error}") from error
        if len(data) != info.file_size or zlib.crc32(data) != info.CRC:
            raise BadDataError("crc_mismatch", f"{key}: the zip file's checksum does not match")
        return data

    def _bytes(self, key: str, start: int, length: int) -> bytes:
        if not 0 <= start <= start + length <= self._file.size:
            raise BadDataError("corrupt", f"{key}: the zip file's directory leads out of the file")
        return self._file.read(start, length)

    def digest(self, key: str) -> str:
        """The checksum and the size that the zip file's directory states."""
        info = self._info(key)
        return f"{info.file_size}-{info.CRC:08x}"

    def folders(self, key: str) -> list[str]:
        """See `Group`."""
        start = f"{self._root}{key}/"
        inside = (name[len(start) :] for name in self._known if name.startswith(start))
        return sorted({name.partition("/")[0] for name in inside if "/" in name})

    def _info(self, key: str) -> zipfile.ZipInfo:
        info = self._known.get(f"{self._root}{key}")
        if info is None:
            raise FileNotFoundError(f"the zip file has no {key}")
        return info


ENDS = "meta/episode_ends"
"""The array that every replay buffer has."""


@dataclass(eq=False)
class ArrayV2:
    """An array of a group, at most one block of rows of which is in memory.

    Raises:
        BadDataError: "bad_metadata", "unsupported_array", "too_large".
    """

    group: Group
    name: str
    shape: tuple[int, ...] = field(init=False)
    dtype: "np.dtype[Any]" = field(init=False)
    chunks: tuple[int, ...] = field(init=False)
    _order: str = field(init=False)
    _separator: str = field(init=False)
    _decode: Callable[[bytes, tuple[int, ...], "np.dtype[Any]"], bytes] = field(init=False)
    _block: tuple[int, NDArray[Any]] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        try:
            about = json.loads(self.group.read(f"{self.name}/.zarray", _MAX_METADATA))
            self.shape = tuple(int(size) for size in about["shape"])
            self.chunks = tuple(int(size) for size in about["chunks"])
            kind, codec = about["dtype"], about.get("compressor")
            self._order, self._separator = about.get("order", "C"), about.get("dimension_separator", ".")
            version, filters = about["zarr_format"], about.get("filters")
            name = None if codec is None else str(codec["id"])
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
            detail = f"{self.name}/.zarray makes no sense: {type(error).__name__}: {error}"
            raise BadDataError("bad_metadata", detail) from error
        if not isinstance(kind, str) or not _DTYPE.fullmatch(kind) or (kind[1] == "f" and kind[2] == "1"):
            raise BadDataError("unsupported_array", f"{self.name} holds {str(kind)[:40]}, no plain numbers")
        if version != 2 or filters or self._order not in ("C", "F") or self._separator not in (".", "/"):
            raise BadDataError("unsupported_array", f"{self.name} is no plain Zarr v2 array, or has filters")
        self._check_sizes(kind)
        self._decode = _decoder(self.name, name)

    def _check_sizes(self, kind: str) -> None:
        self.dtype = np.dtype(kind)
        sizes = (len(self.shape), min(self.shape, default=0), min(self.chunks, default=0))
        if not 1 <= sizes[0] <= 8 or len(self.chunks) != sizes[0] or sizes[1] < 0 or sizes[2] < 1:
            raise BadDataError("bad_metadata", f"{self.name} has the shape {self.shape} in chunks of {self.chunks}")
        # a chunk may hang over the end, but not by more than what is there: one chunk of all rows is usual
        across = math.prod(math.ceil(size / chunk) for size, chunk in zip(self.shape[1:], self.chunks[1:], strict=True))
        held = math.prod(self.chunks) * max(1, across) * self.dtype.itemsize
        if held > _MAX_BLOCK or across > _MAX_CHUNKS:
            raise BadDataError("too_large", f"{self.name}: {held} bytes in {across} chunks hold the same rows")

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        """Rows `start` to `stop`, (stop - start, ...). Raises BadDataError."""
        if not 0 <= start <= stop <= len(self):
            raise BadDataError("length_mismatch", f"{self.name} has {len(self)} rows, not {stop}")
        out = np.empty((stop - start, *self.shape[1:]), self.dtype.newbyteorder("="))
        step = self.chunks[0]
        for index in range(start // step, -(-stop // step)):
            first, last = max(start, index * step), min(stop, (index + 1) * step)
            out[first - start : last - start] = self._rows_of(index)[first - index * step : last - index * step]
        return out

    def chunk_digests(self, start: int, stop: int) -> list[str]:
        """What is cheap to know of the chunks of some rows. Raises BadDataError when one is lost."""
        step = self.chunks[0]
        with _lost(self.name):
            return [self.group.digest(key) for i in range(start // step, -(-stop // step)) for key in self._keys(i)]

    def encoded(self, row: int) -> bytes:
        """The bytes of a row, as its first chunk holds them. Raises BadDataError."""
        with _lost(self.name):
            return self.group.read(next(self._keys(row // self.chunks[0])), _MAX_BLOCK)

    def _keys(self, index: int) -> Iterator[str]:
        counts = [math.ceil(size / chunk) for size, chunk in zip(self.shape[1:], self.chunks[1:], strict=True)]
        for rest in product(*map(range, counts)):
            yield f"{self.name}/{self._separator.join(map(str, (index, *rest)))}"

    def _rows_of(self, index: int) -> NDArray[Any]:
        """The rows that chunk `index` of the first dimension holds."""
        if self._block is None or self._block[0] != index:
            self._block = None
            block = np.empty((self.chunks[0], *self.shape[1:]), self.dtype)
            for key in self._keys(index):
                place = key.removeprefix(f"{self.name}/").split(self._separator)[1:]
                corner = [int(i) * chunk for i, chunk in zip(place, self.chunks[1:], strict=True)]
                sizes = [min(c, n - a) for a, c, n in zip(corner, self.chunks[1:], self.shape[1:], strict=True)]
                inside = tuple(slice(a, a + n) for a, n in zip(corner, sizes, strict=True))
                block[:, *inside] = self._chunk(key)[:, *(slice(n) for n in sizes)]
            self._block = index, block
        return self._block[1]

    def _chunk(self, key: str) -> NDArray[Any]:
        size = math.prod(self.chunks) * self.dtype.itemsize
        with _lost(self.name):
            data = self.group.read(key, size + size // 8 + 4096)
        try:
            plain = self._decode(data, self.chunks, self.dtype)
        except (ValueError, RuntimeError, TypeError, MemoryError, zlib.error) as error:
            raise BadDataError("corrupt", f"{key} can't be decoded: {str(error) or type(error).__name__}") from error
        if len(plain) != size:
            raise BadDataError("corrupt", f"{key} holds {len(plain)} bytes, {size} are declared")
        return np.frombuffer(plain, self.dtype).reshape(self.chunks, order="F" if self._order == "F" else "C")


@contextmanager
def _lost(name: str) -> Iterator[None]:
    """A chunk that is not there is lost: the writers of replay buffers leave none out."""
    try:
        yield
    except FileNotFoundError as error:
        raise BadDataError("unreadable", f"a chunk of {name} is lost: {posixpath.basename(str(error))}") from error
    except OSError as error:
        raise BadDataError("unreadable", f"a chunk of {name}: {error.strerror or error}") from error


Decoder = Callable[[bytes, tuple[int, ...], "np.dtype[Any]"], bytes]


def _decoder(array: str, codec: str | None) -> Decoder:
    """How chunks of an array are decoded. Raises BadDataError, and UserError when a package is missing."""
    if codec is None:
        return lambda data, _shape, _dtype: data
    if codec in _PICTURES:
        try:
            import imagecodecs  # noqa: F401
        except ImportError as error:
            needed = "which needs imagecodecs: pip install 'uwm-pipeline[umi]'"
            raise UserError(f"{array} holds {codec}, {needed}") from error
        return _PICTURES[codec]
    if codec not in _PLAIN:
        known = ", ".join((*_PLAIN, *_PICTURES))
        raise BadDataError("unsupported_array", f"{array} is packed with {codec[:40]}, not with one of {known}")
    unpack = _PLAIN[codec]
    return lambda data, shape, dtype: unpack(data, math.prod(shape) * dtype.itemsize)


def _check(stated: int, size: int) -> None:
    if stated != size:
        raise ValueError(f"it unpacks to {stated} bytes, {size} are declared")


def _blosc(data: bytes, size: int) -> bytes:
    from numcodecs.blosc import decompress

    if len(data) < 16:
        raise ValueError("it is shorter than a header")
    _check(int.from_bytes(data[4:8], "little"), size)
    if int.from_bytes(data[12:16], "little") != len(data):
        raise ValueError("it has another length than its header says")
    return bytes(decompress(data))


def _zstd(data: bytes, size: int) -> bytes:
    """Zstandard whose header states how much comes out (RFC 8878, 3.1.1.1)."""
    from numcodecs.zstd import decompress

    if data[:4] != b"\x28\xb5\x2f\xfd" or len(data) < 6:
        raise ValueError("it is no Zstandard frame")
    flags = data[4]
    single = flags >> 5 & 1
    width = (1 if single else 0, 2, 4, 8)[flags >> 6]
    place = 5 + (0 if single else 1) + (0, 1, 2, 4)[flags & 3]
    stated = int.from_bytes(data[place : place + width], "little") + (256 if width == 2 else 0)
    if not width:
        raise ValueError("its header does not state a size")
    _check(stated, size)
    return bytes(decompress(data))


def _lz4(data: bytes, size: int) -> bytes:
    from numcodecs.lz4 import decompress

    _check(int.from_bytes(data[:4], "little"), size)
    return bytes(decompress(data))


def _deflate(data: bytes, size: int) -> bytes:
    """Of zlib or gzip."""
    return zlib.decompressobj(wbits=47).decompress(data, size + 1)


def _jpegxl(data: bytes, shape: tuple[int, ...], dtype: "np.dtype[Any]") -> bytes:
    import imagecodecs

    return bytes(imagecodecs.jpegxl_decode(data, out=np.empty(_picture(shape), dtype)))


def _jpeg2k(data: bytes, shape: tuple[int, ...], dtype: "np.dtype[Any]") -> bytes:
    import imagecodecs

    return bytes(imagecodecs.jpeg2k_decode(data, out=np.empty(_picture(shape), dtype)))


def _picture(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of the one picture in a chunk; its decoder checks it before it writes."""
    if any(size != 1 for size in shape[:-3]) or len(shape) < 3:
        raise ValueError(f"a chunk of {shape} is not one picture")
    return shape[-3:]


_PLAIN: dict[str, Callable[[bytes, int], bytes]] = {
    "blosc": _blosc,
    "zstd": _zstd,
    "lz4": _lz4,
    "zlib": _deflate,
    "gzip": _deflate,
}
_PICTURES: dict[str, Decoder] = {"imagecodecs_jpegxl": _jpegxl, "imagecodecs_jpeg2k": _jpeg2k}


def arrays_of(group: Group, folder: str) -> dict[str, ArrayV2 | BadDataError]:
    """The arrays in a folder of a group by name, or why one can't be read.

    Raises:
        BadDataError: "too_large", when there are too many.
    """
    names = group.folders(folder)
    if len(names) > _MAX_ARRAYS:
        raise BadDataError("too_large", f"{folder} holds {len(names)} arrays")
    found: dict[str, ArrayV2 | BadDataError] = {}
    for name in names:
        try:
            found[name] = ArrayV2(group, f"{folder}/{name}")
        except (FileNotFoundError, NotADirectoryError):  # a folder that is no array
            continue
        except BadDataError as error:
            found[name] = error
    return found
