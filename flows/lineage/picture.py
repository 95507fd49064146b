"""The drawing of a lineage graph, as SVG."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from storage_schemas.lineage.records import LineageGraph, kind_of

MAX_DRAWN = 60
"""Nodes in one drawing; beyond this the lists below it say more than a picture."""

COLORS: Mapping[str, str] = {
    "source": "#6b7280",
    "dataset": "#0f766e",
    "checkpoint": "#b45309",
    "evaluation": "#1d4ed8",
}
UNKNOWN_COLOR = "#b91c1c"

BOX_WIDTH, BOX_HEIGHT, GAP_X, GAP_Y, MARGIN = 186, 66, 34, 18, 10
LANE_HEIGHT = 4
LABEL_LETTERS = 22


@dataclass(frozen=True)
class Placed:
    """Where a node is drawn: its column and the pixels of its upper left corner."""

    node: str
    column: int
    x: float
    y: float


def columns(graph: LineageGraph) -> dict[str, int]:
    """Column of each node: one right of its rightmost parent, so that every edge points right."""
    placed: dict[str, int] = {}
    pending = list(graph.nodes)
    while pending:
        ready = [node for node in pending if all(parent in placed for parent in graph.parents(node))]
        if not ready:  # records are write-once, so only a forged one closes a circle
            ready = pending[:1]
        for node in ready:
            placed[node] = 1 + max((placed.get(parent, -1) for parent in graph.parents(node)), default=-1)
        pending = [node for node in pending if node not in placed]
    return placed


def layout(graph: LineageGraph) -> list[Placed]:
    """Place every node: columns from left to right, within a column beside the average of its parents."""
    return list(_arranged(graph)[0].values())


Lanes = Mapping[tuple[str, int], float]
"""(parent, column) -> height at which the parent's edges cross a column that they only pass."""


def _arranged(graph: LineageGraph) -> tuple[dict[str, Placed], Lanes]:
    """Boxes, and the lanes between them on which long edges pass, so that none runs behind a box."""
    column_of = columns(graph)
    reach = {node: max((column_of[child] for child in graph.children(node)), default=0) for node in graph.nodes}
    stacks: list[tuple[list[str], list[str]]] = []
    for column in range(max(column_of.values(), default=-1) + 1):
        boxes = [node for node in graph.nodes if column_of[node] == column]
        stacks.append((boxes, [node for node in graph.nodes if column_of[node] < column < reach[node]]))
    tallest = max((_height(*stack) for stack in stacks), default=0.0)
    placed: dict[str, Placed] = {}
    lanes: dict[tuple[str, int], float] = {}
    exits: dict[str, float] = {}  # where a node's edges come out of the columns so far
    for column, (boxes, passing) in enumerate(stacks):
        rows = [(_mean([exits.get(parent, 0.0) for parent in graph.parents(node)]), node, True) for node in boxes]
        rows += [(exits[node], node, False) for node in passing]
        y = MARGIN + (tallest - _height(boxes, passing)) / 2
        for _, node, is_box in sorted(rows, key=lambda row: row[0]):
            height = BOX_HEIGHT if is_box else LANE_HEIGHT
            exits[node] = y + height / 2
            if is_box:
                placed[node] = Placed(node, column, MARGIN + column * (BOX_WIDTH + GAP_X), y)
            else:
                lanes[node, column] = exits[node]
            y += height + GAP_Y
    return placed, lanes


def _height(boxes: Sequence[str], passing: Sequence[str]) -> float:
    return len(boxes) * (BOX_HEIGHT + GAP_Y) + len(passing) * (LANE_HEIGHT + GAP_Y) - GAP_Y


def _mean(heights: Sequence[float]) -> float:
    return sum(heights) / len(heights) if heights else 0.0


def svg(graph: LineageGraph, focus: str = "") -> str:
    """A drawing of the graph as an SVG document; `focus` is drawn filled."""
    placed, lanes = _arranged(graph)
    width = max((item.x for item in placed.values()), default=0) + BOX_WIDTH + MARGIN
    height = max([*(item.y + BOX_HEIGHT for item in placed.values()), *lanes.values()], default=0) + MARGIN
    edges = [
        _edge(placed[parent], placed[node], lanes)
        for node in placed
        for parent in graph.parents(node)
        if parent in placed
    ]
    boxes = [_box(item, graph, focus=item.node == focus) for item in placed.values()]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height:g}" '
        f'viewBox="0 0 {width:g} {height:g}" font-family="Helvetica, Arial, sans-serif">'
        f'<rect width="100%" height="100%" rx="8" fill="#ffffff"/>{"".join(edges)}{"".join(boxes)}</svg>'
    )


def _edge(parent: Placed, child: Placed, lanes: Lanes) -> str:
    x, y = parent.x + BOX_WIDTH, parent.y + BOX_HEIGHT / 2
    path = f"M{x:g} {y:g}"
    for column in range(parent.column + 1, child.column):
        lane, left = lanes[parent.node, column], MARGIN + column * (BOX_WIDTH + GAP_X)
        path += _bend(x, y, left, lane) + f" H{left + BOX_WIDTH:g}"
        x, y = left + BOX_WIDTH, lane
    path += _bend(x, y, child.x, child.y + BOX_HEIGHT / 2)
    return f'<path d="{path}" fill="none" stroke="#9ca3af" stroke-width="1.5"/>'


def _bend(x1: float, y1: float, x2: float, y2: float) -> str:
    middle = max(GAP_X / 2, abs(x2 - x1) / 2)
    return f" C{x1 + middle:g} {y1:g} {x2 - middle:g} {y2:g} {x2:g} {y2:g}"


def _box(item: Placed, graph: LineageGraph, *, focus: bool) -> str:
    known = item.node in graph
    color = COLORS.get(kind_of(item.node), UNKNOWN_COLOR) if known else UNKNOWN_COLOR
    name, at, version = item.node.partition("/")[2].partition("@")
    text, fill = ("#ffffff", color) if focus else (color, "#ffffff")
    dashes = "" if known else ' stroke-dasharray="5 4"'
    caption = kind_of(item.node) + ("" if known else " (no record)")
    return (
        f'<g transform="translate({item.x:g} {item.y:g})">'
        f'<rect width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="7" fill="{fill}" '
        f'stroke="{color}" stroke-width="1.5"{dashes}/>'
        f'<g fill="{text}"><text x="10" y="19" font-size="12">{escape(caption)}</text>'
        f'<text x="10" y="38" font-size="14" font-weight="bold">{escape(_shorten(name))}</text>'
        f'<text x="10" y="56" font-size="13">{at}{escape(_shorten(version))}</text></g></g>'
    )


def _shorten(name: str) -> str:
    """The name with its middle cut out when it is too long for a box."""
    if len(name) <= LABEL_LETTERS:
        return name
    half = (LABEL_LETTERS - 1) // 2
    return f"{name[:half]}…{name[-half:]}"
