"""The command `doctor`, its filters at ingestion, and its flow on a server."""

import json
import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from flows.cli import run
from flows.runtime.server import client_environment, local_server
from storage_schemas.store.dataset import open_dataset

EXAMPLES = Path(__file__).resolve().parents[3] / "examples" / "data"


@pytest.fixture
def clips(away: Path) -> Path:
    (away / "clips").mkdir()
    for name in ("bunny.mp4", "copy.mp4"):
        (away / "clips" / name).write_bytes((EXAMPLES / "video/bunny.mp4").read_bytes())
    (away / "clips/broken.mp4").write_bytes(b"no video")
    return away / "clips"


def test_terminal_html_and_json(clips: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", str(clips), "--html", "report.html"]) == 1
    shown = capsys.readouterr().out
    for words in ("broken.mp4", "not_a_video", "duplicate", "copy.mp4", "report.html", "1 findings of damage"):
        assert words in shown
    assert "byte-identical" in Path("report.html").read_text()
    assert run(["doctor", str(clips), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["counts"] == {"not_a_video": 1, "duplicate": 1}
    assert {Path(finding["source_uri"]).name for finding in found["findings"]} == {"broken.mp4", "copy.mp4"}


def test_what_is_healthy_ends_with_zero(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", str(store)]) == 0
    assert "episodes of" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("doctor nowhere", "nothing at"),
        ("doctor clips --format bogus", "bogus"),
        ("doctor clips --flow", "PREFECT_API_URL"),
        ("ingest clips out --reject statik", "did you mean static"),
    ],
)
def test_bad_calls(clips: Path, line: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(line.split()) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert words in err


def test_filters_of_ingestion(clips: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["ingest", "clips", "one", "--reject", "none", "--json"]) == 0
    assert [found["reason"] for found in json.loads(capsys.readouterr().out)["quarantined"]] == ["not_a_video"]
    assert run(["ingest", "clips", "two", "--reject", "black,static,duplicate", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["quarantined"]
    assert sorted(item["reason"] for item in found) == ["duplicate", "not_a_video"]
    assert len(open_dataset("one")) == 2 * len(open_dataset("two")) > 0, "a copy is kept where copies are wanted"


@pytest.mark.server
def test_the_flow_leaves_an_artifact(clips: Path, tmp_path: Path) -> None:
    with local_server(tmp_path / "prefect", port=0) as server:
        variables = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "UWM_"))}
        for _ in range(2):
            done = subprocess.run(
                [sys.executable, "-c", "from flows.cli import main; main()", "doctor", str(clips), "--flow", "--json"],
                env={**variables, **client_environment(server)},
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 1, done.stderr[-3000:]
            assert json.loads(done.stdout)["counts"] == {"not_a_video": 1, "duplicate": 1}
        held = httpx.post(f"{server.api_url}/artifacts/filter", json={}).raise_for_status().json()
        assert len(held) == 2
        assert len({artifact["key"] for artifact in held}) == 1
        assert held[0]["key"].startswith("doctor-clips-")
        assert "not\\_a\\_video" in held[0]["data"] or "not_a_video" in held[0]["data"]
