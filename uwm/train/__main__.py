"""The training process: `python -m uwm.train CONFIG.json`.

Prints one JSON event per line on stdout (see `uwm.events`). SIGTERM or SIGINT ends the run after
the step in hand, with a checkpoint that resumes it.

With `train.processes` (or `train.machines`) above 1 it starts the others itself and tells their end. Under torchrun it
is one of them: the first on each machine speaks, and a signal to any of them ends all.

Exit codes: 0 complete, 2 a request that can't be met (one line on stderr), 143 or 130 stopped by
SIGTERM or SIGINT with a checkpoint.
"""

import os
import signal
import sys
from types import FrameType

from storage_schemas.documents import read_document
from storage_schemas.errors import UserError
from storage_schemas.location import locate
from uwm.config import RunConfig
from uwm.events import TrainEvent, TrainStopped, to_line
from uwm.train.trackers import Trackers


class StopSignal:
    """Remembers that the process was asked to stop."""

    number = 0

    def __init__(self) -> None:
        self._parent = os.getppid()

    def listen(self) -> None:
        """Handle SIGTERM and SIGINT from here on."""
        signal.signal(signal.SIGTERM, self._remember)
        signal.signal(signal.SIGINT, self._remember)

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


def main(arguments: list[str]) -> int:
    """Run one training process; returns its exit code."""
    stop = StopSignal()
    stop.listen()  # before the slow imports: a signal from here on ends the run in order
    stopped = False
    speaks = os.environ.get("LOCAL_RANK", "0") == "0"
    trackers: Trackers | None = None
    # Read when torch is imported. Threads that spin while they wait halve the speed of a shared machine (docs/log.md).
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")

    def on_event(event: TrainEvent) -> None:
        nonlocal stopped
        stopped = isinstance(event, TrainStopped)
        if speaks:
            sys.stdout.write(to_line(event) + "\n")
            sys.stdout.flush()
        if trackers:
            trackers(event)

    try:
        if len(arguments) != 1:
            raise UserError("usage: python -m uwm.train CONFIG.json")
        config = load_config(arguments[0])
        if config.train.processes * config.train.machines > 1 and not _launched():
            from uwm.train.launch import launch

            return launch(config, arguments[0])
        from uwm.train.trainer import train

        with Trackers(config) as trackers:
            train(config, on_event=on_event, stop=stop)
    except UserError as error:
        if speaks:
            sys.stderr.write(f"error: {error}\n")
        return 2
    return 128 + (stop.number or signal.SIGTERM) if stopped else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
