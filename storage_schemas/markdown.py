"""Markdown that shows texts as they are, and tables that no text breaks out of."""

import re
from collections.abc import Iterable


def plain(text: str) -> str:
    """Text in one line that Markdown shows as it is, instead of taking it for markup or a link."""
    return re.sub(r"([\\`*_\[\]<>|#~])", r"\\\1", " ".join(text.split()))


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A GitHub table. Cells are Markdown; line breaks and pipes in them don't end them."""
    head = list(header)
    return "".join(f"| {' | '.join(map(_cell, row))} |\n" for row in (head, ["---"] * len(head), *rows))


def _cell(text: str) -> str:
    escaped = re.sub(r"(\\.)|\|", lambda match: match[1] or r"\|", text)
    return " ".join(escaped.splitlines())
