"""The lines of a list of videos: CSV, JSON lines, a JSON list, or plain lines.

A line is `path[, start, end, text, collection]`, or has a head that says which column is which: also those of Kinetics
(`label,youtube_id,time_start,time_end,split`), Something-Something (`id`, `label`) and Ego4D (`video_uid`,
`video_start_sec`, `video_end_sec`, `narration_text`). Plain lines may be `path label` as well.
"""

import csv
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from pipelines.checks.quality import BadDataError

MAX_BYTES = 256 << 20
"""Of a list."""
_MAX_LINE = 1 << 16
_MAX_TEXT = 4096
SUFFIXES = frozenset(("csv", "tsv", "jsonl", "ndjson", "json", "txt", "lst"))
_PLAIN = frozenset(("txt", "lst"))
_COLUMNS = ("path", "start", "end", "text", "collection")
_ALIASES: dict[str, tuple[str, ...]] = {
    "path": ("path", "file", "file_path", "filepath", "filename", "video_path", "video", "video_id", "video_uid",
             "youtube_id", "id"),
    "start": ("start", "time_start", "start_time", "start_sec", "start_seconds", "video_start_sec"),
    "end": ("end", "time_end", "end_time", "end_sec", "end_seconds", "video_end_sec"),
    "text": ("text", "label", "caption", "narration_text", "narration", "instruction", "sentence", "description"),
    "collection": ("collection",),
}  # fmt: skip
"""Under which names a column is known, those that decide first."""
_CLOCK = re.compile(r"(?:(\d+):)?([0-5]?\d):([0-5]?\d(?:\.\d*)?)")


@dataclass(frozen=True, kw_only=True)
class ListLine:
    """What a line says."""

    number: int
    """Counted from 1; of a JSON list its entries are."""
    path: str
    """Of the file, or its name without a suffix."""
    start: float | None
    """Seconds after the first frame; the first frame when None."""
    end: float | None
    text: str
    collection: str
    words: tuple[str, str] | None = None
    """Path and text, when the line is to be read so if there is no file of its whole name."""


Parsed = ListLine | tuple[int, BadDataError]
"""A line, or its number and what is wrong with it."""


def suffix_of(name: str) -> str:
    """What follows the last dot, in small letters."""
    return name.rpartition(".")[2].lower()


def parse_lines(data: bytes, suffix: str) -> Iterator[Parsed]:
    """The lines of a list, each good or with a reason; empty ones are left out.

    Args:
        data: the file.
        suffix: one of `SUFFIXES`.

    Raises:
        BadDataError: "not_a_list", when the file as a whole makes no sense.
    """
    if suffix == "json":
        yield from _parse_each(enumerate(_json_list(data), 1), _from_object)
    elif suffix in ("jsonl", "ndjson"):
        yield from _parse_each(_texts(data), lambda number, text: _from_object(number, _loads(text)))
    else:
        yield from _parse_table(data, plain=suffix in _PLAIN)


def _parse_each(items: Any, parse: Any) -> Iterator[Parsed]:
    for number, item in items:
        try:
            if isinstance(item, BadDataError):
                raise item
            yield parse(number, item)
        except BadDataError as error:
            yield number, error


def _texts(data: bytes) -> Iterator[tuple[int, str | BadDataError]]:
    """Number and text of every line that is not empty."""
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").splitlines(), 1):
        if len(line) > _MAX_LINE:
            yield number, BadDataError("bad_line", f"a line of {len(line)} bytes")
            continue
        try:
            text = line.decode().strip()
        except UnicodeDecodeError as error:
            yield number, BadDataError("invalid_utf8", f"the line is not UTF-8: {error.reason}")
            continue
        if text:
            yield number, text


def _loads(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadDataError("bad_line", f"it is no JSON: {error}") from error


def _json_list(data: bytes) -> list[Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadDataError("not_a_list", f"it is no JSON: {error}") from error
    if not isinstance(value, list):
        raise BadDataError("not_a_list", "a JSON file must be a list of objects: write JSON lines")
    return value


def _from_object(number: int, value: Any) -> ListLine:
    if isinstance(value, str):
        return _line(number, {"path": value})
    if isinstance(value, list):
        return _from_cells(number, _COLUMNS, ["" if cell is None else str(cell) for cell in value])
    if not isinstance(value, dict):
        raise BadDataError("bad_line", "neither an object nor a path")
    places = _places([str(key) for key in value])
    cells = list(value.values())
    if "path" not in places:
        raise BadDataError("bad_line", f"it names no file: {', '.join(map(str, value))[:200]}")
    found = {name: cells[place] for name, place in places.items()}
    if strange := [name for name, cell in found.items() if isinstance(cell, (dict, list, bool))]:
        raise BadDataError("bad_line", f"{strange[0]} is no text and no number")
    return _line(number, {name: "" if cell is None else str(cell) for name, cell in found.items()})


def _places(names: Sequence[str]) -> dict[str, int]:
    """Where the columns are that have a meaning here."""
    lower = [name.strip().lower() for name in names]
    return {
        column: lower.index(found)
        for column, aliases in _ALIASES.items()
        if (found := next((alias for alias in aliases if alias in lower), None)) is not None
    }


def _parse_table(data: bytes, *, plain: bool) -> Iterator[Parsed]:
    head: Sequence[str] | None = None
    delimiter = ""
    for number, text in _texts(data):
        if isinstance(text, BadDataError):
            yield number, text
            continue
        first = not delimiter
        delimiter = delimiter or max(",\t;", key=text.count)
        try:
            cells = next(csv.reader([text], delimiter=delimiter, strict=True, skipinitialspace=True))
        except (csv.Error, StopIteration) as error:
            yield number, BadDataError("bad_line", f"it is no line of a table: {error}")
            continue
        if first and "path" in (places := _places(cells)) and not (plain and len(cells) == 1):
            head = [next((c for c, place in places.items() if place == i), "") for i in range(len(cells))]
            continue
        yield from _parse_each([(number, cells)], partial(_from_row, head=head, plain=plain))


def _from_row(number: int, cells: list[str], *, head: Sequence[str] | None, plain: bool) -> ListLine:
    if head is None and plain and len(cells) == 1 and len(words := cells[0].rsplit(None, 1)) == 2:
        return _line(number, {"path": cells[0]}, words=(words[0], words[1]))
    return _from_cells(number, head or _COLUMNS, cells)


def _from_cells(number: int, columns: Sequence[str], cells: list[str]) -> ListLine:
    if len(cells) > len(columns):
        raise BadDataError("bad_line", f"{len(cells)} cells for {len(columns)} columns: quote texts with commas")
    return _line(number, {name: cell for name, cell in zip(columns, cells, strict=False) if name})


def _line(number: int, values: Mapping[str, str], words: tuple[str, str] | None = None) -> ListLine:
    path, text = values.get("path", "").strip(), " ".join(values.get("text", "").split())
    if not path or "\0" in path:
        raise BadDataError("bad_line", "it names no file")
    if len(text) > _MAX_TEXT:
        raise BadDataError("bad_line", f"a text of {len(text)} characters, of which {_MAX_TEXT} are allowed")
    start, end = (_seconds(name, values.get(name, "")) for name in ("start", "end"))
    if end is not None and end <= (start or 0):
        raise BadDataError("bad_span", f"it ends at {end:g} s and starts at {start or 0:g} s")
    return ListLine(
        number=number,
        path=path,
        start=start,
        end=end,
        text=text,
        collection=" ".join(values.get("collection", "").split())[:_MAX_TEXT],
        words=words,
    )


def _seconds(name: str, text: str) -> float | None:
    """Seconds of a number or of `[hours:]minutes:seconds`; None when there is nothing."""
    text = text.strip()
    if not text:
        return None
    if clock := _CLOCK.fullmatch(text):
        return int(clock[1] or 0) * 3600 + int(clock[2]) * 60 + float(clock[3])
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < 1e9:
        raise BadDataError("bad_span", f"{name} is {text[:40]!r}, no number of seconds")
    return seconds
