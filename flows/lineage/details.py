"""The details of any node, gathered once and kept beside its record.

Records are write-once and what they name never changes, so neither do the details: `<root>/details/`
holds them as JSON. That bounds what publishing costs, and keeps a page whole after its data are gone.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

from pydantic import BaseModel, ConfigDict, ValidationError

from flows.lineage.sections import Section
from storage_schemas.errors import UserError
from storage_schemas.lineage.records import LineageGraph, LineageRecord
from storage_schemas.location import Location, locate
from storage_schemas.store.shards import DamagedError

FOLDER = "details"
FORMAT = 1
MAX_BYTES = 1 << 20

Details = Mapping[str, Sequence[Section]]
"""Node -> its sections."""


class _Kept(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int
    identity: str
    sections: tuple[Section, ...]


def details_of(graph: LineageGraph, nodes: Iterable[str], *, keep: bool = False) -> dict[str, Sequence[Section]]:
    """The details of some nodes; unknown nodes have none.

    Args:
        graph: all records.
        nodes: whose details are wanted.
        keep: write down what was gathered now, for the next time.
    """
    return {node: _details(graph, graph.records[node], keep) for node in nodes if node in graph}


def _details(graph: LineageGraph, record: LineageRecord, keep: bool) -> Sequence[Section]:
    place = locate(graph.root) / FOLDER / record.kind / f"{record.name}@{record.version}.json"
    held = _held(place, record)
    if held is not None:
        return held
    try:
        sections = tuple(_gatherers()[record.kind](graph, record))
    except (UserError, DamagedError, OSError) as error:  # gone, or not what it was
        return (Section(title="Details", text=f"They can't be read: {error}"),)
    if keep and (record.kind != "source" or graph.children(record.node)):
        kept = _Kept(format=FORMAT, identity=record.identity, sections=sections)
        place.write_bytes(kept.model_dump_json(indent=1).encode())
    return sections


def _held(place: Location, record: LineageRecord) -> Sequence[Section] | None:
    """What was kept; None when nothing was, or nothing that this version of the code can use."""
    try:
        found = _Kept.model_validate_json(place.read_bytes(0, MAX_BYTES))
    except (FileNotFoundError, ValidationError):
        return None
    return found.sections if (found.format, found.identity) == (FORMAT, record.identity) else None


def _gatherers() -> Mapping[str, Callable[[LineageGraph, LineageRecord], list[Section]]]:
    from flows.lineage import data, learned

    return {
        "source": data.of_source,
        "dataset": data.of_dataset,
        "checkpoint": learned.of_checkpoint,
        "evaluation": learned.of_evaluation,
    }
