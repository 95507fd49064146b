"""Lineage as plain text and as plain values for JSON."""

from collections.abc import Iterator, Sequence

from flows.lineage.details import Details
from flows.lineage.sections import Section, facts_of
from storage_schemas.lineage.provenance import RawFiles, Sightings
from storage_schemas.lineage.records import LineageGraph, kind_of

CELL_LETTERS = 60


def outline(graph: LineageGraph, node: str) -> list[str]:
    """Lines of plain text: `node`, its ancestors above it and its descendants below it."""
    up = [f"  <- {name}{_note(graph, name)}" for name in graph.upstream(node)]
    down = [f"  -> {name}{_note(graph, name)}" for name in graph.downstream(node)]
    return [*up[::-1], f"{node}{_note(graph, node)}", *down]


def _note(graph: LineageGraph, node: str) -> str:
    record = graph.records.get(node)
    return f"  ({record.uri})" if record else "  (no record)"


def described(graph: LineageGraph, node: str, sections: Sequence[Section]) -> list[str]:
    """Lines of plain text: what is known of `node` itself."""
    record = graph.records.get(node)
    lines = [f"  {name}: {value}" for name, value in facts_of(record)]
    for section in sections:
        lines += ["", section.title, *([f"  {section.text}"] if section.text else []), *_aligned(section)]
    return lines


def _aligned(section: Section) -> Iterator[str]:
    rows = [row for row in (section.header, *section.rows) if any(row)] if section.rows else []
    cut = [[_cut(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cut, strict=True)]
    for row in cut:
        yield "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _cut(text: str) -> str:
    """One line, its beginning left out when it is too long: the ends of paths tell them apart."""
    plain = " ".join(text.split())
    return plain if len(plain) <= CELL_LETTERS else "…" + plain[1 - CELL_LETTERS :]


def listing(graph: LineageGraph, nodes: Sequence[str] | None = None) -> list[str]:
    """Lines of plain text: all nodes, or some, with what they were made from."""
    lines = []
    for node in graph.nodes if nodes is None else nodes:
        parents = ", ".join(graph.parents(node))
        lines.append(node + (f"  <- {parents}" if parents else "") + ("" if node in graph else "  (no record)"))
    return lines


def files_listing(raw: RawFiles) -> list[str]:
    """Lines of plain text: every episode's raw file, tab-separated, after a line that counts them."""
    datasets = ", ".join(raw.datasets) or "no dataset"
    head = f"{len(raw.files):,} raw files, {len(raw.episodes):,} episodes of {datasets}"
    rows = ((row.source_uri, row.fingerprint, row.split, row.collection, row.dataset) for row in raw.episodes)
    return [head, *("\t".join(row) for row in rows)]


def sightings_listing(seen: Sightings) -> list[str]:
    """Lines of plain text: the nodes that saw a raw file, with the episodes that were made from it."""
    episodes_of: dict[str, list[str]] = {}
    for row in seen.episodes:
        episodes_of.setdefault(row.dataset, []).append(f"{row.episode_id} ({row.split})")
    return [node + (f"  {', '.join(episodes_of[node])}" if node in episodes_of else "") for node in seen.nodes]


def as_json(graph: LineageGraph, node: str | None, details: Details | None = None) -> dict[str, object]:
    """The graph, or one node with its walks and its details, as plain values for JSON; without pictures."""
    records = {name: record.document() for name, record in graph.records.items()}
    if node is None:
        known = [records.get(name, {"node": name, "kind": kind_of(name), "unknown": True}) for name in graph.nodes]
        return {"root": graph.root, "nodes": known}
    record = records.get(node, {"node": node, "kind": kind_of(node), "unknown": True})
    return {
        "root": graph.root,
        **record,
        "ancestors": graph.upstream(node),
        "descendants": graph.downstream(node),
        "children": list(graph.children(node)),
        "details": [item.model_dump(exclude={"pictures"}) for item in (details or {}).get(node, ())],
    }
