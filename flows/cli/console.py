"""What the commands say: facts on stdout, progress and complaints on stderr."""

import io
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, is_dataclass
from typing import IO, TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from rich.progress import Progress


LINE_SECONDS = 30.0
"""Between two lines of progress where there is no terminal."""


class Interrupted(Exception):  # noqa: N818 - no error, and no KeyboardInterrupt, of which typer keeps no words
    """Ctrl-C came; says what is kept and how to go on."""


@contextmanager
def telling_what_is_kept(kept: Callable[[], str]) -> Iterator[None]:
    """Within the block Ctrl-C becomes `Interrupted` with the words of `kept`, which is called after it."""
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(kept()) from None


def say(text: str) -> None:
    """A line of facts on stdout."""
    sys.stdout.write(text + "\n")


class Stderr(io.TextIOBase):
    """Standard error for as long as somebody reads it; after that words are lost, and the work goes on."""

    def write(self, text: str) -> int:
        """Write at once."""
        with suppress(OSError):
            sys.stderr.write(text)
            sys.stderr.flush()
        return len(text)

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        return sys.stderr.isatty()


def note(text: str) -> None:
    """A line about the work on stderr."""
    Stderr().write(text + "\n")


def complain(message: str, code: int = 2) -> int:
    """One line about what went wrong, on stderr; returns the exit code."""
    note("error: " + " ".join(message.split()))
    return code


def say_json(value: object) -> None:
    """A dataclass or plain value as JSON, alone on stdout."""
    plain = asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
    say(json.dumps(plain, indent=1, ensure_ascii=False, default=str))


def say_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on stdout, as wide as the terminal allows."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*header, title=title or None, title_justify="left")
    for row in rows:
        table.add_row(*(Text(cell, overflow="fold") for cell in row))
    Console().print(table)


@contextmanager
def progress_bar(*, quiet: bool = False) -> Iterator["Progress"]:
    """A progress display on stderr; where that is no terminal it is a line now and then."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

    class Lines(Progress):
        """Draws nothing. A log is read line by line, and a bar would fill it with what only a terminal understands."""

        said = time.monotonic()

        def update(self, task_id: TaskID, **fields: Any) -> None:
            super().update(task_id, **fields)
            if not quiet and time.monotonic() - self.said >= LINE_SECONDS:
                self.said = time.monotonic()
                task = self.tasks[task_id]
                of = "" if task.total is None else f" of {task.total:,.0f}"
                note(f"{task.description}: {task.completed:,.0f}{of} after {task.elapsed or 0:,.0f} s")

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    terminal = sys.stderr.isatty()  # whatever FORCE_COLOR, which systems of CI set, makes rich believe
    console = Console(file=cast("IO[str]", Stderr()), force_terminal=terminal)
    drawn = terminal and not console.is_dumb_terminal
    with (Progress if drawn else Lines)(*columns, console=console, disable=quiet or not drawn) as display:
        yield display


def count(number: int, noun: str) -> str:
    """`1 episode`, `2 episodes`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
