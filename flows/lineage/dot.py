"""Lineage in the DOT language, for Graphviz and whatever else reads it."""

from flows.lineage.picture import COLORS, UNKNOWN_COLOR
from storage_schemas.lineage.records import LineageGraph, kind_of


def dot(graph: LineageGraph, focus: str = "") -> str:
    """The graph as a directed graph that reads from left to right; `focus` is drawn filled."""
    lines = [
        "digraph lineage {",
        "  rankdir=LR;",
        '  node [shape=box, style=rounded, fontname="Helvetica"];',
        *(f"  {_node(graph, node, focus)};" for node in graph.nodes),
        *(f"  {quoted(parent)} -> {quoted(node)};" for node in graph.nodes for parent in graph.parents(node)),
        "}",
    ]
    return "\n".join(lines) + "\n"


def _node(graph: LineageGraph, node: str, focus: str) -> str:
    record = graph.records.get(node)
    color = COLORS.get(kind_of(node), UNKNOWN_COLOR) if record else UNKNOWN_COLOR
    style = '"rounded,filled", fontcolor=white' if node == focus else "rounded" if record else '"rounded,dashed"'
    label = node if record else f"{node} (no record)"
    tooltip = f", tooltip={quoted(record.uri)}" if record else ""
    return f'{quoted(node)} [label={quoted(label)}, color="{color}", fillcolor="{color}", style={style}{tooltip}]'


def quoted(text: str) -> str:
    """`text` as a quoted DOT string.

    Only the quote is special to the grammar, but Graphviz reads escapes in labels, so backslashes are
    doubled; characters that can't be shown become spaces.
    """
    plain = "".join(letter if letter.isprintable() else " " for letter in text)
    return '"' + plain.replace("\\", "\\\\").replace('"', '\\"') + '"'
