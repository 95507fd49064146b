"""Files of `torch.save`, zip or legacy, read by `torch.load(weights_only=True)` behind checks of what it can't bound.

A zip file is mapped, not read: tensors that nobody asks for cost no memory. Classes of other code, such as the
published normalizers, are never looked for: an ordered dict takes their place.
"""

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from storage_schemas.errors import UserError
from uwm.reference.pickle_check import NUMPY, PickleCheck, Refused

MAX_PICKLE_BYTES = 64 << 20
MAX_MEMBERS = 100_000
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_NUMBER_TYPES = frozenset({"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"})
_TORCH_ERRORS = (
    *(pickle.UnpicklingError, RuntimeError, AssertionError, AttributeError),
    *(ValueError, TypeError, LookupError, EOFError, OverflowError),
)


class Foreign:
    """In the place of a class of other code: its instances are ordered dicts, with their state as attributes.

    An `OrderedDict` because torch gives items and states to no subclass of it.
    """

    def __new__(cls) -> "OrderedDict[object, object]":  # type: ignore[misc]
        """Make what stands for an instance."""
        return OrderedDict()


class NumpyValue:
    """In the place of numpy's arrays and types: what the pickle says of them.

    Attributes:
        arguments: of the call that makes the value.
        state: what its `__setstate__` was given.
    """

    def __init__(self, *arguments: object) -> None:
        self.arguments = arguments
        self.state: tuple[object, ...] = ()

    def __setstate__(self, state: tuple[object, ...]) -> None:
        self.state = state

    def array(self) -> NDArray[np.generic]:
        """The array, a copy. Raises Refused when it is none of numbers, or holds other than its shape says."""
        try:
            _, shape, kind, fortran, content = self.state
            flat = np.frombuffer(content, _dtype(kind))  # type: ignore[call-overload]
            return flat.reshape(shape, order="F" if fortran else "C").copy()  # type: ignore[no-any-return]
        except (ValueError, TypeError) as error:
            raise Refused("an array without its numbers") from error


def _dtype(kind: object) -> np.dtype[np.generic]:
    code = kind.arguments[0] if isinstance(kind, NumpyValue) and kind.arguments else None
    if not isinstance(kind, NumpyValue) or code not in _NUMBER_TYPES or len(kind.state) < 2:
        raise Refused("a numpy type that is no number")
    return np.dtype(f"{kind.state[1]}{code}")


def _scalar(kind: object, content: bytes) -> object:
    return np.frombuffer(content, _dtype(kind)).item()


def read_torch_file(path: Path) -> object:
    """What `torch.save` wrote, with numpy's values as `NumpyValue` and instances of other code as ordered dicts.

    Raises:
        UserError: when the file is missing, is none of torch's, is damaged, or asks for more than data; one line.
    """
    try:
        with path.open("rb") as file:
            load = _check_zip(path, file) if file.read(4) == b"PK\x03\x04" else _check_legacy(file)
        return load()
    except OSError as error:
        raise UserError(f"can't read {path}: {error.strerror or error}") from error
    except Refused as error:
        raise UserError(f"{path} is refused, nothing was run: it holds {error}") from error
    except (zipfile.BadZipFile, NotImplementedError, *_TORCH_ERRORS) as error:
        raise UserError(f"{path} is damaged, or no file of torch.save: {' '.join(str(error).split())[:120]}") from error


def _load(source: Path | io.BytesIO, check: PickleCheck, *, mmap: bool) -> object:
    stand_ins: list[Callable[..., object] | tuple[Callable[..., object], str]] = [
        (Foreign, name) for name in check.foreign
    ]
    stand_ins += [(_scalar if name.endswith("scalar") else NumpyValue, name) for name in NUMPY]
    with torch.serialization.safe_globals(stand_ins):
        return torch.load(source, map_location="cpu", weights_only=True, mmap=mmap)


def _check_zip(path: Path, file: io.BufferedReader) -> Callable[[], object]:
    """Check a zip of `<name>/data.pkl` and `<name>/data/<key>`; returns what loads it.

    Every checksum is compared, which reads the file once: torch compares none of a mapped file.
    """
    with zipfile.ZipFile(file) as archive:
        members = {member.filename: member for member in archive.infolist()}
        if len(archive.infolist()) > MAX_MEMBERS or len(members) != len(archive.infolist()):
            raise Refused(f"{len(archive.infolist())} zip members, some of one name or more than {MAX_MEMBERS}")
        if sum(member.file_size for member in members.values()) > path.stat().st_size:
            raise Refused("zip members that are larger than the file")
        packed = [n for n, m in members.items() if m.compress_type != zipfile.ZIP_STORED or m.flag_bits & 1]
        if packed:
            raise Refused(f"the compressed or encrypted member {packed[0][:80]!r}")
        pickles = [name for name in members if name.count("/") == 1 and name.endswith("/data.pkl")]
        # torch and Python agree on the members of a zip that starts with the first and ends without a comment
        if len(pickles) != 1 or archive.comment or min(member.header_offset for member in members.values()):
            raise Refused(f"{len(pickles)} members data.pkl: it is no file of torch.save")
        broken = archive.testzip()
        if broken is not None:
            raise Refused(f"other bytes in {broken[:80]!r} than were written: it is damaged")
        folder = pickles[0].removesuffix("data.pkl")
        if f"{folder}byteorder" in members and archive.read(f"{folder}byteorder") != b"little":
            raise Refused("numbers in big-endian order")
        if members[pickles[0]].file_size > MAX_PICKLE_BYTES:
            raise Refused(f"a pickle of {members[pickles[0]].file_size} bytes")
        check = PickleCheck()
        check.check(io.BytesIO(archive.read(pickles[0])))
    for key, size in check.storages.items():
        member = members.get(f"{folder}data/{key}")
        if member is None or member.file_size != size:
            member_size = "no member" if member is None else f"a zip member of {member.file_size}"
            raise Refused(f"a tensor of {size} bytes in {member_size}")
    return lambda: _load(path, check, mmap=True)


def _check_legacy(file: io.BufferedReader) -> Callable[[], object]:
    """Check the format before torch 1.6: five pickles, the last of them the keys of the storages that follow."""
    file.seek(0)
    content = io.BytesIO(file.read())
    check = PickleCheck()
    if check.check(content) != _LEGACY_MAGIC:
        raise Refused("a pickle, but not one of torch.save")
    *_, keys = (check.check(content) for _ in range(4))
    if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(check.storages):
        raise Refused("storages that do not match its tensors")
    needed = content.tell() + sum(8 + size for size in check.storages.values())
    if needed != len(content.getbuffer()):
        raise Refused(f"{len(content.getbuffer())} bytes where its tensors need {needed}: it is damaged")
    content.seek(0)
    # from memory: of a file torch would first try whether it is a tar, which was not checked
    return lambda: _load(content, check, mmap=False)
