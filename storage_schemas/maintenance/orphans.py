"""What writers that died have left behind: parts that no version names, table files that no commit names."""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from urllib.parse import unquote

from storage_schemas.catalog.delta import is_table, open_table, read_columns
from storage_schemas.catalog.table import open_dataset_table
from storage_schemas.errors import DamagedError
from storage_schemas.location import FileInfo, Location, locate

SAFETY_AGE = timedelta(hours=24)
TABLES = ("episodes", "quarantine")


@dataclass(frozen=True, kw_only=True)
class Orphan:
    """Something that no version of the dataset names."""

    name: str
    """Path below the dataset."""
    bytes: int
    modified: datetime
    """When its newest file was written."""


@dataclass(frozen=True, kw_only=True)
class OrphanReport:
    """What was found: orphans older than the safety age, and how many are younger and so may be in the making."""

    orphans: tuple[Orphan, ...]
    young: int
    removed: bool

    @property
    def bytes(self) -> int:
        """What the orphans take."""
        return sum(orphan.bytes for orphan in self.orphans)


def collect_orphans(uri: str | os.PathLike[str], *, age: timedelta = SAFETY_AGE, remove: bool = False) -> OrphanReport:
    """Find, and when asked remove, what crashed writers left.

    What any version names is kept, also versions that are not the newest: time travel goes on working. A writer
    needs less than the safety age from its part's last byte to its commit; one that takes longer is refused by
    `commit`, which looks whether its parts are still there.

    Raises:
        UserError: when there is no dataset or the storage fails.
        DamagedError: when the log is damaged, so that nobody can say what is an orphan.
    """
    location = locate(uri)
    open_dataset_table(location)
    candidates = _candidates(location)  # before the log is read: what is committed in between is named there
    named = named_files(location)
    orphans = [orphan for orphan in candidates if orphan.name not in named]
    limit = datetime.now(UTC) - age
    old = tuple(orphan for orphan in orphans if orphan.modified <= limit)
    if remove:
        for orphan in old:
            _remove(location / orphan.name)
    return OrphanReport(orphans=old, young=len(orphans) - len(old), removed=remove)


def _remove(orphan: Location) -> None:
    document = orphan / "zarr.json"
    if document.exists():
        document.remove()  # first: a part without it can't be committed any more
    if orphan.exists():
        orphan.remove()


def _candidates(location: Location) -> list[Orphan]:
    """All parts, data files of tables, and temporary files."""
    parts: dict[str, list[FileInfo]] = {}
    for info in (location / "parts").files():
        parts.setdefault(info.name.partition("/")[0], []).append(info)
    if location.is_local:
        for name in (location / "parts").names():
            parts.setdefault(name, [])
    candidates = [_orphan(location, f"parts/{name}", files) for name, files in sorted(parts.items())]
    for folder in (*TABLES, "tags"):
        files = (info for info in (location / folder).files() if _is_data(info.name) or is_unfinished(info.name))
        candidates += [_orphan(location, f"{folder}/{info.name}", [info]) for info in files]
    return candidates


def _orphan(location: Location, name: str, files: list[FileInfo]) -> Orphan:
    if files:
        modified = max(info.modified for info in files)
    else:  # a folder in which nothing has been written yet
        modified = datetime.fromtimestamp(os.stat((location / name).path).st_mtime, UTC)  # noqa: PTH116
    return Orphan(name=name, bytes=sum(info.bytes for info in files), modified=modified)


def _is_data(name: str) -> bool:
    return "/" not in name and name.endswith(".parquet")


def is_unfinished(name: str) -> bool:
    """Whether a file is one that a writer has yet to rename."""
    last = name.rpartition("/")[2]
    return last.startswith((".tmp-", "_commit_")) or last.endswith(".tmp")


def named_files(location: Location) -> set[str]:
    """Data files of the tables and folders of parts that some version names, as paths below the dataset."""
    named: set[str] = set()
    for table in TABLES:
        if is_table(location / table):
            files = _data_files(location / table)
            named |= {f"{table}/{name}" for name in files}
            if table == "episodes":
                named |= {f"parts/{part}" for part in _parts(location / table, files)}
    return named


def _data_files(table: Location) -> set[str]:
    """Data files that any commit has added; all that are there when the log has lost its beginning."""
    log = table / "_delta_log"
    newest = open_table(table).version()
    names = [f"{version:020}.json" for version in range(newest + 1)]
    entries = set(log.names())
    if not entries.issuperset(names):
        return {info.name for info in table.files() if _is_data(info.name)}
    try:
        actions = [json.loads(line) for text in log.read_many(names) for line in text.splitlines() if line.strip()]
    except ValueError as error:
        raise DamagedError(f"{log.uri} is damaged: {error}") from error
    return {unquote(action["add"]["path"]) for action in actions if "add" in action}


def _parts(table: Location, files: Iterable[str]) -> set[str]:
    """Parts that the rows in those data files name."""
    parts: set[str] = set()
    for name in sorted(files):
        parts.update(read_columns(table / name, ["part"])["part"].unique().to_pylist())
    return parts
