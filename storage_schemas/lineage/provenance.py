"""From a node of the lineage to every raw file that it saw, and back.

Asked of the episode tables alone, column by column: no frame is read, and a data file that several
versions share is read once.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import reduce
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import pyarrow.compute as pc

from storage_schemas.catalog.delta import data_files, read_rows
from storage_schemas.catalog.table import Snapshot
from storage_schemas.catalog.versions import open_version
from storage_schemas.errors import UserError
from storage_schemas.lineage.records import LineageGraph, LineageRecord, kind_of
from storage_schemas.location import Location, locate

if TYPE_CHECKING:
    from deltalake import DeltaTable

_COLUMNS = {
    "source_uri": "source_uri",
    "source_fingerprint": "fingerprint",
    "episode_id": "episode_id",
    "collection": "collection",
    "split": "split",
    "length": "steps",
}
_RowsByFile = dict[str, list[dict[str, Any]]]
"""Data file of a table -> its rows that are wanted."""
_LEARNED = ("checkpoint", "evaluation")


@dataclass(frozen=True, kw_only=True)
class RawEpisode:
    """An episode of a dataset version, and the place in a raw file that it was made from."""

    dataset: str
    """Node of the dataset version."""
    source_uri: str
    fingerprint: str
    """Hash of the raw content."""
    episode_id: str
    collection: str
    split: str
    """Training reads `train`; `val` is held out and only evaluated on."""
    steps: int

    @property
    def file(self) -> str:
        """The raw file, without the place inside it."""
        return self.source_uri.partition("#")[0]


@dataclass(frozen=True, kw_only=True)
class RawFiles:
    """What a node leads back to."""

    datasets: tuple[str, ...]
    """Dataset versions that were asked."""
    episodes: tuple[RawEpisode, ...]
    missing: Mapping[str, str] = field(default_factory=dict)
    """Dataset versions that could not be asked, and why: without them the list is not complete."""

    @property
    def files(self) -> list[str]:
        """The raw files, each once, in the order of ingestion."""
        return list(dict.fromkeys(episode.file for episode in self.episodes))


@dataclass(frozen=True, kw_only=True)
class Sightings:
    """What a raw file went into."""

    episodes: tuple[RawEpisode, ...]
    """Episodes made from it, once for every dataset version that holds them."""
    nodes: tuple[str, ...]
    """Dataset versions that hold it, then checkpoints and evaluations that were made from those."""
    missing: Mapping[str, str] = field(default_factory=dict)
    """Dataset versions that could not be asked, and why."""


def datasets_of(graph: LineageGraph, node: str) -> list[str]:
    """The dataset versions that a node read.

    For a checkpoint these are its own and those of the checkpoints that it started from, but not the
    versions before them: what was taken out of a dataset before training was not seen. For a source they
    are the versions that it was ingested into.
    """
    if kind_of(node) == "source":
        return [child for child in graph.children(node) if kind_of(child) == "dataset"]
    seen = [node]
    for current in seen:
        if kind_of(current) in _LEARNED:
            seen.extend(parent for parent in graph.parents(current) if parent not in seen)
    return [name for name in seen if kind_of(name) == "dataset"]


def raw_files(graph: LineageGraph, node: str, opened: Mapping[str, Snapshot] = MappingProxyType({})) -> RawFiles:
    """Every raw file that `node` leads back to, episode by episode; `opened` are dataset versions read already."""
    chosen = _below(graph.records[node].uri) if kind_of(node) == "source" and node in graph else None
    datasets = datasets_of(graph, node)
    episodes, missing = _ask(graph, datasets, None, opened)
    kept = tuple(episode for episode in episodes if chosen is None or chosen(episode.file))
    return RawFiles(datasets=tuple(datasets), episodes=kept, missing=missing)


def sightings(graph: LineageGraph, uris: Collection[str]) -> Sightings:
    """Everything that saw a raw file.

    Args:
        graph: of all records.
        uris: the file, or one place inside it (`file#record=3`), in every spelling that may be meant.
    """
    datasets = [node for node in graph.nodes if kind_of(node) == "dataset"]
    episodes, missing = _ask(graph, datasets, uris)
    holding = list(dict.fromkeys(episode.dataset for episode in episodes))
    learned = {child for node in holding for child in graph.children(node) if kind_of(child) in _LEARNED}
    learned |= {name for node in learned for name in graph.downstream(node)}
    nodes = (*holding, *(node for node in graph.nodes if node in learned))
    return Sightings(episodes=tuple(episodes), nodes=nodes, missing=missing)


def _below(source: str) -> Callable[[str], bool]:
    """Whether a raw file belongs to a source, which is a file, a folder or a glob."""
    escaped = source.replace("%", "%25").replace("#", "%23")  # as the URIs of raw files are
    head = re.split(r"[*?\[]", escaped)[0]
    if head != escaped:
        folder = head.rpartition("/")[0] + "/"
        return lambda file: file.startswith(folder)
    return lambda file: file == escaped or file.startswith(escaped.rstrip("/") + "/")


def _ask(
    graph: LineageGraph,
    nodes: Collection[str],
    uris: Collection[str] | None,
    opened: Mapping[str, Snapshot] = MappingProxyType({}),
) -> tuple[list[RawEpisode], dict[str, str]]:
    episodes: list[RawEpisode] = []
    missing: dict[str, str] = {}
    read: _RowsByFile = {}
    for node in nodes:
        try:
            rows = _of_snapshot(opened[node]) if node in opened else _asked(_recorded(graph, node), uris, read)
        except UserError as error:
            missing[node] = str(error)
        else:
            episodes.extend(RawEpisode(dataset=node, **row) for row in rows)
    return episodes, missing


def _of_snapshot(snapshot: Snapshot) -> list[dict[str, Any]]:
    """All rows of a version that is in memory."""
    values = zip(*(snapshot.episodes.column(name) for name in _COLUMNS), strict=True)
    return [dict(zip(_COLUMNS.values(), row, strict=True)) for row in values]


def _recorded(graph: LineageGraph, node: str) -> LineageRecord:
    record = graph.records.get(node)
    if record is None or not record.version.isdecimal():
        raise UserError("there is no record of a version of a dataset")
    return record


def _asked(record: LineageRecord, uris: Collection[str] | None, read: _RowsByFile) -> list[dict[str, Any]]:
    location = locate(record.uri)
    table = open_version(location, int(record.version))
    if record.identity != f"{table.metadata().id}@{record.version}":
        raise UserError(f"{record.uri} is another dataset by now")
    return list(_rows(location / "episodes", table, uris, read))


def _rows(
    location: Location, table: "DeltaTable", uris: Collection[str] | None, read: _RowsByFile
) -> Iterator[dict[str, Any]]:
    """Rows of one version; `read` keeps those of data files that were read already, for the next version."""
    for file in data_files(table):
        uri = f"{location.uri}/{file['path']}"
        if uri not in read:
            read[uri] = [] if uris is not None and not _may_hold(file, uris) else _read(location, table, file, uris)
        yield from read[uri]


def _read(
    location: Location, table: "DeltaTable", file: dict[str, Any], uris: Collection[str] | None
) -> list[dict[str, Any]]:
    rows = read_rows(location, table, list(_COLUMNS), [file])
    if uris is not None:
        column = rows["source_uri"]
        ranges = (pc.and_(pc.greater_equal(column, uri), pc.less(column, _after(uri))) for uri in uris)
        rows = rows.filter(reduce(pc.or_, ranges))  # leaves little for Python to look at one by one
    named = rows.rename_columns(list(_COLUMNS.values())).to_pylist()
    return [row for row in named if uris is None or _is_of(row["source_uri"], uris)]


def _is_of(source_uri: str, uris: Collection[str]) -> bool:
    return source_uri in uris or source_uri.partition("#")[0] in uris


def _may_hold(file: dict[str, Any], uris: Collection[str]) -> bool:
    """Whether a data file can have rows of some URIs, by its smallest and largest."""
    smallest, largest = file["min.source_uri"], file["max.source_uri"]
    return smallest is None or largest is None or any(smallest < _after(uri) and largest >= uri for uri in uris)


def _after(uri: str) -> str:
    """What comes after all places inside a file: `$` follows `#`."""
    return uri + "$"
