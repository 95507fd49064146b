"""What a source held that could not become an episode, and why: a Delta table beside the episodes."""

import os
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

import pyarrow as pa

from storage_schemas.catalog.commits import CommitResult, attempt, commit
from storage_schemas.catalog.delta import create_table, exclusive, is_table, open_table, read_rows
from storage_schemas.catalog.rows import EpisodeTable
from storage_schemas.catalog.table import dataset_exists, load, open_dataset_table
from storage_schemas.errors import UserError
from storage_schemas.location import Location, locate

if TYPE_CHECKING:
    from deltalake import DeltaTable


@dataclass(frozen=True, kw_only=True)
class QuarantineRow:
    """One record or file that was turned away."""

    source_uri: str
    fingerprint: str
    reason: str
    """Short stable word: `crc_mismatch`, `truncated`, ..."""
    detail: str
    """One readable line."""
    run_id: str
    time: datetime
    source: str = ""
    """The source whose ingestion turned it away, with its format; empty in rows of older versions."""

    @property
    def key(self) -> tuple[str, str, str]:
        """What makes two entries the same."""
        return self.source_uri, self.fingerprint, self.reason


WITHDRAWN = "withdrawn"
"""Reason of an entry that a user made: the episode was there and is not to come back."""

_SCHEMA = pa.schema(
    [
        ("source_uri", pa.string()),
        ("fingerprint", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("run_id", pa.string()),
        ("time", pa.timestamp("us", tz="UTC")),
        ("source", pa.string()),
    ]
)


def add_quarantine(uri: str | os.PathLike[str], rows: Sequence[QuarantineRow]) -> int:
    """Record what was turned away; returns how many are new.

    What is recorded already with the same source, fingerprint and reason is left out. The dataset's
    version does not change. Safe with any number of writers at once.

    Raises:
        TimeoutError: when other writers never left a gap.
    """
    location = locate(uri) / "quarantine"
    if not rows:
        return 0
    if not is_table(location):
        create_table(location, _SCHEMA, {})
    return attempt(location, lambda: _add_once(location, rows))


def _add_once(location: Location, rows: Sequence[QuarantineRow]) -> int:
    table = open_table(location)
    seen = {entry.key for entry in _entries(location, table)}
    unique = {row.key: row for row in rows}
    new = [row for key, row in unique.items() if key not in seen]
    if new:
        _write(table, new, "append")
    return len(new)


def release(uri: str | os.PathLike[str], is_over: Callable[[QuarantineRow], bool]) -> int:
    """Take out of quarantine what is not so any more; returns how many entries that were. What a user withdrew stays.

    Raises:
        TimeoutError: when other writers never left a gap.
    """
    location = locate(uri) / "quarantine"
    return attempt(location, lambda: _release_once(location, is_over)) if is_table(location) else 0


def _release_once(location: Location, is_over: Callable[[QuarantineRow], bool]) -> int:
    table = open_table(location)
    entries = _entries(location, table)
    kept = [entry for entry in entries if entry.reason == WITHDRAWN or not is_over(entry)]
    if len(kept) < len(entries):
        _write(table, kept, "overwrite")
    return len(entries) - len(kept)


def _entries(location: Location, table: "DeltaTable") -> list[QuarantineRow]:
    """All rows; a column that an older table lacks, or left empty, has its default."""
    rows = read_rows(location, table).sort_by("time").to_pylist()
    given = ({name: value for name, value in row.items() if value is not None} for row in rows)
    return [QuarantineRow(**{**row, "time": row["time"].astimezone(UTC)}) for row in given]


def _write(table: "DeltaTable", rows: Sequence[QuarantineRow], mode: Literal["append", "overwrite"]) -> None:
    from deltalake import write_deltalake

    data = pa.table({f.name: [getattr(row, f.name) for row in rows] for f in fields(QuarantineRow)}, _SCHEMA)
    # merge: tables of older versions lack the column `source`
    write_deltalake(table, data, mode=mode, schema_mode="merge", commit_properties=exclusive(table))


def quarantined(uri: str | os.PathLike[str], episodes: EpisodeTable | None = None) -> list[QuarantineRow]:
    """What is in quarantine, oldest first; what has become an episode since does not count.

    Args:
        uri: The dataset.
        episodes: Those that count; None reads the newest version's.

    Raises:
        UserError: when there is neither a dataset nor a quarantine.
    """
    location = locate(uri)
    some = is_table(location / "quarantine")
    if episodes is None and (dataset_exists(location.uri) or not some):  # a source may have had nothing to store
        episodes = load(location, open_dataset_table(location)).episodes
    known = set() if episodes is None else episodes.sources()
    # a video is turned away as a file, but its episodes name their clips in it
    known |= {(source.partition("#")[0], fingerprint) for source, fingerprint in known}
    if not some:
        return []
    entries = _entries(location / "quarantine", open_table(location / "quarantine"))
    return [row for row in entries if (row.source_uri, row.fingerprint) not in known]


def withdraw(
    uri: str | os.PathLike[str], episode_ids: Sequence[str], *, detail: str = "", forget: bool = False
) -> CommitResult:
    """Take episodes out of the dataset: a new version without them. Older versions and the parts stay.

    The episodes' sources go into quarantine with the reason `WITHDRAWN`, so that ingestion leaves them
    alone from now on.

    Args:
        uri: The dataset.
        episode_ids: Episodes of the newest version.
        detail: Why, in one line.
        forget: Only take them out; the next ingestion of their source brings them back.

    Raises:
        UserError: when there is no dataset or no such episode in its newest version.
    """
    location = locate(uri)
    columns = ["episode_id", "source_uri", "source_fingerprint"]
    table = open_dataset_table(location)
    rows = read_rows(location / "episodes", table, columns).to_pylist()
    sources = {row["episode_id"]: (row["source_uri"], row["source_fingerprint"]) for row in rows}
    if absent := [name for name in episode_ids if name not in sources]:
        raise UserError(f"{location.uri} has no episode {absent[0]!r} in version {table.version()}")
    if not forget:  # first, so that a crash in between can be repaired by the same command
        now, run = datetime.now(UTC), uuid.uuid4().hex
        entries = [
            QuarantineRow(
                source_uri=source, fingerprint=fingerprint, reason=WITHDRAWN, detail=detail, run_id=run, time=now
            )
            for source, fingerprint in (sources[name] for name in episode_ids)
        ]
        add_quarantine(location.uri, entries)
    return commit(location.uri, [], retire=episode_ids)


def withdrawn_fingerprints(uri: str | os.PathLike[str], episodes: EpisodeTable | None = None) -> set[str]:
    """Fingerprints of what a user has taken out; ingestion does not bring it back. See `quarantined`."""
    return {entry.fingerprint for entry in quarantined(uri, episodes) if entry.reason == WITHDRAWN}
