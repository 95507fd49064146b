"""Decode video in a child process, so that a file that crashes or hangs the decoder costs one file and nothing else.

HDF5 is read there too (`pipelines.hdf5`), for the same reason.

The child (`pipelines.video.worker`) is reused from file to file. It arms an alarm before every piece of work, which
ends it when the decoder stands still, even if this process is gone by then. It opens local files by itself; the
bytes of remote ones are read here and handed over when it asks for them.

Both talk over a `multiprocessing.connection.Connection`, of which only the framing is used: messages are bytes of
bounded length. Nothing is ever unpickled, for whoever decodes hostile files may have been taken over by one.
"""

import atexit
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import Pipe
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipelines.checks.quality import BadDataError
from pipelines.files import SourceFile
from pipelines.video.spans import Span

STALL_SECONDS = 60
"""Longest time that the decoder may take for one frame."""
MAX_TEXT = 1 << 16
"""Most bytes of the JSON in a message."""
_MAX_PAYLOAD = 1 << 30
"""Most bytes that come with it: a frame, or when the frames of a video appear."""

Kind = Literal["info", "frame", "times", "layout", "rows", "done", "bad", "read", "error"]


@contextmanager
def decoding(
    file: SourceFile,
    *,
    fps: float | None,
    short_side: int,
    backend: str = "pyav",
    min_steps: int = 1,
    span: Span | None = None,
) -> Iterator[tuple[float, Iterator[NDArray[np.uint8]], list[str]]]:
    """Steps per second and upright frames (H, W, 3) of a video, see `pipelines.video.decode`, and what is left out.

    Args:
        file: the video.
        fps: most frames per second; slower videos keep their rate. None for every frame, whenever it appears.
        short_side: most pixels of the shorter side.
        backend: the decoder.
        min_steps: frames below which a video is too short; one that has them only at its own rate keeps it.
        span: what of the video is decoded; all of it when None.

    Raises:
        BadDataError: as `probe` and `steady_frames` do; "decoder_crashed", "decoder_hung".
        OSError: when the file can't be read.
    """
    with borrowed() as child:
        wanted = {"fps": fps, "short_side": short_side, "min_steps": min_steps, "span": span}
        messages = child.ask(file, job="frames", backend=backend, **wanted)
        facts, _ = next(messages)
        shape = (*facts["size"], 3)
        yield (
            float(facts["rate"]),
            (np.frombuffer(data, np.uint8).reshape(shape) for facts, data in messages if facts["kind"] == "frame"),
            facts["left_out"],
        )


@contextmanager
def decoding_at(
    file: SourceFile, times: NDArray[np.float64], *, short_side: int
) -> Iterator[tuple[tuple[int, int], Iterator[NDArray[np.uint8]]]]:
    """Height and width of a video's frames, and the frames (H, W, 3) at some times, see `pipelines.video.seek`.

    Args:
        file: the video.
        times: (N,) in seconds, ascending, of `frame_times`.
        short_side: most pixels of the shorter side.

    Raises:
        BadDataError: as `probe` and `frames_at` do; "decoder_crashed", "decoder_hung".
        OSError: when the file can't be read.
    """
    with borrowed() as child:
        messages = child.ask(file, job="frames_at", times=times.tolist(), short_side=short_side)
        facts, _ = next(messages)
        height, width = facts["size"]
        frames = (
            np.frombuffer(data, np.uint8).reshape(height, width, 3)
            for facts, data in messages
            if facts["kind"] == "frame"
        )
        yield (height, width), frames


def frame_times(file: SourceFile) -> NDArray[np.float64]:
    """When the frames of a video appear, (T,) in seconds; raises as `decoding` does."""
    with borrowed() as child:
        messages = child.ask(file, job="times")
        return np.concatenate([np.frombuffer(data) for facts, data in messages if facts["kind"] == "times"])


_idle: list["Child"] = []
_lock = threading.Lock()


@contextmanager
def borrowed() -> Iterator["Child"]:
    """A child for one job: one that waits for work, or a new one; it is ended if it did not finish."""
    with _lock:
        # a fork has inherited the list, but two processes on one connection would get each other's frames
        mine = [child for child in _idle if child.owner == os.getpid()]
        child = mine[-1] if mine else Child()
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


class Child:
    """A decoding process, and what this process says to it."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `end`
        paths = os.pathsep.join(path for path in sys.path if path)
        self._connection, theirs = Pipe()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "pipelines.video.worker", str(theirs.fileno()), str(STALL_SECONDS)],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=self._errors,  # what a library prints
                stderr=self._errors,
                # it imports what this process can import, however this one was started; HDF5 loads no plug-in
                env={**os.environ, "PYTHONPATH": paths, "HDF5_PLUGIN_PRELOAD": "::"},
            )
        self._busy = False

    def is_waiting(self) -> bool:
        """Whether it has finished its work and can do more."""
        return not self._busy and self._process.poll() is None

    def end(self) -> None:
        """Kill it; it keeps nothing that could be lost."""
        self._process.kill()
        self._process.wait()
        self._connection.close()
        self._errors.close()

    def ask(self, file: SourceFile, **job: object) -> Iterator[tuple[dict[str, Any], bytes]]:
        """Give it a file; yields its messages, facts and payload, up to the last. Raises as `decoding` does."""
        self._busy = True
        with file.open() as opened:
            path = file.path if file.protocol == "file" else None
            self._answer(json.dumps({**job, "path": path, "size": file.size}).encode())
            while True:
                facts, payload = self._receive()
                kind: Kind = facts["kind"]
                if kind == "read":
                    opened.seek(facts["offset"])
                    self._answer(opened.read(facts["length"]))
                    continue
                self._busy = kind not in ("done", "bad", "error")
                if kind == "bad":
                    raise BadDataError(facts["reason"], facts["detail"])
                if kind == "error":
                    raise OSError(facts["number"], facts["detail"])
                yield facts, payload
                if kind == "done":
                    return

    def _answer(self, data: bytes) -> None:
        try:
            self._connection.send_bytes(data)
        except ConnectionError:
            raise self._death() from None

    def _receive(self) -> tuple[dict[str, Any], bytes]:
        try:
            text = self._connection.recv_bytes(MAX_TEXT)
            return json.loads(text), self._connection.recv_bytes(_MAX_PAYLOAD)
        except (EOFError, OSError):  # it is gone, or says more than it may
            raise self._death() from None
        except ValueError as error:
            raise BadDataError("decoder_crashed", f"the decoder sent what is no JSON: {error}") from None

    def _death(self) -> BadDataError:
        """Why it ended in the middle of its work."""
        self._process.kill()  # how it ended is decided before its end of the connection is closed
        code = self._process.wait()
        if code == -signal.SIGALRM:
            return BadDataError("decoder_hung", f"no frame came for {STALL_SECONDS} s")
        self._errors.seek(0)
        last = self._errors.read()[-500:].decode(errors="replace").strip().rpartition("\n")[2]
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return BadDataError("decoder_crashed", f"the decoder ended with {how}{': ' if last else ''}{last}")
