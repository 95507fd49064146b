"""What a source held that could not become an episode, and why: a Delta table beside the episodes."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime

import pyarrow as pa

from storage_schemas.catalog import append, attempt, create_table, is_table, known_sources, open_table
from storage_schemas.location import Location, locate


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
    return attempt(lambda: _add_once(location, rows))


def _add_once(location: Location, rows: Sequence[QuarantineRow]) -> int:
    table = open_table(location)
    held = table.to_pyarrow_table(columns=["source_uri", "fingerprint", "reason"]).to_pylist()
    seen = {(row["source_uri"], row["fingerprint"], row["reason"]) for row in held}
    unique = {(row.source_uri, row.fingerprint, row.reason): row for row in rows}
    news = [row for key, row in unique.items() if key not in seen]
    if news:
        append(
            table, pa.table({f.name: [getattr(row, f.name) for row in news] for f in fields(QuarantineRow)}, _SCHEMA)
        )
    return len(news)


def quarantined(uri: str | os.PathLike[str]) -> list[QuarantineRow]:
    """What is in quarantine, oldest first; what has become an episode since does not count.

    Raises:
        UserError: when there is no dataset.
    """
    location = locate(uri)
    known = known_sources(location.uri)
    known |= {(source.partition("#")[0], fingerprint) for source, fingerprint in known}
    if not is_table(location / "quarantine"):
        return []
    held = open_table(location / "quarantine").to_pyarrow_table().sort_by("time").to_pylist()
    rows = [QuarantineRow(**{**row, "time": row["time"].astimezone(UTC)}) for row in held]
    return [row for row in rows if (row.source_uri, row.fingerprint) not in known]
