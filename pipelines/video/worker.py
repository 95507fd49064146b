"""The child process of `pipelines.video.isolation`: decodes what it is asked to, and says so on its standard output."""

import io
import json
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from pipelines.checks.quality import BadDataError
from pipelines.video.isolation import HEADER, KINDS, SIZE, Kind

_MAX_BYTES = 4 << 30
"""Memory that one file may take."""
_CHUNK = 1 << 20


class Parent:
    """The process that asks, over the two pipes to it. Whoever waits for it is not at work: no alarm runs then."""

    def __init__(self, requests: BinaryIO, answers: BinaryIO, stall: int) -> None:
        self._requests, self._answers, self._stall = requests, answers, stall

    def hear(self) -> bytes:
        """What it says next; empty when it is gone."""
        signal.alarm(0)
        head = self._requests.read(SIZE.size)
        data = self._requests.read(SIZE.unpack(head)[0]) if len(head) == SIZE.size else b""
        signal.alarm(self._stall)
        return data

    def tell(self, kind: Kind, payload: bytes | memoryview = b"", **facts: object) -> None:
        """Send it a message."""
        signal.alarm(0)
        text = json.dumps(facts).encode()
        self._answers.write(HEADER.pack(KINDS[kind], len(text), len(payload)) + text)
        self._answers.write(payload)
        self._answers.flush()
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
        wanted = min(len(buffer), max(0, self._size - self._position))
        if not wanted:
            return 0
        self._parent.tell("read", offset=self._position, length=wanted)
        data = self._parent.hear()
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


def serve(parent: Parent) -> None:
    """Do what the parent asks until it is gone."""
    while request := parent.hear():
        job = json.loads(request)
        try:
            with _open(parent, job) as file:
                _times(parent, file) if job["job"] == "times" else _frames(parent, file, job)
        except BadDataError as error:
            parent.tell("bad", reason=error.reason, detail=error.detail)
        except BrokenPipeError:
            raise
        except OSError as error:
            parent.tell("error", number=error.errno or 0, detail=error.strerror or str(error))
        else:
            parent.tell("done")


def _open(parent: Parent, job: dict[str, Any]) -> BinaryIO:
    if job["path"] is not None:
        return Path(job["path"]).open("rb")
    return io.BufferedReader(RemoteFile(parent, job["size"]), _CHUNK)


def _times(parent: Parent, file: BinaryIO) -> None:
    from pipelines.video.decode import frame_times

    parent.tell("times", frame_times(file).tobytes())


def _frames(parent: Parent, file: BinaryIO, job: dict[str, Any]) -> None:
    from pipelines.video.decode import probe, steady_frames

    info = probe(file)
    rate, size = min(job["fps"], info.rate), info.size(job["short_side"])
    parent.tell("info", rate=rate, size=size)
    for frame in steady_frames(file, info, rate=rate, size=size, backend=job["backend"]):
        parent.tell("frame", frame.data.cast("B"))


def main() -> None:
    """Take over the standard streams; what libraries print goes to stderr."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the parent too, which then ends this process
    if sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (_MAX_BYTES, _MAX_BYTES))
    with suppress(BrokenPipeError):
        serve(Parent(sys.stdin.buffer, answers, int(sys.argv[1])))


if __name__ == "__main__":
    main()
