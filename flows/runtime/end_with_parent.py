"""`python -m flows.runtime.end_with_parent PID COMMAND...` runs a command that gets SIGTERM when its starter PID ends.

A process that is killed with SIGKILL can't stop its children. Without this a training process would outlive its flow
run, and a flow run its worker: nobody could cancel it, and it would hold its folder's lock and its GPU.
"""

import os
import select
import signal
import sys
from collections.abc import Sequence


def ending_with_parent(command: Sequence[str]) -> list[str]:
    """The command line that runs `command` as a child that is stopped in order when this process ends."""
    return [sys.executable, "-IS", __file__, str(os.getpid()), *command]  # without site-packages it starts in 20 ms


def main(arguments: Sequence[str]) -> int:
    """Become the command; on Linux it is stopped when its starter ends, elsewhere it only runs."""
    if len(arguments) < 2 or not arguments[0].isdecimal():
        sys.stderr.write("error: usage: python -m flows.runtime.end_with_parent PID COMMAND...\n")
        return 2
    starter, command = int(arguments[0]) or os.getppid(), arguments[1:]
    if sys.platform == "linux":
        _signal_when_gone(starter)
        if os.getppid() != starter:  # it was gone before the watcher looked
            return 128 + signal.SIGTERM
    try:
        os.execvp(command[0], list(command))  # noqa: S606 - no shell
    except OSError as error:
        sys.stderr.write(f"error: can't run {command[0]}: {error.strerror}\n")
        return 2


def _signal_when_gone(starter: int) -> None:
    """Fork a process that sends this one SIGTERM when the starter has ended; it ends with either of the two.

    The kernel could send the signal by itself (PR_SET_PDEATHSIG), but would for every thread of the starter that ends,
    and a second signal breaks off what the first has begun: to save, to give back a slot, to report the end.
    """
    try:
        me = os.pidfd_open(os.getpid())
    except OSError:  # a kernel before 5.3, or a container that forbids it: as on other systems
        return
    if os.fork():
        os.close(me)
        return
    os.setsid()
    os.closerange(0, 3)  # who reads the command's output waits for its end only
    try:
        above = os.pidfd_open(starter)
        ended, _, _ = select.select([above, me], [], [])
    except ProcessLookupError:
        ended = []
    if me not in ended:
        signal.pidfd_send_signal(me, signal.SIGTERM)
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
