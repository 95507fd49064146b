"""The drawing of a lineage graph, as SVG."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from storage_schemas.lineage import LineageGraph, kind_of

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


def svg(graph: LineageGraph, focus: str = "", anchors: Mapping[str, str] | None = None) -> str:
    """A drawing of the graph as an SVG document; `focus` is drawn filled, and each box links to its anchor."""
    placed = {item.node: item for item in layout(graph)}
    width = max((item.x for item in placed.values()), default=0) + BOX_WIDTH + MARGIN
    height = max((item.y for item in placed.values()), default=0) + BOX_HEIGHT + MARGIN
    edges = [
        _edge(placed[parent], placed[node]) for node in placed for parent in graph.parents(node) if parent in placed
    ]
    boxes = [_box(item, graph, focus=item.node == focus) for item in placed.values()]
    if anchors is not None:
        boxes = [f'<a href="#{escape(anchors[node])}">{box}</a>' for node, box in zip(placed, boxes, strict=True)]
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
