"""A consistent copy of a dataset, also while others write to it; made again, it copies only what is new.

The log says what a version consists of, so the order is everything: the log is listed first, what it names is copied,
and the log is written last, oldest entry first. Whatever interrupts the copy, the target is a dataset at some version.
"""

import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from storage_schemas.catalog.delta import is_table, open_table
from storage_schemas.catalog.table import open_dataset_table
from storage_schemas.catalog.versions import tags
from storage_schemas.documents import write_document
from storage_schemas.errors import UserError
from storage_schemas.location import Location, locate, persistent
from storage_schemas.maintenance.orphans import TABLES, is_unfinished, named_files

_ENTRY = re.compile(r"(\d{20})\.(json|checkpoint\.parquet)")
_THREADS = 4


@dataclass(frozen=True, kw_only=True)
class BackupReport:
    """What was copied."""

    store_uri: str
    target_uri: str
    version: int
    """Newest version of the copy."""
    copied: int
    """Files."""
    bytes: int
    present: int
    """Files that an earlier copy had brought."""


@dataclass(frozen=True, kw_only=True)
class _Log:
    """The entries of a table's log that are copied, oldest first."""

    table: str
    names: tuple[str, ...]
    version: int


def back_up(
    uri: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    progress: Callable[[int, int], None] | None = None,
) -> BackupReport:
    """Copy all versions of a dataset, its quarantine and its tags; cached latents and orphans are left out.

    Restoring is the same with the places exchanged.

    Args:
        uri: The dataset.
        target: Where the copy goes: nothing yet, or an earlier copy of the same dataset.
        progress: Called with the number of files that are done, and of all.

    Raises:
        UserError: when there is no dataset, the target is something else or newer, or a file vanishes underneath.
    """
    source, goal = locate(uri), locate(target)
    _check_apart(source, goal)
    logs = [_log(source, table) for table in TABLES if table == "episodes" or is_table(source / table)]
    _check_target(source, goal, logs[0])
    data = _data(source)
    copies = {info.name: info.bytes for info in goal.files()}
    todo = [name for name, size in data.items() if copies.get(name) != size]
    # the log of the episodes comes last: whoever opens the copy finds all that it names
    entries = [f"{log.table}/_delta_log/{name}" for log in reversed(logs) for name in log.names]
    new = [name for name in entries if name not in copies]
    total, sizes = len(todo) + len(new), 0
    for done, size in enumerate(_copied(source, goal, todo, new), 1):
        sizes += size
        if progress:
            progress(done, total)
    marks = _copy_tags(source, goal, logs[0].version)
    return BackupReport(
        store_uri=source.uri,
        target_uri=goal.uri,
        version=logs[0].version,
        copied=total + marks,
        bytes=sizes,
        present=len(data) + len(entries) - total,
    )


def _log(location: Location, table: str) -> _Log:
    """The log as it stands now, up to the first gap that a listing under way may have left."""
    if table == "episodes":
        open_dataset_table(location)
    names = (location / table / "_delta_log").names()
    entries = [(int(match[1]), match[0]) for match in map(_ENTRY.fullmatch, names) if match]
    versions = sorted({version for version, name in entries if name.endswith(".json")})
    newest = next((a for a, b in pairwise(versions) if b != a + 1), versions[-1])
    return _Log(
        table=table, names=tuple(name for version, name in sorted(entries) if version <= newest), version=newest
    )


def _check_apart(source: Location, goal: Location) -> None:
    """Refuse a target that is the dataset itself, or lies inside it, however it is spelt."""
    ours, theirs = (Path(end.path).resolve() if end.is_local else Path(end.path) for end in (source, goal))
    if source.is_local == goal.is_local and theirs.is_relative_to(ours):
        raise UserError(f"{goal.uri} lies in the dataset {source.uri} itself: name another place for the copy")


def _check_target(source: Location, goal: Location, log: _Log) -> None:
    if not is_table(goal / "episodes"):
        strangers = [name for name in goal.names() if name not in (*TABLES, "parts", "tags")]
        if strangers:
            raise UserError(f"{goal.uri} holds {strangers[0]}, so it is no copy of a dataset: name an empty place")
        return
    theirs = open_dataset_table(goal)
    if theirs.metadata().id != open_table(source / "episodes").metadata().id:
        raise UserError(f"{goal.uri} is a copy of another dataset than {source.uri}")
    if theirs.version() > log.version:
        raise UserError(
            f"{goal.uri} is at version {theirs.version()}, {source.uri} only at {log.version}: "
            "the older one can't go over the newer"
        )


def _data(source: Location) -> dict[str, int]:
    """Sizes of all files that some version names, by their paths below the dataset."""
    named = named_files(source)
    sizes: dict[str, int] = {}
    for folder in ("parts", *TABLES):
        for info in (source / folder).files():
            name = f"{folder}/{info.name}"
            whole = "/".join(name.split("/")[:2]) if folder == "parts" else name
            if whole in named and not is_unfinished(name):
                sizes[name] = info.bytes
    return sizes


def _copied(source: Location, goal: Location, data: list[str], entries: list[str]) -> Iterator[int]:
    """Copy, data before log, and yield the bytes of each file."""

    def copy(name: str) -> int:
        return _copy(source, goal, name)

    with ThreadPoolExecutor(_THREADS) as pool:
        yield from pool.map(copy, data)
    yield from map(copy, entries)


def _copy(source: Location, goal: Location, name: str) -> int:
    try:
        content = persistent(source, (source / name).read_bytes)
    except FileNotFoundError as error:
        raise UserError(f"{source.uri}: {name} vanished during the copy: is a gc running? start it again") from error
    persistent(goal, lambda: (goal / name).write_bytes(content))
    return len(content)


def _copy_tags(source: Location, goal: Location, newest: int) -> int:
    """Bring the tags of versions that the copy has, and drop those that the dataset has no more."""
    kept = [tag for tag in tags(source.uri) if tag.version <= newest]
    for name in set((goal / "tags").names()) - {f"{tag.name}.json" for tag in kept}:
        (goal / "tags" / name).remove()
    for tag in kept:
        write_document(goal / "tags" / f"{tag.name}.json", tag)
    return len(kept)
