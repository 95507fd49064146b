"""The child's side: h5py on a file whose author is unknown. It is the only module that imports h5py.

The file is handed to HDF5 as an open file object, so that nothing in it can make the library open another one by name:
what external links or virtual datasets name would be looked for in the same bytes. They are refused all the same, as
is raw data in other files, which HDF5 would open by itself. Filters beyond HDF5's own are never loaded
(`HDF5_PLUGIN_PRELOAD`, set where the child is started). Time and memory are bounded from outside.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from pipelines.checks.quality import BadDataError
from pipelines.hdf5.layout import (
    BLOCK,
    MAX_DEPTH,
    MAX_NAME,
    MAX_OBJECTS,
    MAX_TEXT,
    MAX_VALUES,
    NUMERIC,
    to_lines,
)

if TYPE_CHECKING:
    import h5py

_DEFLATED = 1100
"""Most bytes that one compressed byte can become."""
_MAX_CHUNK = 256 << 20
_MAX_ATTRIBUTE = 1 << 20
"""Bytes of an attribute that is read at all."""
_WHOLE = 1 << 20
"""Bytes up to which a digest is that of the whole array."""
_SAMPLES = 16
_LINES = 500
"""Objects that are told of at once."""
_FAULTS = (RuntimeError, ValueError, TypeError, LookupError, OSError, AttributeError, ArithmeticError)
"""What h5py raises when the structure of a file makes no sense."""


@contextmanager
def opened(file: BinaryIO, size: int) -> Iterator["h5py.File"]:
    """The file, for reading.

    Raises:
        BadDataError: "not_hdf5", "truncated", "unfinished" or "corrupt".
    """
    import h5py

    try:
        opened_file = h5py.File(file, "r")
    except _FAULTS as error:
        raise _open_error(error, file, size) from error
    try:
        yield opened_file
    except _FAULTS as error:
        raise BadDataError("corrupt", f"HDF5 can't read it: {_first_line(error)}") from error
    finally:
        opened_file.close()


def _open_error(error: Exception, file: BinaryIO, size: int) -> BadDataError:
    text = _first_line(error)
    if size == 0:
        return BadDataError("empty", "the file has no bytes")
    if "truncated" in text:
        return BadDataError("truncated", f"the file has {size} bytes, fewer than its header says")
    if "signature not found" in text:
        return BadDataError("not_hdf5", f"the file of {size} bytes does not begin as HDF5 does")
    if "flag" in text or "already open" in text:
        return BadDataError("unfinished", "its writer did not close the file")
    return BadDataError("corrupt", f"HDF5 can't open it: {text}")


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:300]


def describe(file: BinaryIO, size: int, under: str, depth: int, digests: bool) -> Iterator[bytes]:
    """The layout of a group as blocks of JSON lines.

    Raises:
        BadDataError: as `opened`, and "too_large" when there are too many objects, or "missing_field".
    """
    with opened(file, size) as root:
        lines: list[bytes] = []
        for count, line in enumerate(to_lines(_walk(_group(root, under), "", depth, size, digests))):
            if count >= MAX_OBJECTS:
                raise BadDataError("too_large", f"more than {MAX_OBJECTS} groups and datasets")
            lines.append(line)
            if len(lines) == _LINES:
                yield b"".join(lines)
                lines = []
        yield b"".join(lines)


def _group(root: "h5py.File", path: str) -> "h5py.Group":
    """A group by its path, each step of which is no link to elsewhere."""
    import h5py

    group: h5py.Group = root["/"]
    for name in path.split("/") if path else ():
        if _link(group, name):
            raise BadDataError("link", f"{path} lies behind a link, which is not followed")
        if name not in group or group.get(name, getclass=True) is not h5py.Group:
            raise BadDataError("missing_field", f"there is no group {path}")
        group = group[name]
    return group


def _link(group: "h5py.Group", name: str) -> str:
    """What kind of link a name is, where it is no object of the group itself."""
    import h5py

    kind = group.get(name, getlink=True)
    return {h5py.SoftLink: "a soft link", h5py.HardLink: ""}.get(type(kind), "a link to another file")


def _walk(group: "h5py.Group", path: str, depth: int, size: int, digests: bool) -> Iterator[tuple[str, str, Any]]:
    import h5py

    attributes, digest = _attributes(group)
    yield "group", path, {"attributes": attributes, "digest": digest}
    level = path.count("/") + 1 if path else 0
    if level == depth:
        if depth == MAX_DEPTH and len(group):  # it may contain itself
            raise BadDataError("too_large", f"more than {MAX_DEPTH} groups inside each other")
        return
    for name in group:
        place = f"{path}/{name}" if path else name
        if len(place.encode(errors="surrogateescape")) > MAX_NAME or not place.isprintable():
            raise BadDataError("bad_name", "the path of an object is too long or can't be printed")
        if link := _link(group, name):
            yield "link", place, link
            continue
        kind = group.get(name, getclass=True)
        if kind is h5py.Group:
            yield from _walk(group[name], place, depth, size, digests)
        elif kind is h5py.Dataset:
            yield "array", place, _array(group[name], size, digests)


def _array(dataset: "h5py.Dataset", size: int, digests: bool) -> dict[str, Any]:
    dtype = _type_name(dataset)
    shape = [int(length) for length in dataset.shape or ()]
    refused = _refusal(dataset, dtype, size)
    digest = _digest(dataset) if digests and not refused and dtype in NUMERIC else ""
    return {"shape": shape, "dtype": dtype, "digest": digest, "refused": refused}


def _type_name(dataset: "h5py.Dataset") -> str:
    import h5py

    try:
        dtype = dataset.dtype
    except (TypeError, ValueError):
        return "other"
    if h5py.check_string_dtype(dtype) is not None:
        return "text"
    return dtype.newbyteorder("=").name if dtype.kind in "biuf" else "other"


def _refusal(dataset: "h5py.Dataset", dtype: str, size: int) -> str:
    """Why a dataset is not to be read, as reason and detail; empty when it may be."""
    if dataset.is_virtual:
        return "link: it is a virtual dataset, whose numbers lie in other files"
    if dataset.external:
        return "link: its numbers lie in another file"
    if dtype not in NUMERIC:
        return "unsupported: it holds neither numbers nor truth values"
    if dataset.shape is None or not dataset.shape:
        return "unsupported: it is a single value"
    if unknown := _unknown_filters(dataset):
        return f"unknown_filter: it is packed by {unknown}, which HDF5 itself can't undo: rewrite it with gzip"
    return _storage_refusal(dataset, size)


def _storage_refusal(dataset: "h5py.Dataset", size: int) -> str:
    """Why a dataset's numbers can't all be there, in a file of `size` bytes; empty when they can."""
    total = math.prod(dataset.shape) * dataset.dtype.itemsize
    stored = int(dataset.id.get_storage_size())
    if total > size * (_DEFLATED if dataset.chunks else 1):
        return f"too_large: {total} bytes in a file of {size}"
    if total and not stored:
        return "incomplete: nothing of it was ever written"
    if dataset.chunks:
        if math.prod(dataset.chunks) * dataset.dtype.itemsize > _MAX_CHUNK:
            return f"too_large: chunks of {dataset.chunks}"
        wanted = math.prod(-(-a // b) for a, b in zip(dataset.shape, dataset.chunks, strict=True))
        if (found := dataset.id.get_num_chunks()) < wanted:
            return f"incomplete: {found} of {wanted} chunks were written"
    return ""


def _unknown_filters(dataset: "h5py.Dataset") -> str:
    """Filters that are no part of HDF5, by name or number."""
    from h5py import h5z

    properties = dataset.id.get_create_plist()
    filters = [properties.get_filter(index) for index in range(properties.get_nfilters())]
    names = [name.decode(errors="replace") or str(code) for code, _, _, name in filters if not h5z.filter_avail(code)]
    return ", ".join(names)


def _digest(dataset: "h5py.Dataset") -> str:
    """Hash of an array, or of rows spread from its first to its last where it is large."""
    rows = dataset.shape[0]
    row = max(1, math.prod(dataset.shape[1:]) * dataset.dtype.itemsize)
    digest = hashlib.sha256()
    if rows * row <= _WHOLE:
        digest.update(_block(dataset, 0, rows).tobytes())
    else:
        count = max(1, min(_SAMPLES, rows, BLOCK // row))
        for index in np.linspace(0, rows - 1, count).round().astype(int).tolist():
            digest.update(_block(dataset, index, index + 1).tobytes())
    return digest.hexdigest()[:32]


def _block(dataset: "h5py.Dataset", start: int, stop: int) -> NDArray[Any]:
    values = dataset[start:stop]
    return np.ascontiguousarray(values, values.dtype.newbyteorder("<"))


def _attributes(group: "h5py.Group") -> tuple[dict[str, Any], str]:
    """Short attributes, and a hash of all."""
    told: dict[str, Any] = {}
    digest = hashlib.sha256()
    for name in sorted(group.attrs):
        value = _attribute(group, name)
        if isinstance(value, np.ndarray):
            digest.update(f"{name}\0{value.shape}\0".encode(errors="replace") + value.tobytes())
        elif value is not None:
            digest.update(f"{name}\0{value!r}\0".encode(errors="replace"))
            if not isinstance(value, str) or len(value) <= MAX_TEXT:
                told[name] = value
        if len(told) > MAX_VALUES:
            raise BadDataError("too_large", f"a group has more than {MAX_VALUES} attributes")
    return told, digest.hexdigest()[:32]


def _attribute(group: "h5py.Group", name: str) -> Any:
    """A text, a single number or an array of numbers; None for what is not read."""
    import h5py

    handle = group.attrs.get_id(name)
    if handle.get_storage_size() > _MAX_ATTRIBUTE:
        return None
    if handle.dtype.kind not in "biufSO" or (handle.dtype.kind == "O" and not h5py.check_string_dtype(handle.dtype)):
        return None
    value = group.attrs[name]
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, np.generic):
        return value.item()
    return value if isinstance(value, np.ndarray) and value.dtype.kind in "biuf" else None


def rows(file: BinaryIO, size: int, paths: Sequence[str]) -> Iterator[tuple[str, NDArray[Any]]]:
    """The rows of some datasets, in blocks of bounded size, little-endian, with their paths.

    Raises:
        BadDataError: as `opened`, and why a dataset is not to be read.
    """
    import h5py

    with opened(file, size) as root:
        for path in paths:
            folder, _, name = path.rpartition("/")
            group = _group(root, folder)
            if _link(group, name) or group.get(name, getclass=True) is not h5py.Dataset:
                raise BadDataError("missing_field", f"there is no {path}")
            dataset = group[name]
            if refused := _refusal(dataset, _type_name(dataset), size):
                reason, _, detail = refused.partition(": ")
                raise BadDataError(reason, f"{path}: {detail}")
            count = max(1, BLOCK // max(1, math.prod(dataset.shape[1:]) * dataset.dtype.itemsize))
            if dataset.chunks and count > dataset.chunks[0]:
                count -= count % dataset.chunks[0]
            for start in range(0, dataset.shape[0], count):
                yield path, _block(dataset, start, min(start + count, dataset.shape[0]))
