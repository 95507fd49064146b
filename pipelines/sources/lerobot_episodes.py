"""Which episodes the `meta` folder of a LeRobot dataset lists, and what their tasks are.

Version 3.0 lists them in Parquet files, 2.x in lines of JSON; a folder may say that it is one and be the other.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pipelines.checks.quality import BadDataError
from pipelines.files import SourceFile
from pipelines.parquet import open_table
from pipelines.sources.lerobot_info import Info, fill

_MAX_LINES = 64 << 20
"""Bytes of a file of JSON lines."""
_OURS = "uwm/"
"""Columns of episodes that were exported from a store."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where the frames of one camera lie."""

    file: str | None
    """Path from the dataset's folder on; None when it is not known."""
    start: float | None = None
    """Seconds; None when the file belongs to this episode alone, or it is not known."""
    end: float | None = None


@dataclass(frozen=True, kw_only=True)
class Listed:
    """One episode as `meta` lists it."""

    index: int
    length: int | None = None
    tasks: tuple[str, ...] = ()
    data: str | None = None
    """Path of its rows from the dataset's folder on."""
    videos: Mapping[str, Place] = field(default_factory=dict)
    """By feature."""
    exported: Mapping[str, Any] = field(default_factory=dict)
    """What a store knew of it, see `pipelines.export`."""


@dataclass(kw_only=True)
class Lists:
    """What `meta` says."""

    episodes: dict[int, Listed] | None = None
    """None when there is no list, or none that can be read."""
    tasks: dict[int, str] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    twice: list[int] = field(default_factory=list)
    """Episodes that are listed more than once, and not alike."""


def read_lists(files: Mapping[str, SourceFile], info: Info) -> Lists:
    """Read the episodes and tasks of a dataset.

    Args:
        files: of the dataset, by their path from its folder on.
        info: of the dataset.

    Raises:
        OSError: when a file can't be read.
    """
    lists = Lists()
    tables = [path for path in sorted(files) if re.fullmatch(r"meta/episodes/.+\.parquet", path)]
    new = info.version.startswith("v3")
    found: list[Listed] = []
    for path in tables:
        with _remarking(lists, path):
            found += _from_table(files[path], files, info)
    if not tables and "meta/episodes.jsonl" in files:
        if new:
            lists.remarks.append(f"info.json says {info.version}, the files are those of version 2")
        lines = _lines(files["meta/episodes.jsonl"], lists, "episode_index")
        found = [_from_line(line, info) for line in lines]
    elif tables and not new:
        lists.remarks.append(f"info.json says {info.version or 'no version'}, the files are those of version 3")
    for episode in found:
        lists.episodes = lists.episodes or {}
        if lists.episodes.setdefault(episode.index, episode) != episode:
            lists.twice.append(episode.index)
    if lists.episodes is None:
        lists.remarks.append("meta lists no episode: they are what the rows say")
    _read_tasks(files, lists, new=bool(tables) or new)
    return lists


class _remarking:  # noqa: N801 - reads as a function
    """A file that can't be understood is a remark, and the rest goes on."""

    def __init__(self, lists: Lists, path: str) -> None:
        self._lists, self._path = lists, path

    def __enter__(self) -> None:
        """Nothing to do."""

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> bool:
        if isinstance(error, BadDataError | ValueError | KeyError | TypeError | OverflowError):
            detail = error.detail if isinstance(error, BadDataError) else f"{type(error).__name__}: {error}"
            self._lists.remarks.append(f"{self._path} can't be read: {detail}"[:300])
            return True
        return False


def _from_table(file: SourceFile, files: Mapping[str, SourceFile], info: Info) -> list[Listed]:
    with open_table(file) as table:
        wanted = {name for name in table.names if not name.startswith(("stats/", "meta/"))}
        columns = table.lists(wanted)
    count = len(columns.get("episode_index", ()))
    rows = ({name: values[row] for name, values in columns.items()} for row in range(count))
    return [_from_row(row, files, info) for row in rows if whole(row["episode_index"]) is not None]


def _from_row(row: Mapping[str, Any], files: Mapping[str, SourceFile], info: Info) -> Listed:
    index = whole(row["episode_index"])
    assert index is not None  # noqa: S101 - for the type checker
    places = {}
    for name in info.videos:
        chunk, number = (whole(row.get(f"videos/{name}/{part}_index")) for part in ("chunk", "file"))
        path = fill(info.video_path, video_key=name, chunk_index=chunk, file_index=number)
        known = chunk is not None and number is not None
        places[name] = Place(
            file=path if known else only(files, name),
            start=_seconds(row.get(f"videos/{name}/from_timestamp")),
            end=_seconds(row.get(f"videos/{name}/to_timestamp")),
        )
    chunk, number = (whole(row.get(f"data/{part}_index")) for part in ("chunk", "file"))
    known = chunk is not None and number is not None
    return Listed(
        index=index,
        length=whole(row.get("length")),
        tasks=_texts(row.get("tasks")),
        data=fill(info.data_path, chunk_index=chunk, file_index=number) if known else None,
        videos=places,
        exported={name.removeprefix(_OURS): value for name, value in row.items() if name.startswith(_OURS)},
    )


def only(files: Mapping[str, SourceFile], feature: str) -> str | None:
    """The one video of a camera, where there is one."""
    found = [path for path in files if path.startswith("videos/") and f"/{feature}/" in path]
    return found[0] if len(found) == 1 else None


def _from_line(line: Mapping[str, Any], info: Info) -> Listed:
    index = int(line["episode_index"])
    return Listed(
        index=index,
        length=whole(line.get("length")),
        tasks=_texts(line.get("tasks")),
        data=old_path(info, index),
        videos={name: Place(file=old_path(info, index, name)) for name in info.videos},
    )


_OLD_DATA = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
_OLD_VIDEO = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"


def old_path(info: Info, episode: int, feature: str = "") -> str:
    """Where version 2 keeps an episode's rows, or its frames of a camera."""
    template = info.video_path if feature else info.data_path
    if "episode_index" not in template:  # of version 3, in front of files of version 2
        template = _OLD_VIDEO if feature else _OLD_DATA
    return fill(template, episode_chunk=episode // info.chunks, episode_index=episode, video_key=feature)


def _read_tasks(files: Mapping[str, SourceFile], lists: Lists, *, new: bool) -> None:
    if (table := files.get("meta/tasks.parquet")) is not None:
        with _remarking(lists, "meta/tasks.parquet"), open_table(table) as opened:
            columns = opened.lists(opened.names)
            texts = next(values for name, values in columns.items() if values and isinstance(values[0], str))
            numbers = columns.get("task_index") or list(range(len(texts)))
            pairs = zip(map(whole, numbers), texts, strict=True)
            lists.tasks |= {number: str(text) for number, text in pairs if number is not None and text is not None}
            return
    if (lines := files.get("meta/tasks.jsonl")) is not None:
        if new:
            lists.remarks.append("tasks.jsonl in a folder of version 3")
        for line in _lines(lines, lists, "task_index"):
            if isinstance(line.get("task"), str):
                lists.tasks[int(line["task_index"])] = line["task"]


def _lines(file: SourceFile, lists: Lists, number: str) -> Iterator[dict[str, Any]]:
    """The JSON objects of a file, one a line, each with that number."""
    name = f"meta/{file.name}"
    if file.size > _MAX_LINES:
        lists.remarks.append(f"{name} has {file.size} bytes, more than {_MAX_LINES}: it is not read")
        return
    bad = 0
    for line in file.read().splitlines():
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            value = None
        if isinstance(value, dict) and whole(value.get(number)) is not None:
            yield value
        else:
            bad += 1
    if bad:
        lists.remarks.append(f"{name} has {bad} lines that are not what belongs there")


def whole(value: Any) -> int | None:
    """An integer, also where pandas made a float of it because another one was missing."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value if 0 <= value < 1 << 53 else None
    if isinstance(value, float) and math.isfinite(value) and value == int(value):
        return whole(int(value))
    return None


def _seconds(value: Any) -> float | None:
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if number and 0 <= value < 1e7 else None


def _texts(value: Any) -> tuple[str, ...]:
    values = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    return tuple(dict.fromkeys(text.strip() for text in values if isinstance(text, str) and text.strip()))
