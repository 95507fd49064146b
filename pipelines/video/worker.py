"""The child process of `pipelines.video.isolation`: decodes, or reads, what it is asked to."""

import io
import json
import os
import signal
import sys
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from pipelines.checks.quality import BadDataError
from pipelines.video.isolation import Kind

_MAX_BYTES = 4 << 30
"""Memory that one file may take."""
_CHUNK = 1 << 20
"""Bytes asked of the parent at once: demuxers read in small steps, and each question costs two messages."""


class Parent:
    """The process that asks. Whoever waits for it is not at work: no alarm runs then."""

    def __init__(self, connection: Connection, stall: int) -> None:
        self._connection, self._stall = connection, stall

    def hear(self) -> bytes:
        """What it says next. Raises EOFError or ConnectionError when it is gone."""
        signal.alarm(0)
        data = self._connection.recv_bytes()
        signal.alarm(self._stall)
        return data

    def tell(self, kind: Kind, payload: bytes | memoryview = b"", **facts: object) -> None:
        """Send it a message."""
        signal.alarm(0)
        self._connection.send_bytes(json.dumps({"kind": kind, **facts}).encode())
        self._connection.send_bytes(payload)
        signal.alarm(self._stall)


class RemoteFile(io.RawIOBase):
    """A file of `size` bytes that the parent reads."""

    def __init__(self, parent: Parent, size: int) -> None:
        self._parent, self._size, self._position = parent, size, 0

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Where reading goes on."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        """As many bytes as there are."""
        size = min(len(buffer), max(0, self._size - self._position))
        if not size:
            return 0
        self._parent.tell("read", offset=self._position, length=size)
        data = self._parent.hear()
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


def serve(parent: Parent) -> None:
    """Do what the parent asks until it is gone, which raises EOFError or ConnectionError."""
    while True:
        job = json.loads(parent.hear())
        try:
            with _open(parent, job) as file:
                _JOBS[job["job"]](parent, file, job)
        except BadDataError as error:
            parent.tell("bad", reason=error.reason, detail=error.detail)
        except ConnectionError:
            raise
        except OSError as error:
            parent.tell("error", number=error.errno or 0, detail=error.strerror or str(error))
        else:
            parent.tell("done")


def _open(parent: Parent, job: dict[str, Any]) -> BinaryIO:
    if job["path"] is not None:
        return Path(job["path"]).open("rb")
    return io.BufferedReader(RemoteFile(parent, job["size"]), _CHUNK)


def _times(parent: Parent, file: BinaryIO, _job: dict[str, Any]) -> None:
    from pipelines.video.decode import frame_times

    parent.tell("times", frame_times(file).tobytes())


def _frames(parent: Parent, file: BinaryIO, job: dict[str, Any]) -> None:
    from pipelines.video.decode import every_frame, probe, steady_frames
    from pipelines.video.spans import Span

    span, fps = None if job["span"] is None else Span(*job["span"]), job["fps"]
    info = probe(file) if span is None else probe(file, whole=False)
    size = info.size(job["short_side"])
    rate = info.rate or 0.0 if fps is None else info.steps_per_second(fps, job["min_steps"])
    parent.tell("info", rate=rate, size=size, left_out=info.left_out)
    steady = fps is not None
    for frame in (
        steady_frames(file, info, rate=rate, size=size, backend=job["backend"], span=span)
        if steady
        else every_frame(file, info, size)
    ):
        parent.tell("frame", frame.data.cast("B"))


def _frames_at(parent: Parent, file: BinaryIO, job: dict[str, Any]) -> None:
    from pipelines.video.decode import probe
    from pipelines.video.seek import frames_at

    info = probe(file)
    size = info.size(job["short_side"])
    parent.tell("info", size=size)
    for frame in frames_at(file, info, np.array(job["times"], np.float64), size):
        parent.tell("frame", frame.data.cast("B"))


def _layout(parent: Parent, file: BinaryIO, job: dict[str, Any]) -> None:
    from pipelines.hdf5.child import describe

    for lines in describe(file, job["size"], job["under"], job["depth"], job["digests"]):
        parent.tell("layout", lines)


def _rows(parent: Parent, file: BinaryIO, job: dict[str, Any]) -> None:
    from pipelines.hdf5.child import rows

    for path, block in rows(file, job["size"], job["paths"]):
        parent.tell("rows", block.data.cast("B") if block.size else b"", path=path)


_JOBS = {"times": _times, "frames": _frames, "frames_at": _frames_at, "layout": _layout, "rows": _rows}


def main() -> None:
    """Serve the parent, which holds the other end of the connection whose number is the first argument."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the parent too, which then ends this process
    if sys.platform == "linux":
        import resource

        # what is written to, not the address space: decoders reserve more than they ever touch
        resource.setrlimit(resource.RLIMIT_DATA, (_MAX_BYTES, _MAX_BYTES))
    with suppress(EOFError, ConnectionError):
        serve(Parent(Connection(int(sys.argv[1])), int(sys.argv[2])))


if __name__ == "__main__":
    main()
