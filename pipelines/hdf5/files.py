"""HDF5 files as readers see them: layout first, then the arrays that are wanted, block by block.

All of it happens in the child process of `pipelines.video.isolation`, for HDF5's library is C code with a history of
crashes on files that somebody damaged, or made. Letters: T rows of an array.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.checks.quality import BadDataError
from pipelines.files import SourceFile
from pipelines.hdf5.layout import BLOCK, MAX_DEPTH, MAX_NUMBERS, Array, Layout, parse_lines
from pipelines.video.isolation import borrowed

SUFFIXES = frozenset(("hdf5", "h5", "hdf"))
_MAX_LAYOUT = 128 << 20


def has_suffix(name: str) -> bool:
    """Whether a file name is that of an HDF5 file."""
    return name.rpartition(".")[2].lower() in SUFFIXES and "." in name[1:]


def describe(file: SourceFile, under: str = "", *, digests: bool = False, depth: int = MAX_DEPTH) -> Layout:
    """What lies in a group of a file.

    Args:
        file: the file.
        under: path of the group; the whole file when empty.
        depth: how many groups inside each other are looked into; 0 for the attributes of the group alone.
        digests: hash what the arrays hold, too; they are read for it, or rows of those above 1 MiB.

    Raises:
        BadDataError: "not_hdf5", "truncated", "unfinished", "corrupt", "too_large", "link", "missing_field",
            "decoder_crashed", ...
        OSError: when the file can't be read.
    """
    parts: list[bytes] = []
    with borrowed() as child:
        for facts, payload in child.ask(file, job="layout", under=under, digests=digests, depth=depth):
            if facts["kind"] == "layout":
                parts.append(payload)
                if sum(map(len, parts)) > _MAX_LAYOUT:
                    raise BadDataError("too_large", "the names of what it holds take more than 128 MiB")
    try:
        return parse_lines(b"".join(parts))
    except (ValueError, TypeError, LookupError) as error:
        raise BadDataError("corrupt", f"its layout makes no sense: {error}") from error


def read_blocks(file: SourceFile, arrays: Mapping[str, Array]) -> Iterator[tuple[str, NDArray[Any]]]:
    """The rows of some arrays one after another, in blocks of at most 32 MiB (or of one row), with their paths.

    Args:
        file: the file.
        arrays: what `describe` said of each, by its path from the root.

    Raises:
        BadDataError: when one can't be read, or is not what it was; OSError as `describe`.
    """
    for path, array in arrays.items():
        if array.refused:
            reason, _, detail = array.refused.partition(": ")
            raise BadDataError(reason, f"{path}: {detail}")
        if array.row_bytes > 4 * BLOCK:
            raise BadDataError("too_large", f"{path}: {array.dtype} of shape {array.shape}")
    rows = Counter[str]()
    with borrowed() as child:
        for facts, payload in child.ask(file, job="rows", paths=list(arrays)):
            if facts["kind"] != "rows":
                continue
            path = facts["path"]
            array = arrays[path]
            count = len(payload) // max(1, array.row_bytes)
            rows[path] += count
            if count * array.row_bytes != len(payload) or rows[path] > array.shape[0]:
                raise BadDataError("corrupt", f"{path}: it does not have the shape {array.shape} any more")
            yield path, np.frombuffer(payload, array.stored).reshape(count, *array.shape[1:])
    for path, array in arrays.items():
        if rows[path] != array.shape[0] and array.row_bytes:
            raise BadDataError("corrupt", f"{path}: {rows[path]} of {array.shape[0]} rows")


def read_arrays(file: SourceFile, arrays: Mapping[str, Array]) -> dict[str, NDArray[Any]]:
    """Whole arrays of numbers, as they are recorded. Raises as `read_blocks`; "too_large" above 1 GiB in all."""
    total = sum(array.nbytes for array in arrays.values() if not array.refused)
    if total > MAX_NUMBERS:
        raise BadDataError("too_large", f"{total} bytes of numbers for one episode")
    found: dict[str, list[NDArray[Any]]] = {path: [] for path in arrays}
    for path, block in read_blocks(file, arrays):
        found[path].append(block)
    return {
        path: np.concatenate(found[path]) if found[path] else np.empty(array.shape, array.stored)
        for path, array in arrays.items()
    }
