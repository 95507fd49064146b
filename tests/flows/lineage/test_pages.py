import base64
import re
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.lineage.pages import HOME_KEY, home, keys, kind_pages, page, run_link, slug
from flows.lineage.picture import BOX_HEIGHT, MAX_DRAWN, columns, layout, svg
from flows.lineage.sections import Section
from flows.lineage.text import as_json, listing, outline
from storage_schemas.lineage.records import KINDS, LineageGraph, LineageRecord

ROBOT, CLIPS = "source/droid_100@bb", "source/clips@aa"
DROID, VIDEO = "dataset/droid@1", "dataset/video@1"
PRETRAINED, TUNED = "checkpoint/demo-pretrain@200", "checkpoint/demo-finetune@50"
RESULT = "evaluation/demo-finetune-on-droid@50-abc"


def make_graph(edges: dict[str, tuple[str, ...]], **fields: str) -> LineageGraph:
    records = {}
    for number, (node, upstream) in enumerate(edges.items()):
        kind, _, rest = node.partition("/")
        name, _, version = rest.partition("@")
        records[node] = LineageRecord(
            kind=kind,
            name=name,
            version=version,
            identity=node,
            uri=fields.get("uri", f"/data/{name}"),
            upstream=upstream,
            facts={"steps": 3, "note": "a|b"},
            created=f"2026-01-01T00:00:{number % 60:02d}.000+00:00",
            run_url=fields.get("run_url", ""),
        )
    return LineageGraph(root="/data/lineage", records=records)


CHAIN = {
    ROBOT: (),
    CLIPS: (),
    DROID: (ROBOT,),
    VIDEO: (CLIPS,),
    PRETRAINED: (DROID, VIDEO),
    TUNED: (DROID, PRETRAINED),
    RESULT: (TUNED, DROID),
}
GRAPH = make_graph(CHAIN, run_url="http://127.0.0.1:4200/runs/flow-run/123")


def drawing(markdown: str) -> ET.Element:
    match = re.search(r"!\[[^]]*\]\(data:image/svg\+xml;base64,([A-Za-z0-9+/=]+)\)", markdown)
    assert match
    return ET.fromstring(base64.b64decode(match[1]))  # noqa: S314 - our own drawing


def drawn_text(root: ET.Element) -> list[str]:
    return [text.text or "" for text in root.iter("{http://www.w3.org/2000/svg}text")]


def test_every_edge_of_the_drawing_points_right() -> None:
    placed = columns(GRAPH)
    assert all(placed[parent] < placed[node] for node, parents in CHAIN.items() for parent in parents)


def test_no_edge_runs_behind_a_box_that_it_has_nothing_to_do_with() -> None:
    passes = [(float(x), float(y)) for x, y in re.findall(r"(\S+) (\S+) H", svg(GRAPH))]
    assert passes, "the robot data are used three columns further on"
    for x, y in passes:
        assert not [item for item in layout(GRAPH) if item.x == x and item.y <= y <= item.y + BOX_HEIGHT]


def test_no_two_boxes_overlap() -> None:
    places = {(item.x, item.y) for item in layout(GRAPH)}
    assert len(places) == len(CHAIN)


@given(st.lists(st.tuples(st.sampled_from(KINDS), st.sets(st.integers(0, 11))), max_size=12))
def test_any_graph_is_drawn_whole_and_well_formed(shape: list[tuple[str, set[int]]]) -> None:
    names = [f"{kind}/n{number}@1" for number, (kind, _) in enumerate(shape)]
    found = make_graph({name: tuple(f"dataset/n{p}@1" for p in shape[i][1]) for i, name in enumerate(names)})
    root = ET.fromstring(svg(found))  # noqa: S314 - our own drawing
    assert len(drawn_text(root)) == 3 * len(found.nodes)


def test_a_circle_in_forged_records_does_not_hang() -> None:
    found = make_graph({DROID: (VIDEO,), VIDEO: (DROID,)})
    assert len(layout(found)) == 2
    assert found.upstream(DROID) == [VIDEO]


def test_the_page_of_a_checkpoint_draws_all_it_came_from_and_what_came_of_it() -> None:
    texts = drawn_text(drawing(page(GRAPH, TUNED)))
    boxes = {tuple(texts[at : at + 3]) for at in range(0, len(texts), 3)}
    for node in (ROBOT, CLIPS, DROID, VIDEO, PRETRAINED, TUNED):
        kind, name, version = re.split("[/@]", node)
        assert (kind, name, f"@{version}") in boxes
    assert any(version.startswith("@50-abc") for _, _, version in boxes), "a long name leaves the version alone"


def test_a_fact_that_the_details_say_again_stands_once() -> None:
    details = [Section(title="Statistics", rows=(("steps", "3"),)), Section(title="S", rows=(("note", "a", "b"),))]
    facts, _, rest = page(GRAPH, TUNED, details).partition("## Statistics")
    assert "| steps |" not in facts
    assert "| note |" in facts, "a table of three columns compares something else"
    assert "| steps |" in rest


def test_the_page_links_up_down_home_and_to_the_flow_runs() -> None:
    text = page(GRAPH, PRETRAINED)
    up, down = text.split("## What came of it")
    for node in (ROBOT, CLIPS, DROID, VIDEO):
        assert f"(/artifacts/key/{slug(node)})" in up
    for node in (TUNED, RESULT):
        assert f"(/artifacts/key/{slug(node)})" in down
    assert f"(/artifacts/key/{HOME_KEY})" in text
    assert "(/runs/flow-run/123)" in up


def test_every_link_of_every_page_leads_to_a_page() -> None:
    kinds = kind_pages(GRAPH)
    there = {*keys(GRAPH).values(), *kinds, HOME_KEY}
    texts = [home(GRAPH), *kinds.values(), *(page(GRAPH, node) for node in GRAPH.nodes)]
    linked = {key for text in texts for key in re.findall(r"\(/artifacts/key/([^)]*)\)", text)}
    assert linked == there


def test_home_lists_every_node_once() -> None:
    rows = [line for line in home(GRAPH).splitlines() if line.startswith("| [")]
    assert len(rows) == len(CHAIN)


def test_pages_are_the_same_when_nothing_changed() -> None:
    again = make_graph(CHAIN, run_url="http://127.0.0.1:4200/runs/flow-run/123")
    assert [page(again, node) for node in again.nodes] == [page(GRAPH, node) for node in GRAPH.nodes]
    assert home(again) == home(GRAPH)


def test_an_unknown_parent_is_shown_as_unknown() -> None:
    found = make_graph({TUNED: ("dataset/lost@3",)})
    assert "dataset (no record)" in drawn_text(drawing(page(found, TUNED)))
    assert "no record" in page(found, "dataset/lost@3")
    assert "no record" in home(found)
    assert any("no record" in line for line in outline(found, TUNED))
    assert listing(found)[0].endswith("(no record)")


def test_large_graphs_are_not_squeezed_into_one_picture() -> None:
    found = make_graph({f"dataset/d@{number}": () for number in range(MAX_DRAWN + 1)})
    assert "data:image" not in home(found)
    assert "data:image" in page(found, "dataset/d@3")


@pytest.mark.parametrize("uri", ["/a`b|c", "/x](http://evil)", "/line\nbreak", "<script>alert(1)</script>"])
def test_hostile_places_stay_text(uri: str) -> None:
    text = page(make_graph({DROID: ()}, uri=uri), DROID)
    row = next(line for line in text.splitlines() if line.startswith("| where"))
    assert re.fullmatch(r"\| where \| `[^`]*` \|", row)


@pytest.mark.parametrize(
    "name", ['"><script>alert(1)</script>', "'\"</style>", "]]></svg><img src=x onerror=a>", "a\\"]
)
def test_hostile_names_stay_text_in_the_drawing(name: str) -> None:
    root = ET.fromstring(svg(make_graph({DROID: (f"dataset/{name}@1",)})))  # noqa: S314 - our own drawing
    assert {item.tag.rpartition("}")[2] for item in root.iter()} == {"svg", "rect", "path", "g", "text"}
    assert len(drawn_text(root)) == 6


@given(st.text())
def test_a_slug_is_a_valid_artifact_key(text: str) -> None:
    assert re.fullmatch(r"[a-z0-9-]*", slug(text))


def test_ids_that_differ_in_what_a_key_cannot_hold_get_two_keys() -> None:
    found = keys(make_graph({"dataset/a_b@1": (), "dataset/a-b@1": (), "dataset/A-b@1": ()}))
    assert len(set(found.values())) == 3
    assert found["dataset/a_b@1"] == "dataset-a-b-1", "the older keeps the plain key"


@pytest.mark.parametrize(
    ("url", "link"),
    [
        ("http://127.0.0.1:4200/runs/flow-run/1", "/runs/flow-run/1"),
        ("http://localhost:1/runs/flow-run/1", "/runs/flow-run/1"),
        ("https://prefect.lab.org/runs/flow-run/1", "https://prefect.lab.org/runs/flow-run/1"),
        ("javascript:alert(1)", ""),
        ("data:text/html,x", ""),
        ("file:///etc/passwd", ""),
        ("", ""),
    ],
)
def test_a_flow_runs_link_leads_to_the_web_or_nowhere_and_on_this_machine_to_no_port(url: str, link: str) -> None:
    assert run_link(url) == link


def test_the_outline_reads_from_the_raw_data_down_to_the_result() -> None:
    lines = outline(GRAPH, TUNED)
    assert [line.split()[-2] for line in lines[-2:]] == [TUNED, RESULT]
    assert {line.split()[1] for line in lines[:-2]} == {ROBOT, CLIPS, DROID, VIDEO, PRETRAINED}


def test_json_of_a_node_and_of_all() -> None:
    assert as_json(GRAPH, TUNED)["descendants"] == [RESULT]
    nodes = as_json(make_graph({TUNED: ("dataset/lost@3",)}), None)["nodes"]
    assert isinstance(nodes, list)
    assert [(node["node"], node.get("unknown", False)) for node in nodes] == [("dataset/lost@3", True), (TUNED, False)]
