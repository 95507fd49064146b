"""One way to name and touch a place, local or remote, for every library that reads or writes it.

A `Location` is made from a local path or an fsspec URI and tells fsspec, Delta Lake and TensorStore
where to go. Whole-file writes are atomic: a reader sees the old bytes, the new bytes or no file.
"""

import os
import posixpath
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from storage_schemas.errors import StorageError, UserError
from storage_schemas.local_files import write_file

_S3 = ("s3", "s3a")
_GCS = ("gs", "gcs")
_ATTEMPTS = 3
_S3FS_TRIES = 2
"""How often s3fs tries what botocore has repeated as often as the policy says; reading a file tries that again, so that
its own 5 make 25 times the policy's requests of a read that can't succeed. The second is for answers that break off."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class RemotePolicy:
    """How patient requests to an object store are; the same for every library that makes them."""

    timeout: float = 30.0
    """Seconds in which a request must be answered, and in which a transfer must get on."""
    retries: int = 6
    """How often a failed request is repeated, waiting longer each time."""

    @classmethod
    def from_environment(cls) -> "RemotePolicy":
        """The policy in `UWM_STORAGE_TIMEOUT` and `UWM_STORAGE_RETRIES`. Raises UserError for other than numbers."""
        timeout, retries = (os.environ.get(f"UWM_STORAGE_{name}") for name in ("TIMEOUT", "RETRIES"))
        try:
            policy = cls(timeout=float(timeout or cls.timeout), retries=int(retries or cls.retries))
        except ValueError as error:
            raise UserError(f"UWM_STORAGE_TIMEOUT and UWM_STORAGE_RETRIES must be numbers: {error}") from error
        if policy.timeout <= 0 or policy.retries < 1:
            raise UserError("UWM_STORAGE_TIMEOUT and UWM_STORAGE_RETRIES must be above zero")
        return policy

    @property
    def deadline(self) -> float:
        """Seconds after which an operation with all its retries is given up."""
        # each try may time out, and the pauses between them double
        return self.timeout * (self.retries + 1) + 2.0**self.retries


def s3_endpoint() -> str | None:
    """The address of an S3 that is not Amazon's, from the usual variables."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


@contextmanager
def storage_errors(location: "Location") -> Iterator[None]:
    """Turn what a storage's libraries raise into one `StorageError`; a missing or taken name stays what it is."""
    try:
        yield
    except Exception as error:
        if not _is_outage(location, error):
            raise
        raise StorageError(f"{location.uri}: the storage failed: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    plain = re.sub(r"\x1b\[\d*m|↳", "", str(error))  # deltalake paints its errors
    reason = " ".join(plain.split())[:300] or type(error).__name__
    links = re.search(r"os error (1|95)\)", reason)  # what a file system without hard links says to a commit
    return reason + (": commits need hard links, which exFAT and some shares lack" if links else "")


def persistent(location: "Location", action: Callable[[], T]) -> T:
    """Do something that may be done twice, again when a storage fails under it.

    Libraries repeat requests themselves, but not all of them an answer that breaks off in the middle. A `StorageError`
    of the action itself goes through: what gave up was patient already, and patience that multiplies takes minutes.

    Raises:
        StorageError: when it keeps failing.
    """
    for tries in range(_ATTEMPTS - 1):
        try:
            return action()
        except Exception as error:
            if not _is_outage(location, error):
                raise
            time.sleep(0.1 * 2**tries)
    with storage_errors(location):
        return action()


def _is_outage(location: "Location", error: Exception) -> bool:
    """Whether a storage failed; a missing or taken name and a lost race of two commits are answers."""
    if isinstance(error, (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError)):
        return False
    # a kind of DeltaError, but what it says is that another commit was faster
    return isinstance(error, _outages(location)) and type(error).__name__ != "CommitFailedError"


def _outages(location: "Location") -> tuple[type[Exception], ...]:
    """What the kernel, s3fs, other file systems of fsspec and deltalake raise when a storage fails."""
    import asyncio

    from deltalake.exceptions import DeltaError

    if location.is_local:
        return OSError, DeltaError
    from aiohttp import ClientError as HttpError
    from botocore.exceptions import BotoCoreError, ClientError
    from pyarrow import ArrowException

    return OSError, asyncio.TimeoutError, HttpError, BotoCoreError, ClientError, DeltaError, ArrowException


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

        if self.protocol not in _S3:
            return fsspec.filesystem(self.protocol)
        fs = fsspec.filesystem(self.protocol, **_s3_options())
        fs.retries = _S3FS_TRIES
        return fs

    def exists(self) -> bool:
        """Whether there is a file or folder here."""
        with storage_errors(self):
            return Path(self.path).exists() if self.is_local else bool(self.fs().exists(self.path))

    def is_dir(self) -> bool:
        """Whether there is a folder here."""
        with storage_errors(self):
            return Path(self.path).is_dir() if self.is_local else bool(self.fs().isdir(self.path))

    def size(self) -> int:
        """Bytes of the file. Raises FileNotFoundError."""
        with storage_errors(self):
            return Path(self.path).stat().st_size if self.is_local else int(self.fs().size(self.path))

    def names(self) -> list[str]:
        """Sorted names in the folder; empty when there is none. Unfinished writes are left out."""
        with storage_errors(self):
            if self.is_local:
                names = [path.name for path in Path(self.path).iterdir()] if Path(self.path).is_dir() else []
            else:
                entries = self.fs().ls(self.path, detail=False) if self.fs().isdir(self.path) else []
                names = [posixpath.basename(entry.rstrip("/")) for entry in entries]
        return sorted(name for name in names if not name.startswith(".tmp-"))

    def files(self) -> list["FileInfo"]:
        """All files at any depth of the folder, also unfinished ones."""
        with storage_errors(self):
            if self.is_local:
                walk = os.walk(self.path, onerror=_unless_gone)
                paths = (Path(folder, name) for folder, _, names in walk for name in names)
                return [info for path in paths if (info := _local_info(path, self.path)) is not None]
            entries = self.fs().find(self.path, detail=True)
        return [
            FileInfo(
                name=path.removeprefix(self.path).lstrip("/"),
                bytes=int(info["size"]),
                modified=info.get("LastModified") or info.get("created") or datetime.now(UTC),
            )
            for path, info in entries.items()
        ]

    def read_bytes(self, start: int | None = None, end: int | None = None) -> bytes:
        """The file, or its bytes `start` to `end`; a negative start counts from the end."""
        with storage_errors(self):
            if not self.is_local:
                return bytes(self.fs().cat_file(self.path, start=start, end=end))
            with Path(self.path).open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                first, last, _ = slice(start, end).indices(size)
                file.seek(first)
                return file.read(max(0, last - first))

    def read_many(self, names: Sequence[str]) -> list[bytes]:
        """The whole files of those names below this folder, together. Raises FileNotFoundError."""
        files = [self / name for name in names]
        if self.is_local or not files:
            return [file.read_bytes() for file in files]
        with storage_errors(self):
            contents = self.fs().cat([file.path for file in files])
        return [bytes(contents[file.path]) for file in files] if isinstance(contents, dict) else [bytes(contents)]

    def write_bytes(self, data: bytes, *, exclusive: bool = False) -> None:
        """Write the whole file at once; complete and on disk when it returns.

        Raises:
            FileExistsError: when `exclusive` and there is a file; exactly one of several writers wins.
        """
        with storage_errors(self):
            if self.is_local:
                write_file(Path(self.path), data, exclusive)
            else:
                self.fs().pipe_file(self.path, data, mode="create" if exclusive else "overwrite")

    def remove(self) -> None:
        """Remove the file or the folder with all that is in it."""
        with storage_errors(self):
            if not self.is_local:
                self.fs().rm(self.path, recursive=True)
            elif Path(self.path).is_dir():
                shutil.rmtree(self.path)
            else:
                Path(self.path).unlink()

    def delta_options(self) -> dict[str, str]:
        """Storage options of deltalake; keys, region and endpoint come from the usual AWS_* variables."""
        if self.protocol not in _S3:
            return {}
        policy = RemotePolicy.from_environment()
        options = {
            "conditional_put": "etag",
            "timeout": f"{policy.timeout * 1000:.0f}ms",
            "connect_timeout": f"{policy.timeout * 1000:.0f}ms",
            "max_retries": str(policy.retries),
            "retry_timeout": f"{policy.deadline:.0f}s",
        }
        if endpoint := s3_endpoint():
            options |= {"aws_endpoint": endpoint, "allow_http": str(endpoint.startswith("http://")).lower()}
        return options

    def kvstore(self) -> dict[str, Any] | None:
        """TensorStore's key-value store of this folder, or None when TensorStore has no such driver."""
        if self.is_local:
            return {"driver": "file", "path": self.path.rstrip("/") + "/"}
        bucket, _, key = self.path.partition("/")
        retries = {"max_retries": RemotePolicy.from_environment().retries, "initial_delay": "100ms", "max_delay": "5s"}
        if self.protocol in _GCS:
            spec = {"driver": "gcs", "bucket": bucket, "path": key.rstrip("/") + "/"}
            return {**spec, "gcs_request_retries": retries}
        if self.protocol not in _S3:
            return None
        spec = {"driver": "s3", "bucket": bucket, "path": key.rstrip("/") + "/"}
        if endpoint := s3_endpoint():
            spec |= {"endpoint": endpoint, "aws_region": os.environ.get("AWS_REGION", "us-east-1")}
        return {**spec, "s3_request_retries": retries}


@dataclass(frozen=True, kw_only=True)
class FileInfo:
    """One file below a folder."""

    name: str
    """Path from the folder on."""
    bytes: int
    modified: datetime


def _unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):  # someone else removes folders here, too
        raise error


def _local_info(path: Path, root: str) -> FileInfo | None:
    try:
        info = path.lstat()
    except FileNotFoundError:  # someone else removes files here, too
        return None
    modified = datetime.fromtimestamp(info.st_mtime, UTC)
    return FileInfo(name=os.path.relpath(path, root), bytes=info.st_size, modified=modified)


def _s3_options() -> dict[str, Any]:
    policy = RemotePolicy.from_environment()
    config = {
        "connect_timeout": policy.timeout,
        "read_timeout": policy.timeout,
        "retries": {"max_attempts": policy.retries + 1, "mode": "standard"},
    }
    # no cache of listings: others write there too
    return {"endpoint_url": s3_endpoint(), "config_kwargs": config, "use_listings_cache": False}


def locate(uri: str | os.PathLike[str]) -> Location:
    """The location of a local path, a file:// URI or any fsspec URI.

    Raises:
        UserError: when the URI is empty or its protocol is unknown or not installed.
    """
    text = os.fspath(uri)
    if not text:
        raise UserError("the location is empty: give a path or a URI")
    protocol, separator, rest = text.partition("://")
    if not separator or protocol in ("file", "local"):
        path = str(Path(rest if separator else text).expanduser().absolute())
        normal = os.path.normpath(path)
        return Location(normal, "file", normal)
    from fsspec.core import url_to_fs

    try:
        _, path = url_to_fs(text)
    except (ValueError, ImportError) as error:
        raise UserError(f"can't open {text}: {error}") from error
    return Location(f"{protocol}://{path.lstrip('/')}", protocol, path)
