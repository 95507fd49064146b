"""The training process: `python -m uwm.train CONFIG.json`.

Prints one JSON event per line on stdout (see `uwm.events`). SIGTERM, SIGINT or SIGHUP ends the run after the step in
hand, with a checkpoint that resumes it; a reader of its output that is gone does not.

With `train.processes` (or `train.machines`) above 1 it starts the others itself and tells their end. Under torchrun it
is one of them: the first on each machine speaks, and a signal to any of them ends all.

Exit codes: 0 complete, 2 a request that can't be met (one line on stderr), 143, 130 or 129 stopped by SIGTERM, SIGINT
or SIGHUP with a checkpoint, 1 a crash (its traceback on stderr).
"""

import multiprocessing
import os
import signal
import sys
import traceback
from contextlib import suppress
from multiprocessing.util import Finalize
from types import FrameType
from typing import NoReturn

from storage_schemas.documents import read_document
from storage_schemas.errors import UserError
from storage_schemas.location import locate
from uwm.config import RunConfig
from uwm.events import OnEvent, TrainEvent, TrainStopped, to_line
from uwm.train.trackers import Trackers

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class StopSignal:
    """Remembers that the process was asked to stop."""

    number = 0

    def __init__(self) -> None:
        self._parent = os.getppid()

    def listen(self) -> None:
        """Handle the signals that ask for an end from here on."""
        for number in STOP_SIGNALS:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup asks to go on
                signal.signal(number, self._remember)

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        self.number = number

    def __call__(self) -> bool:
        """Whether the process was asked to stop, or its launcher is gone."""
        return bool(self.number) or (_launched() and os.getppid() != self._parent)


def _launched() -> bool:
    """Whether torchrun, or `uwm.train.launch`, started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def load_config(path: str) -> RunConfig:
    """Read a run's configuration.

    Raises:
        UserError: when the file is missing or holds no valid configuration.
    """
    return read_document(locate(path), RunConfig)


class EventPrinter:
    """Prints events as lines on stdout; when nobody reads them any more the run goes on in silence."""

    def __call__(self, event: TrainEvent) -> None:
        """Print one event."""
        try:
            sys.stdout.write(to_line(event) + "\n")
            sys.stdout.flush()
        except OSError:  # the reader is gone; Python's own last flush shall not fail either
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main(arguments: list[str]) -> int:
    """Run one training process; returns its exit code.

    Raises:
        UserError: when the run can't be begun, or can't go on.
    """
    stop = StopSignal()
    stop.listen()  # before the slow imports: a signal from here on ends the run in order
    stopped = False
    listeners: list[OnEvent] = [EventPrinter()] if _speaks() else []
    # Read when torch is imported. Threads that spin while they wait halve the speed of a shared machine (docs/log.md).
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")

    def on_event(event: TrainEvent) -> None:
        nonlocal stopped
        stopped = isinstance(event, TrainStopped)
        for listener in listeners:
            listener(event)

    if len(arguments) != 1:
        raise UserError("usage: python -m uwm.train CONFIG.json")
    config = load_config(arguments[0])
    if config.train.processes * config.train.machines > 1 and not _launched():
        from uwm.train.launch import launch

        return launch(config, arguments[0], STOP_SIGNALS)
    from uwm.train.trainer import train

    with Trackers(config) as trackers:
        listeners.append(trackers)
        train(config, on_event=on_event, stop=stop)
    return 128 + (stop.number or signal.SIGTERM) if stopped else 0


def _speaks() -> bool:
    """Whether this process speaks for its machine."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def leave(code: int, message: str = "") -> NoReturn:
    """End the process and its loader processes now.

    They ignore the SIGTERM (see `uwm.data.loader`) that Python sends them before it waits for their end, and they hold
    nothing that must be put in order.
    """
    with suppress(OSError):
        sys.stderr.write(message)
        sys.stderr.flush()
    kill_loader_workers()
    sys.exit(code)


def kill_loader_workers() -> None:
    """End what Python's own exit would wait for without end."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would raise at their death
    for child in multiprocessing.active_children():
        child.kill()


if __name__ == "__main__":
    # Also where torch's handler of a worker's death raises on the way out, as it may on any line of `leave`.
    Finalize(None, kill_loader_workers, exitpriority=100)
    try:
        exit_code = main(sys.argv[1:])
    except UserError as refused:  # left within the block, which keeps torch from ending the workers its own way
        leave(2, f"error: {refused}\n" if _speaks() else "")
    except BaseException:
        leave(1, traceback.format_exc())
    leave(exit_code)
