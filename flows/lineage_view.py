"""Lineage made visible: an SVG drawing, a markdown page per node, a home page and plain text.

Pure functions of a `LineageGraph`. Pages link to each other by artifact keys, so that any Prefect
server shows them as they are: `/artifacts/key/<key>`.
"""

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from urllib.parse import urlsplit

from storage_schemas.lineage import KINDS, LineageGraph, LineageRecord, kind_of

HOME_KEY = "lineage-home"
MAX_DRAWN = 60
"""Nodes in one drawing; beyond this the lists below it say more than a picture."""

COLORS: Mapping[str, str] = {
    "source": "#6b7280",
    "dataset": "#0f766e",
    "checkpoint": "#b45309",
    "evaluation": "#1d4ed8",
}
UNKNOWN_COLOR = "#b91c1c"

BOX_WIDTH, BOX_HEIGHT, GAP_X, GAP_Y, MARGIN = 220, 46, 64, 18, 12
LABEL_LETTERS = 25


@dataclass(frozen=True)
class Placed:
    """Where a node is drawn: its column and the pixels of its upper left corner."""

    node: str
    column: int
    x: float
    y: float


# --- drawing ------------------------------------------------------------------------------------


def columns(graph: LineageGraph) -> dict[str, int]:
    """Column of each node: one right of its rightmost parent, so that every edge points right."""
    found: dict[str, int] = {}
    pending = list(graph.nodes)
    while pending:
        ready = [node for node in pending if all(parent in found for parent in graph.parents(node))]
        if not ready:  # records are write-once, so only a forged one closes a circle
            ready = pending[:1]
        for node in ready:
            found[node] = 1 + max((found.get(parent, -1) for parent in graph.parents(node)), default=-1)
        pending = [node for node in pending if node not in found]
    return found


def layout(graph: LineageGraph) -> list[Placed]:
    """Place every node: columns from left to right, within a column beside the average of its parents."""
    column_of = columns(graph)
    placed: dict[str, Placed] = {}
    tallest = max((list(column_of.values()).count(column) for column in set(column_of.values())), default=0)
    height = tallest * (BOX_HEIGHT + GAP_Y) - GAP_Y
    for column in sorted(set(column_of.values())):
        nodes = [node for node in graph.nodes if column_of[node] == column]
        nodes.sort(key=lambda node: _mean_y([placed[p] for p in graph.parents(node) if p in placed]))
        free = height - len(nodes) * (BOX_HEIGHT + GAP_Y) + GAP_Y
        for row, node in enumerate(nodes):
            x = MARGIN + column * (BOX_WIDTH + GAP_X)
            y = MARGIN + free / 2 + row * (BOX_HEIGHT + GAP_Y)
            placed[node] = Placed(node, column, x, y)
    return list(placed.values())


def _mean_y(parents: Sequence[Placed]) -> float:
    return sum(parent.y for parent in parents) / len(parents) if parents else 0.0


def svg(graph: LineageGraph, focus: str = "") -> str:
    """A drawing of the graph as an SVG document; `focus` is drawn filled."""
    placed = {item.node: item for item in layout(graph)}
    width = max((item.x for item in placed.values()), default=0) + BOX_WIDTH + MARGIN
    height = max((item.y for item in placed.values()), default=0) + BOX_HEIGHT + MARGIN
    edges = [
        _edge(placed[parent], placed[node]) for node in placed for parent in graph.parents(node) if parent in placed
    ]
    boxes = [_box(item, graph, focus=item.node == focus) for item in placed.values()]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height:g}" '
        f'viewBox="0 0 {width:g} {height:g}" font-family="Helvetica, Arial, sans-serif">'
        f'<rect width="100%" height="100%" rx="8" fill="#ffffff"/>{"".join(edges)}{"".join(boxes)}</svg>'
    )


def _edge(parent: Placed, child: Placed) -> str:
    x1, y1 = parent.x + BOX_WIDTH, parent.y + BOX_HEIGHT / 2
    x2, y2 = child.x, child.y + BOX_HEIGHT / 2
    bend = max(GAP_X / 2, abs(x2 - x1) / 2)
    curve = f"M{x1:g} {y1:g} C{x1 + bend:g} {y1:g} {x2 - bend:g} {y2:g} {x2:g} {y2:g}"
    return f'<path d="{curve}" fill="none" stroke="#9ca3af" stroke-width="1.5"/>'


def _box(item: Placed, graph: LineageGraph, *, focus: bool) -> str:
    known = item.node in graph
    color = COLORS.get(kind_of(item.node), UNKNOWN_COLOR) if known else UNKNOWN_COLOR
    name = item.node.partition("/")[2]
    text, fill = ("#ffffff", color) if focus else (color, "#ffffff")
    dashes = "" if known else ' stroke-dasharray="5 4"'
    caption = kind_of(item.node) + ("" if known else " (no record)")
    return (
        f'<g transform="translate({item.x:g} {item.y:g})">'
        f'<rect width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="7" fill="{fill}" '
        f'stroke="{color}" stroke-width="1.5"{dashes}/>'
        f'<text x="12" y="18" font-size="11" fill="{text}">{escape(caption)}</text>'
        f'<text x="12" y="36" font-size="13" font-weight="bold" fill="{text}">{escape(_shorten(name))}</text></g>'
    )


def _shorten(name: str) -> str:
    """The name with its middle cut out when it is too long: beginning and version tell names apart."""
    if len(name) <= LABEL_LETTERS:
        return name
    half = (LABEL_LETTERS - 1) // 2
    return f"{name[:half]}…{name[-half:]}"


def data_url(drawing: str) -> str:
    """An SVG document as a URL that a markdown image can hold."""
    return "data:image/svg+xml;base64," + base64.b64encode(drawing.encode()).decode()


# --- pages --------------------------------------------------------------------------------------


def slug(node: str) -> str:
    """`node` in the letters that an artifact key may have: a-z, 0-9 and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", node.lower()).strip("-")


def keys(graph: LineageGraph) -> dict[str, str]:
    """The artifact key of every node.

    Two nodes whose ids differ only in what a key can't hold still get two keys: the older keeps the
    plain one, the other gets part of its id's hash.
    """
    found: dict[str, str] = {}
    for node in graph.nodes:
        key = slug(node)
        taken = key in found.values() or key == HOME_KEY
        found[node] = f"{key}-{hashlib.sha256(node.encode()).hexdigest()[:6]}" if taken else key
    return found


def page(graph: LineageGraph, node: str) -> str:
    """The markdown page of `node`: its picture, its facts, what it came from and what came of it."""
    links = keys(graph)
    record = graph.records.get(node)
    sections = [
        f"# {_text(node)}",
        f"[All lineage](/artifacts/key/{HOME_KEY})",
        _picture(graph.around(node), node),
        "\n".join(_facts(record)) if record else "There is **no record** of this node: it was made elsewhere.",
        _list("Made from", graph.upstream(node), graph, links),
        _list("What came of it", graph.downstream(node), graph, links),
    ]
    return "\n\n".join(sections) + "\n"


def home(graph: LineageGraph) -> str:
    """The markdown page that lists all nodes, newest first within each kind."""
    links = keys(graph)
    sections = ["# Lineage", f"Records under `{graph.root}`.", _picture(graph, "")]
    for kind in KINDS:
        nodes = [node for node in graph.nodes if kind_of(node) == kind][::-1]
        rows = [_row(node, graph, links) for node in nodes]
        if rows:
            sections.append(f"## {kind.capitalize()}s ({len(rows)})")
            sections.append("\n".join(["| node | made | facts |", "|---|---|---|", *rows]))
    return "\n\n".join(sections) + "\n"


def _picture(graph: LineageGraph, focus: str) -> str:
    if len(graph.nodes) > MAX_DRAWN:
        return f"{len(graph.nodes)} nodes are too many for one picture; each node's page draws its own neighbourhood."
    return f"![lineage graph]({data_url(svg(graph, focus))})"


def _facts(record: LineageRecord) -> list[str]:
    rows = {"kind": record.kind, "where": _code(record.uri), "made": _when(record), "identity": _code(record.identity)}
    rows |= {name: _code(str(value)) for name, value in record.facts.items() if value not in (None, "")}
    if record.run_url:
        rows["flow run"] = f"[open the flow run]({run_link(record.run_url)})"
    return ["| | |", "|---|---|", *(f"| {_text(name)} | {_cell(value)} |" for name, value in rows.items())]


def _list(title: str, nodes: Sequence[str], graph: LineageGraph, links: Mapping[str, str]) -> str:
    if not nodes:
        return f"## {title}\n\nNothing."
    lines = []
    for node in nodes:
        record = graph.records.get(node)
        run = f" · [flow run]({run_link(record.run_url)})" if record and record.run_url else ""
        unknown = "" if record else " · no record"
        lines.append(f"- [{_text(node)}](/artifacts/key/{links[node]}){run}{unknown}")
    return f"## {title}\n\n" + "\n".join(lines)


def _row(node: str, graph: LineageGraph, links: Mapping[str, str]) -> str:
    record = graph.records.get(node)
    known = [f"{name} {value}" for name, value in record.facts.items() if value not in (None, "")] if record else []
    facts = ", ".join(known[:4]) if record else "no record"
    made = _when(record) if record else ""
    return f"| [{_text(node)}](/artifacts/key/{links[node]}) | {made} | {_cell(_text(facts))} |"


def _when(record: LineageRecord) -> str:
    return record.created[:16].replace("T", " ") + " UTC"


def run_link(url: str) -> str:
    """A flow run's URL as a page should link it.

    A server on this machine may come back on another port, so its links leave out the host.
    """
    parts = urlsplit(url)
    return parts.path if parts.hostname in ("127.0.0.1", "localhost", "::1") else url


def _text(text: str) -> str:
    """Text that markdown shows as it is."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", text.replace("\n", " "))


def _code(text: str) -> str:
    return "`" + text.replace("`", "'") + "`"


def _cell(text: str) -> str:
    return re.sub(r"(?<!\\)\|", r"\\|", text.replace("\n", " "))


# --- terminal -----------------------------------------------------------------------------------


def outline(graph: LineageGraph, node: str) -> list[str]:
    """Lines of plain text: `node`, its ancestors above it and its descendants below it."""
    up = [f"  <- {name}{_note(graph, name)}" for name in graph.upstream(node)]
    down = [f"  -> {name}{_note(graph, name)}" for name in graph.downstream(node)]
    return [*up[::-1], f"{node}{_note(graph, node)}", *down]


def _note(graph: LineageGraph, node: str) -> str:
    record = graph.records.get(node)
    return f"  ({record.uri})" if record else "  (no record)"


def listing(graph: LineageGraph) -> list[str]:
    """Lines of plain text: all nodes with what they were made from."""
    lines = []
    for node in graph.nodes:
        parents = ", ".join(graph.parents(node))
        lines.append(node + (f"  <- {parents}" if parents else "") + ("" if node in graph else "  (no record)"))
    return lines


def as_json(graph: LineageGraph, node: str | None) -> dict[str, object]:
    """The graph, or one node with its walks, as plain values for JSON."""
    records = {name: json.loads(record.to_json()) for name, record in graph.records.items()}
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
    }
