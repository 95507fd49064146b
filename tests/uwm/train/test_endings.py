"""A training that fails ends at once and leaves no process; one that nobody listens to any more goes on, and saves.

With loader workers, because they outlive what they can't see; with several processes, because one fails first.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from endings import WAIT_SECONDS, Marked, can_mount, within

from uwm.checkpoint import load_checkpoint
from uwm.config import RunConfig
from uwm.events import TrainProgress, parse_line

MakeRun = Callable[..., RunConfig]
MakeStore = Callable[..., str]

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="finds the processes in /proc")]
needs_mounts = pytest.mark.skipif(not can_mount(), reason="may not mount file systems")

SHARED_MEMORY = "/dev/shm"  # noqa: S108 - the system's
ENDLESS = ("train.steps=1000000", "train.save_every=1000000", "train.restarts=0")
EACH = pytest.mark.parametrize("workers", [0, 2, 8])
WITH_WORKERS = pytest.mark.parametrize("workers", [2, 8])
ALONE_AND_TOGETHER = pytest.mark.parametrize("processes", [1, 2])


class Training:
    """A training process, and all that it starts."""

    def __init__(self, folder: Path, config: RunConfig, *, inside: tuple[Path | str, int] | None = None) -> None:
        self.config = config
        self.marked = Marked()
        self._errors = folder / "errors"
        path = folder / "config.json"
        path.write_text(config.model_dump_json())
        command = [sys.executable, "-m", "uwm.train", str(path)]
        with self._errors.open("w") as errors:
            self.process = subprocess.Popen(
                within(command, *inside) if inside else command,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=self.marked.environment,
            )

    @property
    def errors(self) -> str:
        return self._errors.read_text()

    def until(self, step: int) -> None:
        """Read what it says up to the event of a step."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            event = parse_line(line)
            if isinstance(event, TrainProgress) and event.step >= step:
                return
        raise AssertionError(f"ended before step {step}: {self.errors}")

    def hang_up(self) -> None:
        """Leave it without anybody who reads what it says."""
        assert self.process.stdout is not None
        self.process.stdout.close()

    def code(self) -> int:
        """The exit code, once it and all that it started have ended."""
        assert self.process.stdout is not None
        if self.process.stdout.closed:
            self.process.wait(WAIT_SECONDS)
        else:
            self.process.communicate(timeout=WAIT_SECONDS)
        self.marked.wait()
        return self.process.returncode

    def loader_workers(self) -> list[int]:
        return [pid for pid, line in self.marked.processes().items() if "spawn_main" in line]

    def saved_step(self) -> int:
        """The step of the newest checkpoint that a resumed run would take."""
        folders = sorted(Path(self.config.folder, "checkpoints").glob("step-*"))
        return load_checkpoint(folders[-1]).state.step


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Training]]:
    """Starts trainings, and ends what is left of them."""
    running: list[Training] = []

    def begin(config: RunConfig, *, inside: tuple[Path | str, int] | None = None) -> Training:
        running.append(Training(tmp_path, config, inside=inside))
        return running[-1]

    yield begin
    for training in running:
        training.marked.kill()
        training.process.wait()
        if training.process.stdout:
            training.process.stdout.close()


@pytest.fixture
def make(make_store: MakeStore, debug_run: MakeRun) -> MakeRun:
    """Makes configurations of runs with so many loader workers and processes."""

    def configuration(workers: int, processes: int, *pairs: str) -> RunConfig:
        sizes = (f"data.workers={workers}", f"train.processes={processes}", "train.batch_size=2")
        return debug_run(make_store(), *sizes, *pairs)

    return configuration


@needs_mounts
@EACH
@ALONE_AND_TOGETHER
def test_a_full_disk_ends_it(make: MakeRun, start: Callable[..., Training], workers: int, processes: int) -> None:
    config = make(workers, processes, *ENDLESS, "train.save_every=3")
    Path(config.folder).mkdir()
    training = start(config, inside=(config.folder, 200))
    assert training.code() not in (0, -signal.SIGKILL)
    assert "No space left on device" in training.errors


@WITH_WORKERS
@ALONE_AND_TOGETHER
def test_a_killed_loader_worker_ends_it(
    make: MakeRun, start: Callable[..., Training], workers: int, processes: int
) -> None:
    training = start(make(workers, processes, *ENDLESS))
    training.until(2)
    found = training.loader_workers()
    assert len(found) == workers * processes
    os.kill(found[0], signal.SIGKILL)
    assert training.code() not in (0, -signal.SIGKILL)
    assert "worker" in training.errors


@needs_mounts
@WITH_WORKERS
@ALONE_AND_TOGETHER
def test_a_small_dev_shm_ends_it(make: MakeRun, start: Callable[..., Training], workers: int, processes: int) -> None:
    training = start(make(workers, processes, *ENDLESS), inside=(SHARED_MEMORY, 64))
    assert training.code() not in (0, -signal.SIGKILL)
    assert training.errors


@EACH
@ALONE_AND_TOGETHER
def test_nobody_who_reads_ends_nothing(
    make: MakeRun, start: Callable[..., Training], workers: int, processes: int
) -> None:
    training = start(make(workers, processes, "train.steps=12", "train.save_every=1000"))
    training.until(2)
    training.hang_up()
    assert training.code() == 0, training.errors
    assert training.saved_step() == 12


@EACH
@ALONE_AND_TOGETHER
def test_stopped_while_nobody_reads_it_saves(
    make: MakeRun, start: Callable[..., Training], workers: int, processes: int
) -> None:
    training = start(make(workers, processes, *ENDLESS))
    training.until(2)
    training.hang_up()
    training.process.terminate()
    assert training.code() == 128 + signal.SIGTERM, training.errors
    assert training.saved_step() >= 2
