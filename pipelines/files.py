"""Find and open raw files: local ones under any name, and those of any fsspec file system.

Every folder is listed once and nothing but regular files is opened, so loops, pipes and devices can't hang it.
"""

import glob
import os
import stat
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast
from urllib.parse import unquote_to_bytes

from pipelines.checks.quality import LeftOut, Rejection
from storage_schemas.errors import UserError
from storage_schemas.location import Location, locate, storage_errors


@dataclass(frozen=True)
class SourceFile:
    """A raw file that was found. `path` is what its file system takes, byte for byte; `uri` is printable UTF-8."""

    path: str
    protocol: str
    size: int

    @property
    def uri(self) -> str:
        """The file's URI; `raw_path` gives the path back."""
        return printable(self.path if self.protocol == "file" else f"{self.protocol}://{self.path.lstrip('/')}")

    @property
    def name(self) -> str:
        """The last segment of the path."""
        return self.path.rpartition("/")[2]

    @property
    def folder(self) -> str:
        """The path of the folder that it lies in."""
        return self.path.rpartition("/")[0]

    def open(self) -> BinaryIO:
        """The file, seekable, for reading.

        Raises:
            OSError: when it can't be opened.
        """
        if self.protocol == "file":
            return Path(self.path).open("rb")
        return cast(BinaryIO, Location(self.uri, self.protocol, self.path).fs().open(self.path, "rb"))

    def read(self, start: int = 0, length: int | None = None) -> bytes:
        """`length` bytes from `start`, in one request; fewer at the end of the file."""
        end = self.size if length is None else min(start + length, self.size)
        if self.protocol == "file":
            with self.open() as file:  # what goes wrong here is this file's own, not a storage that fails
                file.seek(start)
                return file.read(end - start)
        return Location(self.uri, self.protocol, self.path).read_bytes(start, end)


def printable(path: str) -> str:
    """`path` with what can't be printed, `%` and `#` escaped, so that it can stand in a table and take a fragment."""
    return "".join(
        char if char.isprintable() and char not in "%#" else "".join(f"%{byte:02X}" for byte in os.fsencode(char))
        for char in path
    )


def raw_path(uri: str) -> str:
    """The path behind a printable URI, without its fragment."""
    return os.fsdecode(unquote_to_bytes(uri.partition("#")[0]))


def find(
    source: str, accepts: Callable[[str], bool], beside: Collection[str] = ()
) -> list[SourceFile | Rejection | LeftOut]:
    """The files of a file, a folder or a glob, sorted by path, and in the end what else is in the folder.

    Args:
        source: a local path or fsspec URI of a file, a folder (searched at any depth) or a glob.
        accepts: which file names of a folder are of interest.
        beside: file names that say something about those of interest.

    Raises:
        UserError: when there is nothing at `source`.
    """
    location = locate(source)
    others: Counter[str] = Counter()

    def is_wanted(name: str) -> bool:
        if not accepts(name):
            others[_kind(name)] += name not in beside
        return accepts(name)

    files = sorted(_local(location.path, is_wanted) if location.is_local else _remote(location, is_wanted), key=_path)
    if not files and not location.exists() and not glob.has_magic(location.path):
        raise UserError(f"there is nothing at {printable(source)}")
    counted = [f"{count} {'file' if count == 1 else 'files'} {kind}" for kind, count in others.most_common() if count]
    return [*files, *(LeftOut(source_uri=printable(location.uri), what=what) for what in counted)]


def file_at(place: Location) -> SourceFile | Rejection | None:
    """The file at a place, why it can't be one, or None when there is nothing."""
    if place.is_local:
        return _regular(place.path) if os.path.lexists(place.path) else None
    with storage_errors(place):
        try:
            info = place.fs().info(place.path)
        except FileNotFoundError:
            return None
    if info["type"] != "file":
        return _unusable(place.uri, "not_a_file", "neither a file nor a link to one")
    return SourceFile(str(place.path), place.protocol, int(info["size"]))


def _kind(name: str) -> str:
    suffix = name[1:].rpartition(".")[2] if "." in name[1:] else ""
    return f"*.{printable(suffix)}" if 0 < len(suffix) <= 10 else "without a suffix"


def walk(path: str) -> Iterator[str | OSError]:
    """The paths of all that is in a folder and is no folder; folders behind links too, each folder once.

    What lies in the folder itself comes before what is behind links, so that it has its plain name where it has both.
    """
    errors: list[OSError] = []
    visited: set[tuple[int, int]] = set()
    roots = deque([path])
    while roots:
        for folder, folders, names in os.walk(roots.popleft(), onerror=errors.append):
            info = os.stat(folder)  # noqa: PTH116 - names need not be UTF-8
            if (info.st_dev, info.st_ino) in visited:
                folders.clear()
                continue
            visited.add((info.st_dev, info.st_ino))
            roots += [link for name in folders if os.path.islink(link := f"{folder.rstrip('/')}/{name}")]  # noqa: PTH114
            yield from (f"{folder.rstrip('/')}/{name}" for name in names)
    yield from errors


def _path(item: SourceFile | Rejection) -> str:
    return item.path if isinstance(item, SourceFile) else raw_path(item.source_uri)


def _local(path: str, is_wanted: Callable[[str], bool]) -> Iterator[SourceFile | Rejection]:
    if os.path.isdir(path):  # noqa: PTH112
        for item in walk(path):
            if isinstance(item, OSError):
                yield _unusable(str(item.filename), "unreadable", f"can't list the folder: {item.strerror}")
            elif is_wanted(item.rpartition("/")[2]):
                yield _regular(item)
    elif os.path.lexists(path):
        yield _regular(path)
    elif glob.has_magic(path):
        for name in glob.iglob(path, recursive=True, include_hidden=True):  # noqa: PTH207
            if not os.path.isdir(name):  # noqa: PTH112
                yield _regular(name)


def _regular(path: str) -> SourceFile | Rejection:
    try:
        info = os.stat(path)  # noqa: PTH116 - names need not be UTF-8
    except OSError as error:
        return _unusable(path, "unreadable", f"can't follow the name: {error.strerror}")
    if not stat.S_ISREG(info.st_mode):
        return _unusable(path, "not_a_file", f"neither a file nor a folder ({stat.filemode(info.st_mode)})")
    return SourceFile(path, "file", info.st_size)


def _unusable(path: str, reason: str, detail: str) -> Rejection:
    return Rejection(source_uri=printable(path), fingerprint="", reason=reason, detail=detail)


def _remote(location: Location, is_wanted: Callable[[str], bool]) -> Iterator[SourceFile | Rejection]:
    fs = location.fs()
    if fs.isfile(location.path):
        entries = {location.path: fs.info(location.path)}
    elif glob.has_magic(location.path):
        entries = fs.glob(location.path, detail=True)
    else:
        entries = {
            path: info
            for path, info in fs.find(location.path, detail=True).items()
            if is_wanted(path.rpartition("/")[2])
        }
    for path, info in entries.items():
        if info["type"] == "file":
            yield SourceFile(str(path), location.protocol, int(info["size"]))
