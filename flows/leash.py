"""`python -m flows.leash PID COMMAND...`: the command, sent SIGTERM when the process PID that started it is gone.

A process that is killed with SIGKILL can't stop its children. Without this a training process would outlive its flow
run, and a flow run its worker: nobody could cancel it, and it would hold its folder's lock and its GPU.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

PR_SET_PDEATHSIG = 1


def leashed(command: Sequence[str]) -> list[str]:
    """The command line that runs `command` as a child of this process that doesn't outlive it in secret."""
    return [sys.executable, "-IS", __file__, str(os.getpid()), *command]  # without site-packages it starts in 10 ms


def main(arguments: Sequence[str]) -> int:
    """Become the command. Only Linux knows the signal; elsewhere the command runs without it."""
    if len(arguments) < 2 or not arguments[0].isdecimal():
        sys.stderr.write("error: usage: python -m flows.leash PID COMMAND...\n")
        return 2
    starter, command = int(arguments[0]) or os.getppid(), arguments[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != starter:  # it was gone before the signal was asked for
            return 128 + signal.SIGTERM
    try:
        os.execvp(command[0], list(command))  # noqa: S606 - no shell
    except OSError as error:
        sys.stderr.write(f"error: can't run {command[0]}: {error.strerror}\n")
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
