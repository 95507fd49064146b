"""Versions of a dataset by number and by name (tags), and what changed between two of them."""

import os
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from storage_schemas.catalog.delta import open_table
from storage_schemas.catalog.table import Snapshot, load, open_dataset_table
from storage_schemas.documents import find_document, read_document, write_document
from storage_schemas.errors import UserError
from storage_schemas.location import Location, locate

if TYPE_CHECKING:
    from deltalake import DeltaTable

_NAME = re.compile(r"[A-Za-z][\w.-]{0,99}", re.ASCII)

Version = int | str | None
"""A dataset version: its number, a tag, or None for the newest."""


@dataclass(frozen=True, kw_only=True)
class Tag:
    """A name for one version of one dataset."""

    name: str
    version: int
    table_id: str
    """Identity of the log that the version belongs to."""
    created: str
    """ISO 8601 in UTC."""


def set_tag(uri: str | os.PathLike[str], name: str, version: Version = None, *, move: bool = False) -> Tag:
    """Give a version, the newest when None, a name.

    Args:
        uri: The dataset.
        name: A letter, then letters, digits, dots, dashes and underscores.
        version: Which version it names.
        move: Take the name away from the version that has it.

    Raises:
        UserError: when there is no such version, the name can't be one, or it names another version already.
    """
    if not _NAME.fullmatch(name):
        raise UserError(f"{name!r} can't be a tag: use a letter, then letters, digits, '.', '-' and '_'")
    location = locate(uri)
    table = open_version(location, version)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    tag = Tag(name=name, version=table.version(), table_id=str(table.metadata().id), created=now)
    try:
        # of two who give a name at the same time one wins, and the other is told what it names
        write_document(_file(location, name), tag, exclusive=not move)
    except FileExistsError:
        existing = read_document(_file(location, name), Tag)
        if (existing.version, existing.table_id) == (tag.version, tag.table_id):
            return existing
        raise UserError(
            f"{location.uri} has a tag {name!r} for version {existing.version}: move it or drop it"
        ) from None
    return tag


def drop_tag(uri: str | os.PathLike[str], name: str) -> Tag:
    """Take a name away; the version stays. Returns the tag as it was. Raises UserError when there is none."""
    location = locate(uri)
    tag = _read(location, name)
    _file(location, name).remove()
    return tag


def tags(uri: str | os.PathLike[str]) -> list[Tag]:
    """All tags in the place of a dataset, by version and name, also those of a dataset that lay there before.

    Raises:
        UserError: when there is no dataset or a tag is damaged.
    """
    location = locate(uri)
    open_dataset_table(location)
    names = [name.removesuffix(".json") for name in (location / "tags").names() if name.endswith(".json")]
    return sorted((_read(location, name) for name in names), key=lambda tag: (tag.version, tag.name))


def open_version(location: Location, version: Version = None, *, newest: int | None = None) -> "DeltaTable":
    """The episode table of a dataset at a version.

    Args:
        location: The dataset.
        version: None is the newest.
        newest: A version that it is known to have: one up to this is opened at once.

    Raises:
        UserError: when there is no dataset, version or tag, or the tag is of a dataset that lay here before.
    """
    if newest is not None and isinstance(version, int) and 0 <= version <= newest:
        return open_table(location / "episodes", version)
    table = open_dataset_table(location)
    if isinstance(version, str):
        version = int(version) if version.isdecimal() else _own_tag(location, table, version).version
    newest = table.version()
    if version is None or version == newest:
        return table
    if not 0 <= version < newest:
        raise UserError(f"{location.uri} has no version {version}: its newest is {newest}")
    return open_table(location / "episodes", version)


def load_version(location: Location, version: Version = None, *, newest: int | None = None) -> Snapshot:
    """Read one version of a dataset, by number or tag. Takes and raises what `open_version` does."""
    return load(location, open_version(location, version, newest=newest))


def _own_tag(location: Location, table: "DeltaTable", name: str) -> Tag:
    tag = _read(location, name)
    if tag.table_id != str(table.metadata().id):
        raise UserError(
            f"{location.uri}: the tag {name!r} is of another dataset that lay here before: drop it or move it"
        )
    return tag


def _read(location: Location, name: str) -> Tag:
    tag = find_document(_file(location, name), Tag) if _NAME.fullmatch(name) else None
    if tag is None:
        open_dataset_table(location)  # says so when there is no dataset at all
        raise UserError(f"{location.uri} has no version or tag {name!r}: `uwm tag` lists its tags")
    return tag


def _file(location: Location, name: str) -> Location:
    return location / "tags" / f"{name}.json"


Kind = Literal["added", "removed", "changed"]


@dataclass(frozen=True, kw_only=True)
class EpisodeChange:
    """An episode that is not the same in two versions; lengths are None where it is absent."""

    episode_id: str
    kind: Kind
    source_uri: str
    length_before: int | None
    length_after: int | None


@dataclass(frozen=True, kw_only=True)
class VersionDiff:
    """What changed from one version to another."""

    before: int
    after: int
    unchanged: int
    changes: tuple[EpisodeChange, ...]

    def count(self, kind: Kind) -> int:
        """How many episodes changed in that way."""
        return sum(change.kind == kind for change in self.changes)

    @property
    def steps(self) -> int:
        """How many steps more the later version has."""
        return sum((change.length_after or 0) - (change.length_before or 0) for change in self.changes)


def diff(uri: str | os.PathLike[str], before: Version, after: Version = None) -> VersionDiff:
    """Compare two versions by what the log says; the newest when `after` is None. See `compare`.

    Raises:
        UserError: when there is no dataset or no such version.
    """
    location = locate(uri)
    return compare(load_version(location, before), load_version(location, after))


def compare(old: Snapshot, new: Snapshot) -> VersionDiff:
    """What changed between two versions of a dataset that are read already.

    An episode has changed when its content has: another fingerprint or another checksum.
    """
    old_episodes, new_episodes = _contents(old), _contents(new)
    changes = []
    for name in [*old_episodes, *(name for name in new_episodes if name not in old_episodes)]:
        a, b = old_episodes.get(name), new_episodes.get(name)
        if a != b:
            kind: Kind = "added" if a is None else "removed" if b is None else "changed"
            source: str = (b or a or {})["source_uri"]
            lengths = [row["length"] if row else None for row in (a, b)]
            changes.append(
                EpisodeChange(
                    episode_id=name, kind=kind, source_uri=source, length_before=lengths[0], length_after=lengths[1]
                )
            )
    unchanged = len(old_episodes.keys() & new_episodes.keys()) - sum(change.kind == "changed" for change in changes)
    return VersionDiff(before=old.version, after=new.version, unchanged=unchanged, changes=tuple(changes))


def _contents(snapshot: Snapshot) -> dict[str, dict[str, Any]]:
    columns = ("source_uri", "source_fingerprint", "checksum", "length")
    values = zip(*(snapshot.episodes.column(name) for name in columns), strict=True)
    rows = (dict(zip(columns, row, strict=True)) for row in values)
    return dict(zip(snapshot.episodes.episode_ids, rows, strict=True))
