"""Where the rows of each episode of a LeRobot dataset lie, whatever its files are called.

The column `episode_index` decides: indices of files go stale when datasets are edited, and rows of episodes that were
deleted stay behind. Letters: T rows of an episode, D numbers of a row.
"""

import hashlib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipelines.checks.quality import BadDataError
from pipelines.files import SourceFile
from pipelines.parquet import Table, numbers, open_table
from pipelines.source import reading
from pipelines.sources.lerobot_info import TIME, Info

if TYPE_CHECKING:
    import pyarrow

NOWHERE = -1
"""The episode of rows that do not say which is theirs."""
_OLD_NAME = re.compile(r"episode_(\d{1,9})\.parquet")


@dataclass(frozen=True)
class Run:
    """Some rows of one episode that follow each other."""

    file: str
    group: int
    start: int
    """Row within the row group."""
    count: int


@dataclass(kw_only=True)
class Rows:
    """What the files under `data` hold."""

    runs: dict[int, list[Run]] = field(default_factory=dict)
    """By episode."""
    digests: dict[int, str] = field(default_factory=dict)
    """Hash of the numbers of an episode, wherever they lie; empty when nobody asked for it."""
    unreadable: dict[str, BadDataError] = field(default_factory=dict)
    """By path of the file."""
    unknown: set[str] = field(default_factory=set)
    """Columns that `info.json` does not declare."""


def scan(files: Mapping[str, SourceFile], info: Info, *, hashing: bool) -> Rows:
    """Find the rows of all episodes; images are not read."""
    rows = Rows()
    digests: dict[int, hashlib._Hash] = {}
    declared = {TIME, *info.numbers}
    wanted = ["episode_index", *(sorted(declared) if hashing else ())]
    known = {*wanted, *info.numbers, *info.texts, *info.images, *info.videos, *_PLACES}
    for path in sorted(path for path in files if path.startswith("data/") and path.endswith(".parquet")):
        found: list[tuple[int, Run, NDArray[np.uint8]]] = []
        try:
            with reading(), open_table(files[path]) as table:
                rows.unknown |= set(table.names) - known
                found += _runs(path, table, wanted)
        except BadDataError as error:
            rows.unreadable[path] = error
            continue
        for episode, run, content in found:
            rows.runs.setdefault(episode, []).append(run)
            if hashing:
                digests.setdefault(episode, hashlib.sha256()).update(content.data)
    rows.digests = {episode: digest.hexdigest()[:32] for episode, digest in digests.items()}
    return rows


_PLACES = frozenset(("index", "frame_index", "task_index", "episode_index"))


def _runs(path: str, table: Table, wanted: Sequence[str]) -> Iterator[tuple[int, Run, NDArray[np.uint8]]]:
    """Episode, place and bytes of all runs of a file."""
    name = _OLD_NAME.fullmatch(path.rpartition("/")[2])
    for group, count in enumerate(table.group_rows):
        columns = table.read(group, wanted)
        episodes = np.full(count, int(name[1]) if name else NOWHERE)
        if "episode_index" in columns:
            told = numbers("episode_index", columns["episode_index"])[:, 0].astype(np.float64)
            good = np.isfinite(told) & (told >= 0) & (told < 1 << 53)
            episodes = np.where(good, np.nan_to_num(told, posinf=0, neginf=0), episodes).astype(np.int64)
        content = _bytes(columns, wanted[1:], count)
        edges = [0, *(np.flatnonzero(np.diff(episodes)) + 1).tolist(), count] if count else []
        for start, stop in pairwise(edges):
            yield int(episodes[start]), Run(path, group, start, stop - start), content[start:stop]


def _bytes(columns: Mapping[str, "pyarrow.ChunkedArray"], names: Sequence[str], count: int) -> NDArray[np.uint8]:
    """The numbers of each row as bytes, (R, bytes), equal wherever and however wide they are stored."""
    parts = [np.zeros((count, 0), np.uint8)]
    for name in names:
        if name in columns:
            try:
                values = typed(name, numbers(name, columns[name]))
            except BadDataError:  # it will be said when the episode is read
                continue
            parts.append(np.ascontiguousarray(values).view(np.uint8).reshape(count, -1))
    return np.ascontiguousarray(np.concatenate(parts, axis=1))


def typed(name: str, values: NDArray[Any], *, exact: bool = False) -> NDArray[Any]:
    """Numbers (T, D) as a store keeps them: int64, float32, and float64 for clocks, and where it is `exact`.

    Raises:
        BadDataError: "out_of_range", for an integer that int64 can't hold.
    """
    if values.dtype.kind == "u" and len(values) and values.max() >= 1 << 63:
        raise BadDataError("out_of_range", f"{name} holds {values.max()}, more than an int64 can")
    if values.dtype.kind in "iub":
        return values.astype(np.int64)
    clock = exact or (name != TIME and name.rpartition(".")[2].endswith(TIME))
    with np.errstate(over="ignore"):  # what is infinite then is refused as such
        return values.astype(np.float64 if clock and values.dtype == np.float64 else np.float32)


def read_runs(
    files: Mapping[str, SourceFile], runs: Sequence[Run], names: Collection[str]
) -> Iterator[dict[str, "pyarrow.ChunkedArray"]]:
    """Those columns of some runs, one after another.

    Raises:
        BadDataError: as `Table.read` does.
        OSError: when a file can't be read.
    """
    for path, of_file in groupby(runs, lambda run: run.file):
        with open_table(files[path]) as table:
            for run in of_file:
                columns = table.read(run.group, names)
                yield {name: column.slice(run.start, run.count) for name, column in columns.items()}
