"""Write-once records of what came from what: source -> dataset version -> checkpoint -> evaluation.

A record is one JSON file, `<root>/<kind>/<name>@<version>.json`, that is never changed once it is
there. The root lies beside the data, so that the records live and travel with it; `UWM_LINEAGE` names
another one for all commands. Everything that shows lineage is a view of these files.
"""

import hashlib
import os
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

from storage_schemas.documents import read_document, write_document
from storage_schemas.errors import UserError
from storage_schemas.location import Location, locate

KINDS = ("source", "dataset", "checkpoint", "evaluation")
"""Kinds of nodes, in the order in which data flows through them."""

ROOT_VARIABLE = "UWM_LINEAGE"

_DEPTH = 4
"""Steps from a root's parent to a thing beside it: the folder of runs, a run, its checkpoints, one of these."""

Fact = str | int | float | bool | None


@dataclass(frozen=True, kw_only=True)
class LineageRecord:
    """One node of the graph and the nodes it was made from.

    Raises:
        ValueError: when the kind is unknown, or the name or version can't be part of a node id.
    """

    kind: str
    name: str
    version: str
    identity: str
    """What makes two records the same thing: a hash or unique id of the content, never a path alone."""
    uri: str
    """Where the thing itself lies."""
    upstream: tuple[str, ...] = ()
    """Node ids of what it was made from."""
    facts: Mapping[str, Fact] = field(default_factory=dict)
    """What a reader wants to know at a glance: counts, metrics, revisions."""
    created: str = ""
    """Time of the record, ISO 8601 in UTC."""
    run_url: str = ""
    """The flow run that made it; empty when it was made without Prefect."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"unknown kind {self.kind!r}: it is one of {', '.join(KINDS)}")
        for part in (self.name, self.version):
            if part != safe_name(part):
                raise ValueError(f"{part!r} can't be part of a node id: use storage_schemas.lineage.records.safe_name")

    @property
    def node(self) -> str:
        """The id of the node: kind/name@version."""
        return f"{self.kind}/{self.name}@{self.version}"

    def document(self) -> dict[str, Any]:
        """The record as it lies on disk: plain values, with the node id first for whoever reads it."""
        return {"node": self.node} | asdict(self)


def safe_name(text: str) -> str:
    """`text` with everything that a node id, a file name or a URL might trip over replaced by dashes."""
    return re.sub(r"[^\w.-]+", "-", text, flags=re.ASCII).strip("-.")[:100].rstrip("-.") or "unnamed"


def digest(*parts: str) -> str:
    """A short stable hash of strings, for identities and versions (16 hexadecimal digits)."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def lineage_root(data_uri: str) -> str:
    """Where the lineage of `data_uri` is kept: `UWM_LINEAGE`, else the folder `lineage` beside it."""
    return os.environ.get(ROOT_VARIABLE) or (locate(data_uri).parent / "lineage").uri


def write_record(root: str, record: LineageRecord) -> LineageRecord:
    """Write `record` unless it is already there.

    The same identity under the same node id is the same thing: nothing is written and the record that
    is there is returned. Another identity gets its own node, with part of the identity's hash in its name.

    Returns:
        The record as it stands under `root`; its node id is the one to refer to.

    Raises:
        UserError: when a file in the way is not a lineage record.
    """
    stamped = replace(record, created=record.created or datetime.now(UTC).isoformat(timespec="milliseconds"))
    for candidate in _candidates(stamped):
        file = _file(root, candidate)
        try:
            write_document(file, candidate.document(), exclusive=True)
        except FileExistsError:
            existing = read_document(file, LineageRecord)
            if existing.identity == record.identity:
                return existing
        else:
            return candidate
    raise AssertionError("unreachable: the last candidate carries the whole identity hash")


def write_all(root: str, records: Iterable[LineageRecord]) -> None:
    """Bring records of another root under this one, so that every node's ancestry is in one place."""
    for record in records:
        write_record(root, record)


def _candidates(record: LineageRecord) -> Iterable[LineageRecord]:
    yield record
    hashed = hashlib.sha256(record.identity.encode()).hexdigest()
    for length in (4, 16):
        yield replace(record, name=f"{record.name}-{hashed[:length]}")


def _file(root: str, record: LineageRecord) -> Location:
    return locate(root) / record.kind / f"{record.name}@{record.version}.json"


@dataclass(frozen=True, kw_only=True)
class LineageGraph:
    """All records under a root. A node that is referred to but has no record is unknown, and shown as such."""

    root: str
    records: Mapping[str, LineageRecord]

    def __contains__(self, node: str) -> bool:
        return node in self.records

    @cached_property
    def nodes(self) -> list[str]:
        """All node ids, also the unknown ones: by kind in the order of the data flow, then by age."""
        named = {parent for record in self.records.values() for parent in record.upstream}
        return sorted({*self.records, *named}, key=self._order)

    def _order(self, node: str) -> tuple[int, str, str, int, str]:
        kind, (stem, _, version) = kind_of(node), node.rpartition("@")
        record = self.records.get(node)
        rank = KINDS.index(kind) if kind in KINDS else len(KINDS)
        return rank, record.created if record else "", stem, int(version) if version.isdecimal() else 0, version

    def parents(self, node: str) -> tuple[str, ...]:
        """What `node` was made from directly."""
        record = self.records.get(node)
        return record.upstream if record else ()

    def children(self, node: str) -> tuple[str, ...]:
        """What was made from `node` directly."""
        return tuple(self._children.get(node, ()))

    @cached_property
    def _children(self) -> dict[str, list[str]]:
        children: dict[str, list[str]] = {}
        for name in self.nodes:
            for parent in dict.fromkeys(self.parents(name)):
                children.setdefault(parent, []).append(name)
        return children

    def upstream(self, node: str) -> list[str]:
        """Everything that `node` was made from, nearest first."""
        return self._walk(node, up=True)

    def downstream(self, node: str) -> list[str]:
        """Everything that was made from `node`, nearest first."""
        return self._walk(node, up=False)

    def _walk(self, node: str, *, up: bool) -> list[str]:
        seen, order = {node}, [node]
        for current in order:
            following = self.parents(current) if up else self.children(current)
            fresh = [name for name in dict.fromkeys(following) if name not in seen]
            seen.update(fresh)
            order.extend(fresh)
        return order[1:]

    def around(self, node: str) -> "LineageGraph":
        """The part of the graph that `node` stands in: itself, its ancestors and its descendants."""
        return self.part({node, *self.upstream(node), *self.downstream(node)})

    def part(self, kept: Collection[str]) -> "LineageGraph":
        """Only these nodes, and the links among them."""
        records = {name: record for name, record in self.records.items() if name in kept}
        inside = {
            name: tuple(parent for parent in record.upstream if parent in kept) for name, record in records.items()
        }
        return replace(self, records={name: replace(records[name], upstream=inside[name]) for name in records})

    def ancestry(self, node: str) -> list[LineageRecord]:
        """Records of `node` and of all that it was made from, oldest first."""
        records = [self.records[name] for name in (node, *self.upstream(node)) if name in self.records]
        return records[::-1]

    def identified(self, kind: str, identity: str) -> LineageRecord | None:
        """The record of this very thing, whatever its name became."""
        matches = (record for record in self.records.values() if (record.kind, record.identity) == (kind, identity))
        return next(matches, None)

    def find(self, text: str) -> str:
        """The node that `text` means: an id, an unambiguous piece of one, or the URI of the thing itself.

        Of several versions of the same thing the newest is meant.

        Raises:
            UserError: when nothing or more than one thing matches.
        """
        if text in self.nodes:
            return text
        matches = self._at(text) or self._named(text) or [node for node in self.nodes if text in node]
        stems = {node.rpartition("@")[0] for node in matches}
        if len(stems) > 1:
            raise UserError(f"{text!r} is ambiguous: it could be {', '.join(matches[:5])}")
        if not matches:
            raise UserError(f"no lineage of {text!r} under {self.root}: `uwm lineage` lists what there is")
        return matches[-1]

    def _at(self, text: str) -> list[str]:
        if "@" in text and "://" not in text:
            return []
        uri = locate(text).uri
        return [node for node in self.nodes if node in self.records and self.records[node].uri in (text, uri)]

    def _named(self, text: str) -> list[str]:
        stems = {node: node.rpartition("@")[0] for node in self.nodes}
        return [node for node, stem in stems.items() if text in (stem, stem.partition("/")[2])]


def kind_of(node: str) -> str:
    """The kind in a node id."""
    return node.partition("/")[0]


def graph(root: str) -> LineageGraph:
    """Read all records under `root`; without any, the graph is empty.

    A record names where its thing lay. When that was moved together with the records beside it, the record that is
    returned names the new place.

    Raises:
        UserError: when a record is damaged.
    """
    records: dict[str, LineageRecord] = {}
    for kind in KINDS:
        folder = locate(root) / kind
        for name in folder.names():
            if name.endswith(".json"):
                record = read_document(folder / name, LineageRecord)
                records[record.node] = record if kind == "source" else _found_again(record, locate(root))
    return LineageGraph(root=locate(root).uri, records=records)


def _found_again(record: LineageRecord, root: Location) -> LineageRecord:
    """The record with the place beside its root to which its thing was moved, when it is where it was no more."""
    location = locate(record.uri)
    if not (location.is_local and root.is_local) or location.exists():
        return record
    steps = location.path.strip("/").split("/")
    tails = ("/".join(steps[-depth:]) for depth in range(1, min(len(steps), _DEPTH) + 1))
    moved = next((root.parent / tail for tail in tails if (root.parent / tail).exists()), None)
    return record if moved is None else replace(record, uri=moved.uri)
