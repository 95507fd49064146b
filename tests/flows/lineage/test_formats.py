"""The same lineage as DOT and as HTML: hostile names stay text."""

import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.lineage.dot import dot, quoted
from flows.lineage.html import html
from flows.lineage.picture import MAX_DRAWN
from flows.lineage.sections import Picture, Section, table
from storage_schemas.lineage.records import KINDS, LineageGraph, LineageRecord

HOSTILE = [
    '"><script>alert(1)</script>',
    "'\"</style>",
    "a\\",
    'a" -> "b',
    "{{ 7 * 7 }}",
    "]]></svg><img src=x onerror=a>",
]
STATEMENT = re.compile(r'\s*("(?:[^"\\]|\\.)*")(?:\s*->\s*("(?:[^"\\]|\\.)*"))?(?:\s*\[(.*)\])?;')


def make(uri: str = "/data/x", facts: str = "fact", **nodes: tuple[str, ...]) -> LineageGraph:
    records = {}
    for name, upstream in nodes.items():
        kind, _, stem = name.partition("_")
        record = LineageRecord(
            kind=kind, name=stem, version="1", identity=name, uri=uri, upstream=upstream, facts={facts: facts}
        )
        records[record.node] = record
    return LineageGraph(root="/lineage", records=records)


def unquoted(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text[1:-1])


def parsed(text: str) -> tuple[set[str], set[tuple[str, str]]]:
    """Nodes and edges of DOT text, by the grammar's quoted strings."""
    lines = text.splitlines()
    assert lines[0] == "digraph lineage {"
    assert lines[-1] == "}"
    nodes, edges = set(), set()
    for line in lines[3:-1]:
        found = STATEMENT.fullmatch(line)
        assert found, line
        if found[2]:
            edges.add((unquoted(found[1]), unquoted(found[2])))
        else:
            nodes.add(unquoted(found[1]))
    return nodes, edges


def test_dot_has_every_node_and_every_edge() -> None:
    graph = make(source_s=(), dataset_d=("source/s@1",), checkpoint_c=("dataset/d@1", "dataset/lost@2"))
    assert parsed(dot(graph, "dataset/d@1")) == (
        {"source/s@1", "dataset/d@1", "checkpoint/c@1", "dataset/lost@2"},
        {("source/s@1", "dataset/d@1"), ("dataset/d@1", "checkpoint/c@1"), ("dataset/lost@2", "checkpoint/c@1")},
    )


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_stay_one_string_in_dot(name: str) -> None:
    graph = make(uri=name, dataset_d=(name, "dataset/other@1"))
    assert parsed(dot(graph))[1] == {(name, "dataset/d@1"), ("dataset/other@1", "dataset/d@1")}


@given(st.text())
def test_any_text_is_one_quoted_string(text: str) -> None:
    assert re.fullmatch(r'"(?:[^"\\]|\\.)*"', quoted(text))
    assert unquoted(quoted(text)) == "".join(letter if letter.isprintable() else " " for letter in text)


@pytest.mark.skipif(shutil.which("dot") is None, reason="Graphviz is not installed")
def test_graphviz_draws_it() -> None:
    graph = make(uri=HOSTILE[2], dataset_d=tuple(HOSTILE))
    done = subprocess.run(["dot", "-Tsvg"], input=dot(graph), capture_output=True, text=True, check=True)
    assert done.stdout.count("<g id=") == 1 + 2 * len(HOSTILE) + 1


class Reader(HTMLParser):
    """Collects what a browser would act on."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


SECTIONS = (
    table("Raw files", ("file", "steps"), [("one.mp4", 3)]),
    Section(title="Samples", pictures=(Picture(caption="a frame", url="data:image/jpeg;base64,AAAA"),)),
)


def test_the_page_shows_every_node_with_its_details_and_links() -> None:
    graph = make(source_s=(), dataset_d=("source/s@1",), checkpoint_c=("dataset/d@1",))
    page = Reader(html(graph, {"dataset/d@1": SECTIONS}))
    nodes = [attributes for attributes in page.of("details") if "data-kind" in attributes]
    assert [item["data-kind"] for item in nodes] == ["source", "dataset", "checkpoint"]
    assert {"Raw files", "one.mp4", "Samples"} <= set(page.words)
    assert [image["src"] for image in page.of("img")] == ["data:image/jpeg;base64,AAAA"]
    targets = {item["id"] for item in nodes}
    links = {str(item["href"]) for item in page.of("a")}
    assert links == {f"#{target}" for target in targets}
    assert [box["value"] for box in page.of("input") if box["type"] == "checkbox"] == list(KINDS)


def test_one_node_with_what_it_is_connected_with() -> None:
    graph = make(source_s=(), dataset_d=("source/s@1",), dataset_e=(), checkpoint_c=("dataset/d@1",))
    page = Reader(html(graph, {}, "dataset/d@1"))
    assert {item["id"] for item in page.of("details")} == {"source-s-1", "dataset-d-1", "checkpoint-c-1"}


def test_the_page_needs_no_other_file_and_forbids_the_browser_to_ask_for_one() -> None:
    text = html(make(source_s=(), dataset_d=("source/s@1",)), {"dataset/d@1": SECTIONS})
    page = Reader(text)
    policy = next(item["content"] for item in page.of("meta") if "http-equiv" in item)
    assert str(policy).startswith("default-src 'none'; img-src data:")
    assert not [item for _, item in page.tags if str(item.get("src", "data:")).partition(":")[0] != "data"]
    assert not page.of("link")
    assert "url(" not in text


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_stay_text_on_the_page(name: str) -> None:
    graph = make(uri=name, facts=name, source_s=(), dataset_d=("source/s@1", name))
    details = {"dataset/d@1": [table(name, (name,), [(name,)], text=name)]}
    page, harmless = (
        Reader(html(graph, details)),
        Reader(html(make(source_s=(), dataset_d=("source/s@1", "x")), details)),
    )
    assert len(page.of("script")) == 1
    assert not page.of("img")
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in harmless.tags], "no name adds or ends a tag"
    assert not [item for _, item in page.tags if any(attribute.startswith("on") for attribute in item)]
    assert name in page.words


@pytest.mark.parametrize("url", ["javascript:alert(1)", "data:text/html,x", "file:///etc/passwd"])
def test_a_flow_runs_link_leads_to_the_web_or_nowhere(url: str) -> None:
    record = LineageRecord(kind="dataset", name="d", version="1", identity="d", uri="/d", run_url=url)
    text = html(LineageGraph(root="/lineage", records={record.node: record}), {})
    assert url not in text


def test_a_picture_is_nothing_but_a_jpeg() -> None:
    for url in ("https://evil.org/x.jpg", "data:image/svg+xml;base64,AAAA", 'data:image/jpeg;base64,AA" onload="x'):
        with pytest.raises(ValueError, match="url"):
            Picture(caption="", url=url)


def test_a_large_graph_is_listed_and_not_drawn() -> None:
    graph = make(**{f"dataset_n{number}": () for number in range(MAX_DRAWN + 1)})
    page = Reader(html(graph, {}))
    assert len(page.of("details")) == MAX_DRAWN + 1
    assert not page.of("svg")
