"""A study of one step each: real stores, real training processes, a real log."""

import json
from pathlib import Path

import pytest

from flows.cli import run


@pytest.mark.slow
def test_a_study_goes_on_where_it_stood(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def study(*options: str) -> dict[str, object]:
        given = ("train.steps=1", "--variants", "registers", "--samples", "2", "--out", "study", "--json")
        assert run(["ablate", "debug", str(store), *given, *options]) == 0
        return dict(json.loads(capsys.readouterr().out))

    first = study("policy.num_registers=8", "--seeds", "1")
    assert (first["runs"], first["reused"]) == (2, 0)
    log = Path("study/results.jsonl").read_text()
    assert [json.loads(line)["run"] for line in log.splitlines()] == ["base", "registers-0"]

    again = study("policy.num_registers=8", "--seeds", "1")
    assert (again["runs"], again["reused"]) == (2, 2)
    assert Path("study/results.jsonl").read_text() == log
    assert Path("study/ablations.md").read_text().startswith("| ablation | level |")


def test_a_mistake_is_told_before_anything_is_trained(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["ablate", "debug", str(store), "--variants", "colour", "--out", "study"]) == 2
    assert "unknown ablation 'colour'" in capsys.readouterr().err
    assert not Path("study").exists()
