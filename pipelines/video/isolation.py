"""Decode video in a child process, so that a file that crashes or hangs the decoder costs one file and nothing else.

The child (`pipelines.video.worker`) is reused from file to file. It arms an alarm before every piece of work, which
ends it when the decoder stands still, even if this process is gone by then. It opens local files by itself; the
bytes of remote ones are read here and handed over when it asks for them.
"""

import atexit
import contextlib
import json
import os
import signal
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from pipelines.checks.quality import BadDataError
from pipelines.files import SourceFile

STALL_SECONDS = 60
"""Longest time that the decoder may take for one frame."""
HEADER = struct.Struct("<cIQ")
"""Of every message of the child: its kind, bytes of its JSON, bytes of its payload."""
SIZE = struct.Struct("<Q")
"""Before every answer to the child: its bytes."""

Kind = Literal["info", "frame", "times", "done", "bad", "read", "error"]
KINDS: dict[Kind, bytes] = {
    "info": b"i", "frame": b"f", "times": b"t", "done": b"d", "bad": b"b", "read": b"r", "error": b"e"
}  # fmt: skip
_NAMES = {code: name for name, code in KINDS.items()}


@contextmanager
def decoding(
    file: SourceFile, *, fps: float, short_side: int, backend: str
) -> Iterator[tuple[float, Iterator[NDArray[np.uint8]]]]:
    """Steps per second and upright frames (H, W, 3) of a video, see `pipelines.video.decode`.

    Args:
        file: the video.
        fps: most frames per second; slower videos keep their rate.
        short_side: most pixels of the shorter side.
        backend: the decoder.

    Raises:
        BadDataError: as `probe` and `steady_frames` do; "decoder_crashed", "decoder_hung".
        OSError: when the file can't be read.
    """
    with _borrowed() as child:
        messages = child.ask(file, job="frames", fps=fps, short_side=short_side, backend=backend)
        _, facts, _ = next(messages)
        shape = (*facts["size"], 3)
        yield (
            float(facts["rate"]),
            (np.frombuffer(data, np.uint8).reshape(shape) for kind, _, data in messages if kind == "frame"),
        )


def frame_times(file: SourceFile) -> NDArray[np.float64]:
    """When the frames of a video appear, (T,) in seconds; raises as `decoding` does."""
    with _borrowed() as child:
        return np.concatenate(
            [np.frombuffer(data) for kind, _, data in child.ask(file, job="times") if kind == "times"]
        )


_idle: list["_Child"] = []
_lock = threading.Lock()


@contextmanager
def _borrowed() -> Iterator["_Child"]:
    """A child for one file: one that waits for work, or a new one; it is ended if it did not finish."""
    with _lock:
        mine = [child for child in _idle if child.owner == os.getpid()]
        child = mine[-1] if mine else _Child()
        if mine:
            _idle.remove(child)
    try:
        yield child
    finally:
        if child.is_waiting():
            with _lock:
                _idle.append(child)
        else:
            child.end()


@atexit.register
def _end_all() -> None:
    for child in _idle:
        if child.owner == os.getpid():
            child.end()
    _idle.clear()


class _Child:
    """A decoding process, and what this process says to it."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `end`
        paths = os.pathsep.join(path for path in sys.path if path)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pipelines.video.worker", str(STALL_SECONDS)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, "PYTHONPATH": paths},
        )
        self._busy = False

    def is_waiting(self) -> bool:
        """Whether it has finished its work and can do more."""
        return not self._busy and self._process.poll() is None

    def end(self) -> None:
        """Kill it; it keeps nothing that could be lost."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._errors):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def ask(self, file: SourceFile, **job: object) -> Iterator[tuple[Kind, dict[str, Any], bytes]]:
        """Give it a file; yields its messages up to the last. Raises as `decoding` does."""
        self._busy = True
        with file.open() as opened:
            path = file.path if file.protocol == "file" else None
            self._answer(json.dumps({**job, "path": path, "size": file.size}).encode())
            while True:
                kind, facts, data = self._receive()
                if kind == "read":
                    opened.seek(facts["offset"])
                    self._answer(opened.read(facts["length"]))
                    continue
                self._busy = kind not in ("done", "bad", "error")
                if kind == "bad":
                    raise BadDataError(facts["reason"], facts["detail"])
                if kind == "error":
                    raise OSError(facts["number"], facts["detail"])
                yield kind, facts, data
                if kind == "done":
                    return

    def _answer(self, data: bytes) -> None:
        pipe = self._pipe(self._process.stdin)
        try:
            pipe.write(SIZE.pack(len(data)) + data)
            pipe.flush()
        except BrokenPipeError:
            raise self._death() from None

    def _receive(self) -> tuple[Kind, dict[str, Any], bytes]:
        kind, facts, payload = HEADER.unpack(self._read(HEADER.size))
        return _NAMES[kind], json.loads(self._read(facts)), self._read(payload)

    def _read(self, size: int) -> bytes:
        data = self._pipe(self._process.stdout).read(size)
        if len(data) < size:
            raise self._death()
        return data

    @staticmethod
    def _pipe(pipe: IO[bytes] | None) -> BinaryIO:
        if pipe is None:
            raise RuntimeError("the child has no pipes")
        return pipe  # type: ignore[return-value]

    def _death(self) -> BadDataError:
        """Why it ended in the middle of its work."""
        code = self._process.wait()
        if code == -signal.SIGALRM:
            return BadDataError("decoder_hung", f"no frame came for {STALL_SECONDS} s")
        self._errors.seek(0)
        last = self._errors.read()[-500:].decode(errors="replace").strip().rpartition("\n")[2]
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return BadDataError("decoder_crashed", f"the decoder ended with {how}{': ' if last else ''}{last}")
