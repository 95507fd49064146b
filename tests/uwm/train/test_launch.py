"""`python -m uwm.train` with several processes: one voice, one end, and on from the checkpoint when one dies."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from uwm.checkpoint import load_checkpoint
from uwm.config import RunConfig
from uwm.events import (
    CheckpointSaved,
    Evaluated,
    TrainEvent,
    TrainFinished,
    TrainProgress,
    TrainStarted,
    TrainStopped,
    parse_line,
)
from uwm.train.periodic_evaluation import FOLDER
from uwm.train.trackers import numbers
from uwm.train.trainer import train

MakeRun = Callable[..., RunConfig]
MakeStore = Callable[..., str]

TOGETHER = ("train.processes=2", "train.batch_size=2")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="finds the processes in /proc")]


class Started:
    """A training process that was started, and what it says."""

    def __init__(self, process: subprocess.Popen[str], errors: Path) -> None:
        self.process = process
        self._errors = errors

    def events(self) -> Iterator[TrainEvent]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            event = parse_line(line)
            assert event is not None, line
            yield event

    def until(self, step: int) -> list[TrainEvent]:
        """The events up to that of a step."""
        found = []
        for event in self.events():
            found.append(event)
            if isinstance(event, TrainProgress) and event.step >= step:
                return found
        raise AssertionError(f"ended before step {step}: {self.errors}")

    def end(self) -> tuple[int, list[TrainEvent]]:
        """The exit code and the last events."""
        rest = list(self.events())
        return self.process.wait(100), rest

    @property
    def errors(self) -> str:
        return self._errors.read_text()

    def workers(self) -> list[int]:
        """The processes that train, by rank; more than the launcher alone."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                environment = (folder / "environ").read_bytes().split(b"\0") if parent == self.process.pid else []
            except OSError:
                continue
            ranks = [int(entry[5:]) for entry in environment if entry.startswith(b"RANK=")]
            found.update({rank: int(folder.name) for rank in ranks})
        return [found[rank] for rank in sorted(found)]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[RunConfig], Started]]:
    """Starts training processes, and ends those that are left."""
    running: list[subprocess.Popen[str]] = []

    def begin(config: RunConfig) -> Started:
        path, errors = tmp_path / f"config-{len(running)}.json", tmp_path / f"errors-{len(running)}"
        path.write_text(config.model_dump_json())
        with errors.open("w") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "uwm.train", str(path)],
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )
        running.append(process)
        return Started(process, errors)

    yield begin
    for process in running:
        with _closing(process):
            process.terminate()


@contextmanager
def _closing(process: subprocess.Popen[str]) -> Iterator[None]:
    try:
        yield
        process.wait(60)
    finally:
        process.kill()
        assert process.stdout is not None
        process.stdout.close()
        process.wait()


def same_weights(one: str | Path, two: str | Path, tolerance: float) -> None:
    first, second = load_checkpoint(one), load_checkpoint(two)
    assert first.state.position == second.state.position
    for kind in ("model", "ema"):
        a, b = first.tensors(kind), second.tensors(kind)
        assert max(float((a[name] - b[name]).abs().max()) for name in a) < tolerance


def test_sigterm_to_two_processes_leaves_a_checkpoint_that_one_resumes(
    make_store: MakeStore, debug_run: MakeRun, start: Callable[[RunConfig], Started]
) -> None:
    uri = make_store()
    together = start(debug_run(uri, *TOGETHER, "train.steps=1000000", "train.save_every=1000000"))
    first = together.until(2)[0]
    assert isinstance(first, TrainStarted)
    assert (first.processes, first.batch_size) == (2, 4)
    together.process.send_signal(signal.SIGTERM)
    code, rest = together.end()
    assert code == 128 + signal.SIGTERM, together.errors
    stopped = rest[-1]
    assert isinstance(stopped, TrainStopped)
    steps = f"train.steps={stopped.step + 2}"
    resumed = train(debug_run(uri, steps))
    same_weights(resumed, train(debug_run(uri, steps, output="straight")), 1e-5)


def test_a_killed_process_is_replaced_and_all_go_on_from_the_checkpoint(
    make_store: MakeStore, debug_run: MakeRun, start: Callable[[RunConfig], Started]
) -> None:
    uri = make_store()
    train(debug_run(uri, "train.steps=2"))  # one process begins
    fsdp = ("train.parallel=fsdp", "train.steps=60", "train.save_every=5")
    together = start(debug_run(uri, *TOGETHER, *fsdp))
    first = together.until(6)[0]
    assert isinstance(first, TrainStarted)
    assert first.step == 2
    os.kill(together.workers()[1], signal.SIGKILL)
    code, rest = together.end()
    assert code == 0, together.errors
    again = [event for event in rest if isinstance(event, TrainStarted)]
    assert [event.step % 5 for event in again] == [0]
    assert again[0].step >= 5
    finished = rest[-1]
    assert isinstance(finished, TrainFinished)
    same_weights(finished.path, train(debug_run(uri, "train.steps=60", output="straight")), 1e-4)


def test_evaluations_trackers_and_numbers_are_those_of_one_process(
    make_store: MakeStore, debug_run: MakeRun, start: Callable[[RunConfig], Started]
) -> None:
    robot, video = make_store("robot", (12,) * 8, val=40), make_store("video", (12, 9), known=False)
    watched = (f"data.datasets.1.uri={video}", "train.eval_every=2", "train.eval_samples=2")
    sharded = (*TOGETHER, "train.parallel=fsdp", "train.track=tensorboard")
    config = debug_run(robot, *watched, *sharded)
    together = start(config)
    code, events = together.end()
    assert code == 0, together.errors
    alone: list[TrainEvent] = []
    train(debug_run(robot, *watched, output="alone"), on_event=alone.append)
    assert [type(event) for event in events] == [type(event) for event in alone]
    seen = [(one, two) for one, two in zip(events, alone, strict=True) if isinstance(one, TrainProgress | Evaluated)]
    assert [one.step for one, _ in seen if isinstance(one, Evaluated)] == [2, 4]
    timed = ("train/samples_per_second", "train/data_wait")
    for pair in seen:
        one, two = ({name: value for name, value in numbers(event).items() if name not in timed} for event in pair)
        assert one == pytest.approx(two, rel=1e-4, abs=1e-5)
    expected = {"dataset/robot/action_loss", "dataset/video/next_obs_loss", "train/parameter_norm"}
    assert expected <= set(numbers(seen[-2][0]))
    assert len(list(Path(config.folder).glob("tensorboard/events.*"))) == 1


def test_an_error_in_an_evaluation_ends_all(
    make_store: MakeStore, debug_run: MakeRun, start: Callable[[RunConfig], Started]
) -> None:
    uri = make_store(lengths=(12,) * 8, val=40)
    config = debug_run(uri, *TOGETHER, "train.eval_every=2", "train.eval_samples=2")
    Path(config.folder).mkdir()
    (Path(config.folder) / FOLDER).write_text("in the way")
    together = start(config)
    code, rest = together.end()
    assert code == 2, together.errors
    assert isinstance(rest[-1], CheckpointSaved)
    assert together.errors.startswith("error: ")
    assert len(together.errors.splitlines()) == 1


def test_sigterm_during_an_evaluation_stops_all_after_it(
    make_store: MakeStore, debug_run: MakeRun, start: Callable[[RunConfig], Started]
) -> None:
    settings = ("train.steps=1000000", "train.eval_every=1", "train.eval_samples=4")
    together = start(debug_run(make_store(lengths=(12,) * 8, val=40), *TOGETHER, *settings))
    saved = next(event for event in together.events() if isinstance(event, CheckpointSaved))
    together.process.send_signal(signal.SIGTERM)
    code, rest = together.end()
    assert code == 128 + signal.SIGTERM, together.errors
    stopped = rest[-1]
    assert isinstance(stopped, TrainStopped)
    evaluated = [event.step for event in rest if isinstance(event, Evaluated)]
    assert evaluated == list(range(saved.step, stopped.step + 1)), "the one under way came to its end"


def test_sigterm_to_any_of_them_stops_all(
    make_store: MakeStore, debug_run: MakeRun, start: Callable[[RunConfig], Started]
) -> None:
    together = start(debug_run(make_store(), *TOGETHER, "train.steps=1000000"))
    together.until(2)
    os.kill(together.workers()[1], signal.SIGTERM)
    code, rest = together.end()
    assert code == 128 + signal.SIGTERM, together.errors
    assert isinstance(rest[-1], TrainStopped)


def test_two_machines_meet_and_each_tells_the_end(
    make_store: MakeStore, debug_run: MakeRun, start: Callable[[RunConfig], Started]
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = ("train.machines=2", f"train.rendezvous=127.0.0.1:{port}", "train.batch_size=2")
    config = debug_run(make_store(), *settings)
    both = [start(config), start(config)]
    ends = [machine.end() for machine in both]
    assert [code for code, _ in ends] == [0, 0], both[0].errors + both[1].errors
    assert all(isinstance(events[-1], TrainFinished) for _, events in ends)
    assert sorted(len(events) > 1 for _, events in ends) == [False, True]


def test_what_can_not_be_met_is_said_once_and_not_tried_again(
    make_store: MakeStore, debug_run: MakeRun, start: Callable[[RunConfig], Started]
) -> None:
    uri = make_store()
    train(debug_run(uri, "train.steps=1"))
    together = start(debug_run(uri, "train.processes=2"))
    code, rest = together.end()
    assert (code, rest) == (2, [])
    assert together.errors.splitlines()[-1].startswith("error: ")
    assert together.errors.count("error: ") == 1
    assert "train.batch_size x train.accumulate x 2 processes): 4 -> 8" in together.errors
