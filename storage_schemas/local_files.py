"""Files on a mounted file system: written whole and brought to disk, whatever the file system lacks."""

import ctypes
import errno
import os
import uuid
from pathlib import Path

from storage_schemas.errors import StorageError

_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)
_NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)
_AT_FDCWD, _RENAME_NOREPLACE = -100, 1


def write_file(path: Path, data: bytes, exclusive: bool) -> None:
    """Write a whole file: nobody sees half of it, and it is on disk when this returns. Raises OSError, StorageError."""
    make_folder(path.parent)
    temporary = path.with_name(f".tmp-{uuid.uuid4().hex}")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if exclusive:
            _move_to_new(temporary, path)
        elif path.is_dir():
            raise StorageError(f"{path}: a folder is where a file belongs")
        else:
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def make_folder(folder: Path) -> None:
    """Make a folder and those that it lies in. Raises StorageError when one of them is a file."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise StorageError(f"{folder}: a file is where a folder belongs") from error


def _move_to_new(temporary: Path, path: Path) -> None:
    """Give a finished file its name. Raises FileExistsError when the name is taken."""
    try:
        path.hardlink_to(temporary)  # unlike a rename, a link fails when the name is taken
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        _rename_to_new(temporary, path)


def _rename_to_new(temporary: Path, path: Path) -> None:
    """Linux's rename that fails when the name is taken, for file systems without hard links: exFAT, SMB."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        raise StorageError(f"{path.parent}: the file system has no hard links")
    if rename(_AT_FDCWD, os.fsencode(temporary), _AT_FDCWD, os.fsencode(path), _RENAME_NOREPLACE):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(path))


def sync_folder(folder: Path) -> None:
    """Bring a folder's new names, or a file's bytes, to disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC or not folder.is_dir():  # a share that syncs files may refuse folders
            raise
    finally:
        os.close(descriptor)
