"""One way to name and touch a place, local or remote, for every library that reads or writes it.

A `Location` is made from a local path or an fsspec URI and tells fsspec, Delta Lake and TensorStore
where to go. Whole-file writes are atomic: a reader sees the old bytes, the new bytes or no file.
"""

import os
import posixpath
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storage_schemas.errors import UserError

_S3 = ("s3", "s3a")
_GCS = ("gs", "gcs")


@dataclass(frozen=True)
class Location:
    """A file or folder. Local paths are absolute and carry no protocol; picklable, holds nothing open."""

    uri: str
    protocol: str
    path: str
    """The path as the protocol's own file system takes it."""

    @property
    def is_local(self) -> bool:
        """Whether it lies on a mounted file system."""
        return self.protocol == "file"

    @property
    def name(self) -> str:
        """The last segment of the path."""
        return posixpath.basename(self.path.rstrip("/"))

    @property
    def parent(self) -> "Location":
        """The folder that it lies in."""
        head = posixpath.dirname(self.path.rstrip("/"))
        return Location(head if self.is_local else f"{self.protocol}://{head}", self.protocol, head)

    def __truediv__(self, name: str) -> "Location":
        """The entry `name` (slashes allowed) below this folder."""
        return Location(f"{self.uri.rstrip('/')}/{name}", self.protocol, f"{self.path.rstrip('/')}/{name}")

    def fs(self) -> Any:
        """The fsspec file system; fsspec keeps one per process, so it is never pickled or forked."""
        import fsspec

        return fsspec.filesystem(self.protocol)

    def exists(self) -> bool:
        """Whether there is a file or folder here."""
        return Path(self.path).exists() if self.is_local else bool(self.fs().exists(self.path))

    def is_dir(self) -> bool:
        """Whether there is a folder here."""
        return Path(self.path).is_dir() if self.is_local else bool(self.fs().isdir(self.path))

    def size(self) -> int:
        """Bytes of the file. Raises FileNotFoundError."""
        return Path(self.path).stat().st_size if self.is_local else int(self.fs().size(self.path))

    def names(self) -> list[str]:
        """Sorted names in the folder; empty when there is none. Unfinished writes are left out."""
        if self.is_local:
            found = [entry.name for entry in os.scandir(self.path)] if Path(self.path).is_dir() else []
        elif self.is_dir():
            found = [posixpath.basename(entry.rstrip("/")) for entry in self.fs().ls(self.path, detail=False)]
        else:
            found = []
        return sorted(name for name in found if not name.startswith(".tmp-"))

    def read_bytes(self, start: int | None = None, end: int | None = None) -> bytes:
        """The file, or its bytes `start` to `end`; a negative start counts from the end."""
        if not self.is_local:
            return bytes(self.fs().cat_file(self.path, start=start, end=end))
        with Path(self.path).open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            first, last, _ = slice(start, end).indices(size)
            file.seek(first)
            return file.read(max(0, last - first))

    def write_bytes(self, data: bytes, *, exclusive: bool = False) -> None:
        """Write the whole file at once; complete and on disk when it returns.

        Raises:
            FileExistsError: when `exclusive` and there is a file; exactly one of several writers wins.
        """
        if self.is_local:
            _write_local(Path(self.path), data, exclusive)
        else:
            self.fs().pipe_file(self.path, data, mode="create" if exclusive else "overwrite")

    def remove(self) -> None:
        """Remove the file or the folder with all that is in it."""
        from fsspec.implementations.local import LocalFileSystem

        (LocalFileSystem() if self.is_local else self.fs()).rm(self.path, recursive=True)

    def delta_uri(self) -> str:
        """The place as deltalake takes it."""
        return self.uri

    def delta_options(self) -> dict[str, str]:
        """Storage options of deltalake; keys, region and endpoint come from the usual AWS_* variables."""
        if self.protocol not in _S3:
            return {}
        options = {"conditional_put": "etag"}
        if os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://"):
            options["allow_http"] = "true"
        return options

    def kvstore(self) -> dict[str, Any] | None:
        """TensorStore's key-value store of this folder, or None when TensorStore has no such driver."""
        if self.is_local:
            return {"driver": "file", "path": self.path.rstrip("/") + "/"}
        bucket, _, key = self.path.partition("/")
        if self.protocol in _GCS:
            return {"driver": "gcs", "bucket": bucket, "path": key.rstrip("/") + "/"}
        if self.protocol not in _S3:
            return None
        spec: dict[str, Any] = {"driver": "s3", "bucket": bucket, "path": key.rstrip("/") + "/"}
        if endpoint := os.environ.get("AWS_ENDPOINT_URL"):
            spec |= {"endpoint": endpoint, "aws_region": os.environ.get("AWS_REGION", "us-east-1")}
        return spec


def locate(uri: str | os.PathLike[str]) -> Location:
    """The location of a local path, a file:// URI or any fsspec URI.

    Raises:
        UserError: when the URI is empty or its protocol is unknown or not installed.
    """
    text = os.fspath(uri)
    if not text:
        raise UserError("the location is empty: give a path or a URI")
    protocol, found, rest = text.partition("://")
    if not found or protocol in ("file", "local"):
        path = str(Path(rest if found else text).expanduser().absolute())
        normal = os.path.normpath(path)
        return Location(normal, "file", normal)
    from fsspec.core import url_to_fs

    try:
        _, path = url_to_fs(text)
    except (ValueError, ImportError) as error:
        raise UserError(f"can't open {text}: {error}") from error
    return Location(f"{protocol}://{path.lstrip('/')}", protocol, path)


def _write_local(path: Path, data: bytes, exclusive: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{uuid.uuid4().hex}")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if exclusive:
            path.hardlink_to(temporary)  # unlike a rename, a link fails when the name is taken
        else:
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Bring a folder's new names, or a file's bytes, to disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
