"""The details of any node, gathered once and kept beside its record.

Records are write-once and what they name never changes, so neither do the details: `<root>/details/`
holds them as JSON. That bounds what publishing costs, and keeps a page whole after its data are gone.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from flows.lineage.sections import Section
from storage_schemas.documents import find_document, write_document
from storage_schemas.errors import DamagedError, UserError
from storage_schemas.lineage.records import LineageGraph, LineageRecord
from storage_schemas.location import Location, locate

if TYPE_CHECKING:
    from storage_schemas.store.dataset import Dataset

FOLDER = "details"
FORMAT = 1

Details = Mapping[str, Sequence[Section]]
"""The sections of each node."""
Gatherers = Mapping[str, Callable[[LineageGraph, LineageRecord], list[Section]]]
"""What gathers the details of each kind of node."""
Opened = Mapping[str, "Dataset"]
"""Dataset versions that a caller has opened already, by their nodes."""
NOTHING_OPENED: Opened = MappingProxyType({})


class _Kept(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int
    identity: str
    sections: tuple[Section, ...]


def details_of(
    graph: LineageGraph,
    nodes: Iterable[str],
    *,
    keep: bool = False,
    opened: Opened = NOTHING_OPENED,
) -> dict[str, Sequence[Section]]:
    """The details of some nodes; unknown nodes have none.

    Args:
        graph: all records.
        nodes: whose details are wanted.
        keep: write down what was gathered now, for the next time.
        opened: dataset versions that are opened already, by their nodes.
    """
    gatherers = _gatherers(opened)
    return {node: _details(graph, graph.records[node], gatherers, keep) for node in nodes if node in graph}


def _details(graph: LineageGraph, record: LineageRecord, gatherers: Gatherers, keep: bool) -> Sequence[Section]:
    location = locate(graph.root) / FOLDER / record.kind / f"{record.name}@{record.version}.json"
    kept = _read_kept(location, record)
    if kept is not None:
        return kept
    try:
        sections = tuple(gatherers[record.kind](graph, record))
    except (UserError, OSError) as error:  # gone, or not what it was
        return (Section(title="Details", text=f"They can't be read: {error}"),)
    if keep and (record.kind != "source" or graph.children(record.node)):
        write_document(location, _Kept(format=FORMAT, identity=record.identity, sections=sections))
    return sections


def _read_kept(location: Location, record: LineageRecord) -> Sequence[Section] | None:
    """What was kept; None when nothing was, or nothing that this version of the code can use."""
    try:
        kept = find_document(location, _Kept)
    except DamagedError:
        return None
    return kept.sections if kept and (kept.format, kept.identity) == (FORMAT, record.identity) else None


def _gatherers(opened: Opened) -> Gatherers:
    from flows.lineage import data, learned

    return {
        "source": partial(data.of_source, opened=opened),
        "dataset": partial(data.of_dataset, opened=opened),
        "checkpoint": learned.of_checkpoint,
        "evaluation": learned.of_evaluation,
    }
