"""Processes of a test, found by a mark in their environment, and folders of so many bytes."""

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

WAIT_SECONDS = 120.0
"""What a busy machine may take; nothing is measured."""
MARK = "UWM_TEST_MARK"


def can_mount() -> bool:
    """Whether a test may mount file systems that nobody else sees."""
    if sys.platform != "linux":
        return False
    command = ["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def within(command: Sequence[str], folder: Path | str, kilobytes: int) -> list[str]:
    """The command line of `command` with a file system of so many kilobytes at `folder`, for it alone."""
    script = f'mount -t tmpfs -o size={kilobytes}k none "$0" && exec "$@"'
    return ["unshare", "--mount", "sh", "-c", script, str(folder), *command]


@dataclass
class Marked:
    """A process of ours and all that it starts, however they are related later."""

    mark: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def environment(self) -> dict[str, str]:
        """Variables to start it with."""
        return {**os.environ, MARK: self.mark, "OMP_NUM_THREADS": "1"}

    def processes(self) -> dict[int, str]:
        """Those that are alive, with their command lines."""
        alive = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                marked = f"{MARK}={self.mark}".encode() in (folder / "environ").read_bytes().split(b"\0")
                zombie = (folder / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
                if marked and not zombie:
                    alive[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:  # it ended meanwhile
                continue
        return alive

    def wait(self) -> None:
        """Wait until all have ended; raises AssertionError when some never do, and ends them."""
        until = time.monotonic() + WAIT_SECONDS
        while alive := self.processes():
            if time.monotonic() > until:
                self.kill()
                raise AssertionError(f"still there: {alive}")
            time.sleep(0.2)

    def kill(self) -> None:
        """End whatever is left."""
        for process in self.processes():
            try:
                os.kill(process, 9)
            except ProcessLookupError:
                continue
