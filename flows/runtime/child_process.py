"""A child process whose output is followed and that is stopped in order. Imports no prefect, no torch."""

import contextlib
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import IO

from flows.runtime.end_with_parent import ending_with_parent
from flows.runtime.timeouts import GRACE_SECONDS
from storage_schemas.errors import UserError

STOP_SIGNALS = (signal.SIGTERM, signal.SIGHUP)
"""What asks a process to stop in order: whoever manages it, and the terminal that goes away."""
MAX_ERROR_BYTES = 8192


class ChildError(RuntimeError):
    """A child process ended with an error that is not the user's."""


def module_command(module: str, *arguments: str) -> list[str]:
    """The command that runs a module in this interpreter."""
    return [sys.executable, "-m", module, *arguments]


def run_child(command: Sequence[str], on_line: Callable[[str], None], *, grace: float = GRACE_SECONDS) -> None:
    """Run `command` and hand over the lines it prints on stdout until it ends.

    Whatever ends this function early (an exception, Ctrl-C, a cancelled flow run) sends the child
    SIGTERM and gives it `grace` seconds to finish before it is killed. When this process itself is
    killed, the child gets SIGTERM too (`flows.runtime.end_with_parent`).

    Raises:
        UserError: when the child ends with exit code 2; its last line on stderr with `error: ` is the message.
        ChildError: when it ends with any other error.
        SystemExit: when SIGTERM or SIGHUP ended it, with the code of a shell.
    """
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            ending_with_parent(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            # a file: whoever reads two pipes in turn lets the child block on the other one
            stderr=errors,
            text=True,
            errors="replace",
            # Ctrl-C is for this process, which sends the child the signal that lets it save
            start_new_session=True,
        )
        try:
            for line in process.stdout or ():
                on_line(line)
            process.wait()
        finally:
            _stop(process, grace)
        _raise_for_exit_code(process.returncode, _tail(errors))


def _stop(process: subprocess.Popen[str], grace: float) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.communicate(timeout=grace)  # drains the pipe, so the child can't block on it
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
    if process.stdout is not None:
        process.stdout.close()


def _tail(errors: IO[bytes]) -> str:
    size = errors.seek(0, 2)
    errors.seek(max(0, size - MAX_ERROR_BYTES))
    return errors.read().decode(errors="replace").strip()


def _raise_for_exit_code(code: int, errors: str) -> None:
    if code == 0:
        return
    if code == 2:
        lines = errors.splitlines() or ["the process refused its arguments without saying why"]
        said = [line for line in lines if line.startswith("error: ")]  # libraries may warn after it
        raise UserError((said or lines)[-1].removeprefix("error: "))
    for number in STOP_SIGNALS:
        if code in (128 + number, -number):
            raise SystemExit(128 + number)
    raise ChildError(f"the process ended with exit code {code}\n{errors}")


@contextlib.contextmanager
def stop_signals_exit() -> Iterator[None]:
    """Within the block SIGTERM and SIGHUP unwind the stack, as Ctrl-C does, so that children and servers are stopped.

    Only where nobody else handles them: Prefect turns SIGTERM into an exception of its own, nohup ignores SIGHUP.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    unhandled = [number for number in STOP_SIGNALS if in_main_thread and signal.getsignal(number) == signal.SIG_DFL]
    for number in unhandled:
        signal.signal(number, _leave)
    try:
        yield
    finally:
        for number in unhandled:
            signal.signal(number, signal.SIG_DFL)


def _leave(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
