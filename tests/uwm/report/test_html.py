import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage_schemas.errors import UserError
from storage_schemas.lineage.records import LineageRecord
from uwm.eval.files import ExampleArrays, save_evaluation
from uwm.eval.result import Evaluation
from uwm.events import MetricsFile, TrainProgress
from uwm.report.html import ReportEvaluation, ReportRun, safe_link, write_report
from uwm.report.plots import Picture

VOID = {"meta", "img", "source", "br", "link", "input"}


class Page(HTMLParser):
    """Collects what a page holds, and checks that what is opened is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.sources: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        if tag not in VOID:
            self.open.append(tag)
        self.ids |= {values["id"]} if "id" in values else set()
        self.links += [values["href"]] if "href" in values else []
        self.sources += [values[name] for name in ("src", "srcset") if name in values]
        if tag == "img":
            assert values["alt"]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def record(kind: str, name: str, *upstream: str, **options: str) -> LineageRecord:
    return LineageRecord(
        kind=kind, name=name, version="1", identity=name, uri=f"data/{name}", upstream=upstream, **options
    )


@pytest.fixture
def report(tmp_path: Path, evaluation: Evaluation, arrays: ExampleArrays) -> str:
    save_evaluation(str(tmp_path / "e"), evaluation, arrays)
    MetricsFile(tmp_path / "run", step=0)(
        TrainProgress(step=1, steps=2, loss=1.0, logs={}, lr=0.1, grad_norm=1.0, samples_per_second=1.0, data_wait=0.0)
    )
    lineage = [
        record("dataset", "d", "source/s@1"),
        record("source", "s"),
        record("checkpoint", "c", "dataset/d@1", "dataset/lost@9", run_url="javascript:alert(1)"),
    ]
    return write_report(
        str(tmp_path / "report.html"),
        title="A <report>",
        runs=[ReportRun(name="run", stage="pretrain", folder=str(tmp_path / "run"), facts={"steps": "2"})],
        evaluations=[ReportEvaluation(label="tuned", folder=str(tmp_path / "e"))],
        lineage=lineage,
        links={"dataset/d@1": "http://127.0.0.1:4200/artifacts/key/d"},
        pictures=[Picture(caption="graph", light=b"<svg xmlns='http://www.w3.org/2000/svg'/>")],
        notes=["Small & honest."],
    )


def test_the_page_is_whole_and_loads_nothing(report: str) -> None:
    text = Path(report).read_text()
    page = Page(text)
    assert page.open == []
    assert page.sources
    assert all(source.startswith("data:image/") for source in page.sources)
    inner = {link[1:] for link in page.links if link.startswith("#")}
    assert inner <= page.ids
    assert {link for link in page.links if not link.startswith("#")} == {"http://127.0.0.1:4200/artifacts/key/d"}
    assert "url(" not in text
    assert "<script" not in text


def test_the_page_shows_what_it_was_given(report: str) -> None:
    text = Path(report).read_text()
    for shown in (
        "A &lt;report&gt;",
        "&lt;b&gt;lift&lt;/b&gt;",
        "Small &amp; honest.",
        "▲",
        "▼",
        "forward dynamics",
        "27.00 ± 0.50 dB",
        "hints, not proof",
        "1 held-out episode is too short",
        "dataset/lost@9",
        "(unknown)",
    ):
        assert shown in text
    assert text.index("source/s@1") < text.index("data/c")


def test_frames_without_truth_and_questions_not_asked_are_left_out(report: str) -> None:
    examples = Path(report).read_text().split('<div class="example">')[1:]
    assert len(examples) == 2
    cameras = [re.findall(r'<div class="camera">(\w+)', example) for example in examples]
    assert cameras == [["left"], ["left", "wrist"]]  # one view of the first was not recorded
    assert "forward dynamics</div>" in examples[0]
    assert "forward dynamics</div>" not in examples[1]  # its actions are unknown
    assert "Action chunk" in examples[0]
    assert "Action chunk" not in examples[1]


def test_an_empty_report_is_a_page(tmp_path: Path) -> None:
    path = write_report(
        str(tmp_path / "r.html"), title="nothing yet", runs=[ReportRun(name="x", stage="y", folder="z")]
    )
    assert Page(Path(path).read_text()).open == []


def test_a_missing_evaluation_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="uwm evaluate"):
        write_report(
            str(tmp_path / "r.html"), title="x", evaluations=[ReportEvaluation(label="x", folder=str(tmp_path))]
        )
    assert not (tmp_path / "r.html").exists()


@pytest.mark.parametrize("url", ["http://a/b", "HTTPS://a", "a/b.html", "#x", "../x?y=a:b", "/artifacts/key/a"])
def test_links_that_open_pages_stay(url: str) -> None:
    assert safe_link(url) == url


@given(st.sampled_from(["javascript", "JavaScript", "data", "vbscript", "file", " javascript"]), st.text(max_size=5))
def test_other_links_are_dropped(scheme: str, rest: str) -> None:
    assert safe_link(f"{scheme}:{rest}") == ""


def test_reports_need_no_torch() -> None:
    code = "import sys, uwm.report.html, uwm.report.tables; print('torch' in sys.modules, 'matplotlib' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["False", "False"]
