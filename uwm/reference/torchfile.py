"""Files of `torch.save`, zip or legacy, as data: nested dicts, tensors in place, arrays of numpy.

The file is mapped, not read: tensors that nobody asks for cost nothing. Zip members are stored, never compressed,
and their checksums are checked when a tensor is taken.
"""

import io
import mmap
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from storage_schemas.errors import UserError
from uwm.reference.inert import Name, Refused, Vocabulary, read_pickle

MAX_PICKLE_BYTES = 64 << 20
MAX_MEMBERS = 100_000
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_LOCAL_HEADER = struct.Struct("<4s22xHH")

_STORAGES = {
    "torch.FloatStorage": torch.float32,
    "torch.DoubleStorage": torch.float64,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}
_NAMES = frozenset({*_STORAGES, *(str(dtype) for dtype in _STORAGES.values()), "numpy.ndarray"})


@dataclass(frozen=True, eq=False)
class Storage:
    """The numbers behind some tensors, somewhere in the file."""

    key: str
    dtype: torch.dtype
    count: int
    read: Callable[[str, int], memoryview]
    """(key, bytes) -> the bytes, checked."""

    def flat(self) -> Tensor:
        """(count,) the numbers, sharing the file's pages."""
        size = self.count * self.dtype.itemsize
        content = self.read(self.key, size)
        return torch.frombuffer(content, dtype=self.dtype) if size else torch.empty(0, dtype=self.dtype)


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """A tensor that has not been read yet."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def tensor(self) -> Tensor:
        """The tensor, sharing the file's pages. Raises Refused when the file does not hold what it says."""
        return self.storage.flat().as_strided(self.shape, self.stride, self.offset)


@dataclass(eq=False)
class _Dtype:
    """A numpy type: numbers only."""

    code: str

    def build(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) < 2 or state[1] not in ("<", ">", "=", "|"):
            raise Refused("a numpy type that is no number")
        self.code = f"{state[1]}{self.code}"

    def dtype(self) -> np.dtype[np.generic]:
        return np.dtype(self.code)


@dataclass(eq=False)
class StoredArray:
    """A numpy array that has not been made yet."""

    content: bytes = b""
    kind: _Dtype | None = None
    shape: tuple[int, ...] = ()
    fortran: bool = False

    def build(self, state: object) -> None:
        """Take numpy's state of an array: (version, shape, type, Fortran order, bytes)."""
        if not isinstance(state, tuple) or len(state) != 5:
            raise Refused("an array without its numbers")
        _, shape, kind, fortran, content = state
        if not isinstance(kind, _Dtype) or not isinstance(content, bytes):
            raise Refused("an array of objects")
        self.content, self.kind, self.shape, self.fortran = content, kind, _sizes(shape), bool(fortran)

    def array(self) -> NDArray[np.generic]:
        """The array, a copy."""
        if self.kind is None:
            raise Refused("an array without its numbers")
        dtype = self.kind.dtype()
        if int(np.prod(self.shape, dtype=object)) * dtype.itemsize != len(self.content):
            raise Refused(f"an array of shape {self.shape} in {len(self.content)} bytes")
        flat = np.frombuffer(self.content, dtype)
        return flat.reshape(self.shape, order="F" if self.fortran else "C").copy()


def read_torch_file(path: Path) -> object:
    """What `torch.save` wrote, with tensors as `StoredTensor` and arrays as `StoredArray`.

    Foreign classes are `Instance` records, whose code is neither needed nor looked for.

    Raises:
        UserError: when the file is missing, is none of torch's, is damaged, or asks for more than data; one line.
    """
    try:
        with path.open("rb") as file:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except (OSError, ValueError) as error:
        raise UserError(f"can't read {path}: {getattr(error, 'strerror', None) or error}") from error
    try:
        return _Archive(content).root() if content[:4] == b"PK\x03\x04" else _legacy(content)
    except Refused as error:
        raise UserError(f"{path} is refused, nothing was run: it holds {error}") from error
    except (zipfile.BadZipFile, NotImplementedError, EOFError, ValueError, OverflowError, struct.error) as error:
        raise UserError(f"{path} is damaged: {' '.join(str(error).split())[:120]}") from error


class _Archive:
    """The zip format: `<name>/data.pkl` and `<name>/data/<key>`, stored one after the other."""

    def __init__(self, content: mmap.mmap) -> None:
        self._content = content
        self._view = memoryview(content)
        with zipfile.ZipFile(_Window(content)) as archive:
            members = archive.infolist()
        if len(members) > MAX_MEMBERS:
            raise Refused(f"{len(members)} zip members")
        if sum(member.file_size for member in members) > len(content):
            raise Refused("zip members that are larger than the file")
        self._members = {member.filename: member for member in members}
        if len(self._members) != len(members):
            raise Refused("two zip members of one name")
        pickles = [name for name in self._members if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise Refused(f"{len(pickles)} members data.pkl: it is no file of torch.save")
        self._folder = pickles[0].removesuffix("data.pkl")
        self._sound: set[str] = set()

    def root(self) -> object:
        order = f"{self._folder}byteorder"
        if order in self._members and bytes(self._member(order)) != b"little":
            raise Refused("numbers in big-endian order")
        content = self._member(f"{self._folder}data.pkl")
        if len(content) > MAX_PICKLE_BYTES:
            raise Refused(f"a pickle of {len(content)} bytes")
        return read_pickle(io.BytesIO(content), _vocabulary(self._storage))

    def _storage(self, reference: object) -> Storage:
        kind, key, count = _reference(reference, 5)
        return Storage(key, kind, count, self._read)

    def _read(self, key: str, size: int) -> memoryview:
        content = self._member(f"{self._folder}data/{key}")
        if len(content) != size:
            raise Refused(f"a tensor of {size} bytes in a zip member of {len(content)}")
        return content

    def _member(self, name: str) -> memoryview:
        """A member's bytes, in place. Raises Refused when they are not those that were written."""
        member = self._members.get(name)
        if member is None:
            raise Refused(f"no member {name[:80]!r}")
        if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
            raise Refused(f"the compressed or encrypted member {name[:80]!r}")
        start = member.header_offset
        if start + _LOCAL_HEADER.size + 4 > len(self._content):
            raise Refused(f"only a part of {name[:80]!r}")
        _, names, extra = _LOCAL_HEADER.unpack_from(self._content, start)
        begin = start + _LOCAL_HEADER.size + names + extra
        content = self._view[begin : begin + member.file_size]
        if name not in self._sound and (len(content) != member.file_size or zlib.crc32(content) != member.CRC):
            raise Refused(f"other bytes in {name[:80]!r} than were written: it is damaged")
        self._sound.add(name)
        return content


def _legacy(content: mmap.mmap) -> object:
    """The format before torch 1.6: five pickles, then the storages in the order of the last pickle's keys."""
    places: dict[str, int] = {}
    wanted: dict[str, tuple[torch.dtype, int]] = {}
    view = memoryview(content)

    def storage(reference: object) -> Storage:
        kind, key, count = _reference(reference, 6)
        if wanted.setdefault(key, (kind, count)) != (kind, count):
            raise Refused("one storage under two sizes")
        return Storage(key, kind, count, lambda key, size: view[places[key] : places[key] + size])

    vocabulary = _vocabulary(storage)
    place, found = 0, []
    for _ in range(5):
        file = io.BytesIO(content[place : place + MAX_PICKLE_BYTES])
        found.append(read_pickle(file, vocabulary))
        place += file.tell()
        if len(found) == 1 and found[0] != _LEGACY_MAGIC:
            raise Refused("a pickle, but not one of torch.save")
    _, protocol, system, root, keys = found
    if protocol != _LEGACY_PROTOCOL or not isinstance(system, dict) or system.get("little_endian") is not True:
        raise Refused("another version of torch's legacy format")
    if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(wanted):
        raise Refused("storages that do not match its tensors")
    for key in map(str, keys):
        dtype, count = wanted[key]
        if content[place : place + 8] != struct.pack("<q", count):
            raise Refused("a storage of another size than its tensors: it is damaged")
        places[key] = place + 8
        place += 8 + count * dtype.itemsize
    if place != len(content):
        raise Refused(f"{len(content)} bytes where its tensors need {place}: it is damaged")
    return root


def _vocabulary(storage: Callable[[object], Storage]) -> Vocabulary:
    reducers: dict[str, Callable[..., object]] = {
        "torch._utils._rebuild_tensor": _tensor,
        "torch._utils._rebuild_tensor_v2": _tensor,
        "torch._utils._rebuild_parameter": _parameter,
        "torch.Size": _sizes,
        "torch.device": _device,
        "collections.OrderedDict": _ordered,
        "_codecs.encode": _Encoder(),
        "numpy.dtype": _dtype,
    }
    for core in ("numpy.core", "numpy._core"):
        reducers[f"{core}.multiarray._reconstruct"] = _array
        reducers[f"{core}.multiarray.scalar"] = _scalar
    return Vocabulary(reducers=reducers, names=_NAMES, persistent=storage)


def _reference(reference: object, length: int) -> tuple[torch.dtype, str, int]:
    """Type, key and number of elements of a persistent id ("storage", type, key, place, count[, view])."""
    if not isinstance(reference, tuple) or len(reference) != length or reference[0] != "storage":
        raise Refused("a persistent id that is no storage")
    kind, key, count = reference[1], reference[2], reference[4]
    if not isinstance(kind, Name) or kind.path not in _STORAGES:
        raise Refused("a storage of an unknown type")
    if not isinstance(key, str) or not key.isdecimal() or not _is_count(count) or reference[5:] not in ((), (None,)):
        raise Refused("a storage without key or size")
    return _STORAGES[kind.path], key, cast(int, count)


def _tensor(storage: object, offset: object, shape: object, stride: object, *_: object) -> StoredTensor:
    if not isinstance(storage, Storage) or not _is_count(offset):
        raise Refused("a tensor without storage")
    start, sizes, steps = cast(int, offset), _sizes(shape), _sizes(stride)
    if len(sizes) != len(steps):
        raise Refused("a tensor whose shape and strides differ")
    count = int(np.prod(sizes, dtype=object))
    last = start + sum((size - 1) * step for size, step in zip(sizes, steps, strict=True))
    if count and (last >= storage.count or count > storage.count):
        raise Refused(f"a tensor of {count} numbers that reaches beyond its storage of {storage.count}")
    return StoredTensor(storage, start, sizes, steps)


def _parameter(data: object, *_: object) -> object:
    if not isinstance(data, StoredTensor):
        raise Refused("a parameter that is no tensor")
    return data


def _sizes(value: object = ()) -> tuple[int, ...]:
    if not isinstance(value, tuple) or len(value) > 16 or not all(map(_is_count, value)):
        raise Refused("sizes that are no sizes")
    return value


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 48


def _device(*arguments: object) -> str:
    return ":".join(str(argument) for argument in arguments if isinstance(argument, str | int))[:80]


def _ordered(pairs: object = ()) -> dict[object, object]:
    if pairs != () and pairs != []:
        raise Refused("an ordered dict with arguments")
    return {}


class _Encoder:
    """`_codecs.encode(text, "latin1")`, how old protocols write bytes; as many bytes in all as a pickle may have."""

    def __init__(self) -> None:
        self._left = MAX_PICKLE_BYTES

    def __call__(self, text: object = "", encoding: object = "") -> bytes:
        if not isinstance(text, str) or encoding != "latin1":
            raise Refused("a call of _codecs.encode")
        self._left -= len(text)
        if self._left < 0:
            raise Refused(f"more than {MAX_PICKLE_BYTES} bytes of arrays")
        return text.encode("latin1")


def _dtype(code: object = "", *_: object) -> _Dtype:
    if not isinstance(code, str) or code not in (
        "f2",
        "f4",
        "f8",
        "i1",
        "i2",
        "i4",
        "i8",
        "u1",
        "u2",
        "u4",
        "u8",
        "b1",
    ):
        raise Refused("a numpy type that is no number")
    return _Dtype(code)


def _array(kind: object = None, *_: object) -> StoredArray:
    if kind != Name("numpy.ndarray"):
        raise Refused("an array of an unknown class")
    return StoredArray()


def _scalar(kind: object = None, content: object = b"") -> object:
    if not isinstance(kind, _Dtype) or not isinstance(content, bytes) or len(content) != kind.dtype().itemsize:
        raise Refused("a numpy number without its bytes")
    return np.frombuffer(content, kind.dtype())[0].item()


class _Window(io.RawIOBase):
    """A mapped file as a file: `zipfile` closes what it is given, the tensors still need the map."""

    def __init__(self, content: mmap.mmap) -> None:
        self._content, self._place = content, 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self._place = max(0, offset + (0, self._place, len(self._content))[whence])
        return self._place

    def tell(self) -> int:
        return self._place

    def read(self, size: int = -1) -> bytes:
        stop = len(self._content) if size is None or size < 0 else self._place + size
        found = self._content[self._place : stop]
        self._place += len(found)
        return found
