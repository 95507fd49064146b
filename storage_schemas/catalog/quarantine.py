"""What a source held that could not become an episode, and why: a Delta table beside the episodes."""

import os
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime

import pyarrow as pa

from storage_schemas.catalog.commits import CommitResult, attempt, commit
from storage_schemas.catalog.delta import append, create_table, is_table, open_table
from storage_schemas.catalog.rows import EpisodeTable
from storage_schemas.catalog.table import load, open_dataset_table
from storage_schemas.errors import UserError
from storage_schemas.location import Location, locate, persistent


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
    entries = table.to_pyarrow_table(columns=["source_uri", "fingerprint", "reason"]).to_pylist()
    seen = {(row["source_uri"], row["fingerprint"], row["reason"]) for row in entries}
    unique = {(row.source_uri, row.fingerprint, row.reason): row for row in rows}
    new = [row for key, row in unique.items() if key not in seen]
    if new:
        append(table, pa.table({f.name: [getattr(row, f.name) for row in new] for f in fields(QuarantineRow)}, _SCHEMA))
    return len(new)


def quarantined(uri: str | os.PathLike[str], episodes: EpisodeTable | None = None) -> list[QuarantineRow]:
    """What is in quarantine, oldest first; what has become an episode since does not count.

    Args:
        uri: The dataset.
        episodes: Those that count; None reads the newest version's.

    Raises:
        UserError: when there is no dataset.
    """
    location = locate(uri)
    if episodes is None:
        episodes = load(location, open_dataset_table(location)).episodes
    known = episodes.sources()
    known |= {(source.partition("#")[0], fingerprint) for source, fingerprint in known}
    if not is_table(location / "quarantine"):
        return []
    table = open_table(location / "quarantine")
    rows = persistent(location, table.to_pyarrow_table).sort_by("time").to_pylist()
    entries = [QuarantineRow(**{**row, "time": row["time"].astimezone(UTC)}) for row in rows]
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
    rows = persistent(location, lambda: table.to_pyarrow_table(columns=columns)).to_pylist()
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
