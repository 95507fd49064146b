"""A decoder that crashes, stands still or runs out of files costs one file."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.checks.quality import BadDataError
from pipelines.files import SourceFile
from pipelines.video import isolation

WORKER = """
import os, signal, sys, time
from pipelines.video import decode, worker

def broken(file):
    {body}

decode.probe = broken
worker.main()
"""


def opened(path: Path) -> SourceFile:
    return SourceFile(str(path), "file", path.stat().st_size)


def decode(path: Path) -> list[np.ndarray]:
    with isolation.decoding(opened(path), fps=15, short_side=180, backend="pyav") as (_, frames, _):
        return list(frames)


@pytest.fixture
def sabotage(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """A function that puts other code into new children in place of `probe`."""
    real = subprocess.Popen

    def put(body: str) -> None:
        isolation._end_all()
        code = WORKER.format(body=body)

        def start(command: list[str], **options: Any) -> "subprocess.Popen[bytes]":
            return real([sys.executable, "-c", code, *command[3:]], **options)

        monkeypatch.setattr(subprocess, "Popen", start)

    return put


@pytest.mark.parametrize(
    ("body", "reason", "words"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "decoder_crashed", "SIGSEGV"),
        ("raise MemoryError('too much')", "decoder_crashed", "too much"),
        ("signal.pause()", "decoder_hung", "1 s"),
        ("os._exit(3)", "decoder_crashed", "exit code 3"),
        ("os.write(int(sys.argv[1]), bytes([127, 255, 255, 255])); time.sleep(9)", "decoder_crashed", "SIGKILL"),
        ("os.write(int(sys.argv[1]), bytes([0, 0, 0, 2]) + b'{{'); time.sleep(9)", "decoder_crashed", "no JSON"),
    ],
)
def test_a_broken_decoder_is_a_reason(
    tmp_path: Path, write_video: Callable[..., Path], sabotage: Callable[[str], None], body: str, reason: str,
    words: str, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    path = write_video(tmp_path / "a.mp4")
    monkeypatch.setattr(isolation, "STALL_SECONDS", 1 if reason == "decoder_hung" else 20)
    sabotage(body)
    with pytest.raises(BadDataError) as caught:
        decode(path)
    assert caught.value.reason == reason
    assert words in caught.value.detail
    monkeypatch.undo()
    assert len(decode(path)) == 30


def test_a_child_is_used_again(tmp_path: Path, write_video: Callable[..., Path]) -> None:
    path = write_video(tmp_path / "a.mp4")
    (tmp_path / "b.mp4").write_bytes(b"no video")
    decode(path)
    before = isolation._idle[-1]
    with pytest.raises(BadDataError):
        decode(tmp_path / "b.mp4")
    decode(path)
    assert isolation._idle[-1] is before


def test_what_is_left_half_read_does_not_reach_the_next(tmp_path: Path, write_video: Callable[..., Path]) -> None:
    first, second = (write_video(tmp_path / f"{n}.mp4", seed=n * 9) for n in range(2))
    whole = decode(second)
    with isolation.decoding(opened(first), fps=15, short_side=180, backend="pyav") as (_, frames, _):
        next(frames)
    np.testing.assert_array_equal(decode(second), whole)


def test_threads_have_children_of_their_own(tmp_path: Path, write_video: Callable[..., Path]) -> None:
    paths = [write_video(tmp_path / f"{n}.mp4", seed=n * 9, frames=90) for n in range(2)]
    alone = [decode(path) for path in paths]
    found: dict[int, list[np.ndarray]] = {}
    threads = [threading.Thread(target=lambda n=n: found.update({n: decode(paths[n])})) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for n in range(2):
        np.testing.assert_array_equal(found[n], alone[n])


def test_times_without_decoding(tmp_path: Path, write_video: Callable[..., Path]) -> None:
    path = write_video(tmp_path / "a.mp4", frames=4, times=[0, 900, 1800, 36000])
    np.testing.assert_allclose(isolation.frame_times(opened(path)), [0, 0.1, 0.2, 4.0], atol=0.01)


def test_the_child_ends_with_its_parent(tmp_path: Path, write_video: Callable[..., Path]) -> None:
    path = write_video(tmp_path / "a.mp4")
    code = f"""
import os, sys
from pathlib import Path
from pipelines.video import isolation
from pipelines.files import SourceFile
file = SourceFile({str(path)!r}, "file", {path.stat().st_size})
with isolation.decoding(file, fps=15, short_side=180, backend="pyav") as (_, frames, _):
    list(frames)
print(isolation._idle[-1]._process.pid, flush=True)
os.kill(os.getpid(), 9)
"""
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=False)
    child = int(done.stdout)
    for _ in range(100):
        if not Path(f"/proc/{child}").exists() or "Z" in Path(f"/proc/{child}/stat").read_text().split()[2]:
            return
        threading.Event().wait(0.05)
    os.kill(child, 9)
    pytest.fail("the child outlived its parent")
