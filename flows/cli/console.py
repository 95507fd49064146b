"""What the commands say: facts on stdout, progress and complaints on stderr."""

import io
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, is_dataclass
from typing import IO, TYPE_CHECKING, cast

if TYPE_CHECKING:
    from rich.progress import Progress


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
    """A progress display on stderr; plain when stderr is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(file=cast("IO[str]", Stderr()))
    with Progress(*columns, console=console, disable=quiet or not console.is_terminal) as display:
        yield display


def count(number: int, noun: str) -> str:
    """`1 episode`, `2 episodes`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
