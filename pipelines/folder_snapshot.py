"""Take snapshots of a folder that others write to: what is in it, whether it changed, whether the writing has ended."""

import glob
import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from pipelines.files import printable, walk
from pipelines.sources.registry import is_of
from storage_schemas.errors import UserError
from storage_schemas.location import Location, locate

_POLL_SECONDS = 5.0


@dataclass(frozen=True)
class FolderSnapshot:
    """All files of a folder at one time."""

    files: Mapping[str, tuple[int, int]]
    """Bytes, and time of the last change in nanoseconds since 1970, by path."""

    @property
    def digest(self) -> str:
        """Changes when a file comes, goes or changes."""
        lines = sorted(f"{name!r} {size} {changed}" for name, (size, changed) in self.files.items())
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    @property
    def changed(self) -> float:
        """When the newest change was, in seconds since 1970."""
        return max((changed for _, changed in self.files.values()), default=0) / 1e9

    def holds(self, format: str | None) -> bool:  # noqa: A002 - the option's name
        """Whether a name looks like a file of the format, or of any known one."""
        return any(is_of(format, name.rpartition("/")[2]) for name in self.files)


def take_snapshot(source: str) -> FolderSnapshot:
    """List a folder, or the folder that a glob starts from, at any depth.

    Locally the time of a file's last change is that of its content or of its name, whichever is later: a file that was
    moved here keeps its age but not the time of its move.

    Raises:
        UserError: when there is no folder.
    """
    folder = locate(source)
    while glob.has_magic(folder.path):
        folder = folder.parent
    if not folder.is_dir():
        raise UserError(f"there is no folder {printable(folder.uri)} to watch")
    return FolderSnapshot(dict(_local(folder.path)) if folder.is_local else dict(_remote(folder)))


def _local(root: str) -> Iterator[tuple[str, tuple[int, int]]]:
    for path in walk(root):
        if isinstance(path, str):
            try:
                info = os.lstat(path)
            except FileNotFoundError:  # it was renamed or removed meanwhile
                continue
            yield path, (info.st_size, max(info.st_mtime_ns, info.st_ctime_ns))


def _remote(folder: Location) -> Iterator[tuple[str, tuple[int, int]]]:
    for info in folder.files():
        yield info.name, (info.bytes, int(info.modified.timestamp() * 1e9))


def wait_until_quiet(
    source: str,
    *,
    quiet: float,
    patience: float,
    clock: Callable[[], float] = time.time,
    sleep: Callable[[float], None] = time.sleep,
) -> FolderSnapshot | None:
    """Wait until nothing in a folder has changed for a while, so that files that come together are taken together.

    A folder that has been left alone for that long is not waited for. The clocks of this machine and of the storage
    may differ by less than `quiet`.

    Args:
        source: folder, glob or URI prefix.
        quiet: seconds without any change.
        patience: most seconds to wait.
        clock: seconds since 1970.
        sleep: waits for seconds.

    Returns:
        What is in the folder; None when it would not come to rest.

    Raises:
        UserError: when there is no folder.
    """
    deadline = clock() + patience
    snapshot = take_snapshot(source)
    since = min(snapshot.changed, clock())
    while (rest := since + quiet - clock()) > 0:
        if clock() + rest > deadline:
            return None
        sleep(min(rest, _POLL_SECONDS))
        newer = take_snapshot(source)
        if newer != snapshot:
            snapshot, since = newer, clock()
    return snapshot
