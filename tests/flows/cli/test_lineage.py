"""`uwm lineage` in all its forms, on a real ingestion."""

import json
import shutil
from pathlib import Path

import pytest

from flows.cli import run
from flows.jobs.ingest import Ingested, run_ingest
from pipelines.options import IngestOptions

EXAMPLES = Path(__file__).resolve().parents[3] / "examples" / "data"


@pytest.fixture
def ingested(away: Path) -> Ingested:
    """A folder of videos, one with a sharp in its name, as a dataset."""
    raw = away / "raw"
    raw.mkdir()
    for path in (EXAMPLES / "video").glob("*.m*"):
        shutil.copy(path, raw / f"take #{path.name}")
    return run_ingest(str(raw), str(away / "data" / "clips"), IngestOptions(fps=5))


def said(line: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert run(line.split()) == 0
    return capsys.readouterr().out


def test_every_raw_file_of_a_dataset_leads_back_to_it(ingested: Ingested, capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(said("lineage dataset/clips@1 --files --json --root data/lineage", capsys))
    files = {episode["source_uri"].partition("#")[0] for episode in found["episodes"]}
    assert len(files) == 2
    assert found["missing"] == {}
    for path in Path("raw").iterdir():
        assert run(["lineage", "--file", str(path), "--root", "data/lineage"]) == 0
        assert capsys.readouterr().out.startswith("dataset/clips@1  ")
    for uri in files:
        assert run(["lineage", "--file", uri, "--root", "data/lineage", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["nodes"] == ["dataset/clips@1"]
    text = said(f"lineage {ingested.source.node} --files --root data/lineage", capsys).splitlines()
    assert text[0] == f"2 raw files, {len(found['episodes'])} episodes of dataset/clips@1"
    assert {line.split("\t")[0] for line in text[1:]} == {episode["source_uri"] for episode in found["episodes"]}


def test_an_answer_that_is_not_complete_says_so(ingested: Ingested, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree("data/clips")
    for line in ("lineage dataset/clips --files", "lineage --file raw/x"):
        assert run([*line.split(), "--root", "data/lineage"]) == 1
        assert "not asked: dataset/clips@1: " in capsys.readouterr().err


def test_the_same_in_every_format(ingested: Ingested, capsys: pytest.CaptureFixture[str]) -> None:
    assert ingested.dataset is not None
    episodes = str(ingested.dataset.facts["episodes"])
    text = said("lineage dataset/clips --root data/lineage", capsys)
    assert ingested.source.node in text.split("dataset/clips@1")[0]
    assert "Cameras" in text
    found = json.loads(said("lineage dataset/clips --root data/lineage --format json", capsys))
    statistics = next(section for section in found["details"] if section["title"] == "Statistics")
    assert ["episodes", episodes] in statistics["rows"]
    assert said("lineage --root data/lineage --kind source", capsys).splitlines() == [ingested.source.node]
    assert said("lineage --root data/lineage --kind checkpoint", capsys).startswith("no lineage")
