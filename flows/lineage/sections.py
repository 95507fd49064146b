"""What a page says about a node beyond its record: titled text, tables and small pictures."""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from storage_schemas.images import data_url, encoded, tiled
from storage_schemas.lineage.records import Fact, LineageRecord

MAX_ROWS = 30
"""Rows of one table; a line below it says how many more there are."""
MAX_PICTURE_BYTES = 36_000
"""Most bytes of all JPEGs of one node: an artifact stays a small row of the server's database."""
STRIP_HEIGHT = 84
"""Height in pixels of a strip of frames."""


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Picture(_Value):
    """A small picture that needs no other file."""

    caption: str
    url: str = Field(pattern=r"^data:image/jpeg;base64,[A-Za-z0-9+/]+=*$")


class Section(_Value):
    """One titled piece of a node's details; all texts are plain, whoever shows them escapes them."""

    title: str
    text: str = ""
    header: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    pictures: tuple[Picture, ...] = ()
    link: str = Field("", pattern=r"^(http://[a-zA-Z0-9.:/@-]+)?$")
    """Where more is to be seen."""


def facts_of(record: LineageRecord | None) -> list[tuple[str, str]]:
    """Names and texts of a record's facts, those that say something."""
    facts = record.facts if record else {}
    return [(name, _readable(value)) for name, value in facts.items() if value not in (None, "")]


def _readable(value: Fact) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[object]], *, text: str = "") -> Section:
    """A section with a table of at most `MAX_ROWS` rows."""
    shown = tuple(tuple(map(str, row)) for row in rows[:MAX_ROWS])
    more = f"{len(rows) - MAX_ROWS:,} more are not shown." if len(rows) > MAX_ROWS else ""
    return Section(title=title, text=" ".join(filter(None, (text, more))), header=tuple(header), rows=shown)


def strip(frames: Iterable[NDArray[np.uint8]]) -> bytes:
    """A JPEG of frames (H, W, 3) side by side, each brought to a height of `STRIP_HEIGHT` pixels."""
    return encoded(tiled([map(_shrunk, frames)]), "JPEG")


def _shrunk(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    from PIL import Image

    height, width = frame.shape[:2]
    size = (max(1, min(round(width * STRIP_HEIGHT / height), 4 * STRIP_HEIGHT)), STRIP_HEIGHT)
    return np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0))


def pictures(strips: Iterable[tuple[str, bytes]]) -> tuple[Picture, ...]:
    """Captions and JPEGs as pictures, as many as fit into `MAX_PICTURE_BYTES`."""
    shown: list[Picture] = []
    left = MAX_PICTURE_BYTES
    for caption, jpeg in strips:
        left -= len(jpeg)
        if left < 0:
            break
        shown.append(Picture(caption=caption, url=data_url(jpeg, "image/jpeg")))
    return tuple(shown)
