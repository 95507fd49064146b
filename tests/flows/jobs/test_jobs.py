"""The jobs without Prefect: real stores, a real training process, real records."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from flows.cli import run
from flows.jobs.evaluate import run_evaluation
from flows.jobs.ingest import run_ingest
from flows.jobs.train import make_config, pin_checkpoint, run_training
from pipelines.options import IngestOptions
from storage_schemas.errors import UserError
from storage_schemas.lineage.records import graph
from uwm.eval.options import EvalOptions

EXAMPLES = Path(__file__).resolve().parents[3] / "examples" / "data"


def test_ingesting_twice_makes_one_version_and_one_record(away: Path) -> None:
    store = str(away / "data" / "robot")
    first = run_ingest(str(EXAMPLES / "droid"), store, IngestOptions(val_percent=25))
    assert first.dataset is not None
    assert first.dataset.upstream == (first.source.node,)
    assert first.dataset.facts["episodes"] == first.report.added
    again = run_ingest(str(EXAMPLES / "droid"), store)
    assert (again.report.added, again.report.version) == (0, first.report.version)
    assert again.dataset == first.dataset
    assert len(graph(first.root).records) == 2


def test_a_source_without_anything_good_leaves_no_version_and_a_reason(away: Path) -> None:
    folder = away / "raw"
    folder.mkdir()
    (folder / "broken.mp4").write_bytes(b"this is no video")
    result = run_ingest(str(folder), str(away / "data" / "clips"), IngestOptions(format="video"))
    assert result.dataset is None
    assert [item.reason for item in result.report.quarantined]
    assert list(graph(result.root).records) == [result.source.node]


def test_ingest_prints_json_alone(away: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["ingest", str(EXAMPLES / "video"), "clips", "--fps", "5", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["added"] > 0
    assert report["quarantined"] == []
    assert run(["ingest", str(EXAMPLES / "video"), "clips", "--fps", "5"]) == 0
    assert "0 episodes added" in capsys.readouterr().out


def test_train_evaluate_and_the_way_back_to_the_raw_data(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = (f"data.datasets.0.uri={store}", "train.steps=1")
    trained = run_training(make_config("debug", settings))
    assert (trained.step, trained.reused) == (1, False)
    assert trained.record.upstream == ("dataset/droid@1",)
    result = run_evaluation(trained.path, str(store), EvalOptions(samples=2))
    assert result.record.upstream == (trained.record.node, "dataset/droid@1")
    assert run_evaluation(trained.path, str(store), EvalOptions(samples=2)).reused
    again = run_training(make_config("debug", settings))
    assert again.reused
    assert again.record == trained.record

    assert run(["lineage", trained.path, "--root", trained.root, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["node"] == trained.record.node
    assert shown["descendants"] == [result.record.node]
    assert run(["sample", "runs/debug", str(store), "--mode", "inverse", "-o", "out", "--samples", "1"]) == 0
    assert all(Path(line).is_file() for line in capsys.readouterr().out.splitlines())
    with pytest.raises(UserError, match="no version 9"):
        run_evaluation(trained.path, str(store), EvalOptions(version=9))


def test_a_child_whose_parent_was_pruned_is_evaluated_and_keeps_its_lineage(store: Path) -> None:
    settings = (f"data.datasets.0.uri={store}", "train.steps=1")
    parent = run_training(make_config("debug", settings))
    child = run_training(make_config("debug", (*settings, "name=child", "stage=finetune", f"init_from={parent.path}")))
    shutil.rmtree(parent.path)
    (pinned,) = pin_checkpoint(child.path)[0].parents
    assert (pinned.run, pinned.step, pinned.identity) == ("debug", 1, parent.record.identity)
    result = run_evaluation(child.path, str(store), EvalOptions(samples=2))
    assert child.record.node in result.record.upstream
    assert parent.record.node in child.record.upstream


@pytest.mark.slow
def test_one_setting_trains_in_two_processes(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = (f"data.datasets.0.uri={store}", "train.steps=2", "train.processes=2", "train.threads=1")
    assert run(["train", "debug", *settings, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["step"], shown["reused"]) == (2, False)
    assert run(["train", "debug", *settings, "train.batch_size=3"]) == 2
    assert "train.accumulate x 2 processes): 8 -> 6" in capsys.readouterr().err


def test_sigterm_leaves_a_checkpoint_that_the_same_command_goes_on_from(store: Path) -> None:
    script = Path(sys.executable).with_name("uwm")
    command = [str(script), "train", "debug", f"data.datasets.0.uri={store}", "train.steps=100000"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert any(line.startswith("step ") for line in process.stderr)
        process.send_signal(signal.SIGTERM)
        rest = process.stderr.read()
        assert process.wait(60) == 143
    assert "Traceback" not in rest
    assert list(Path("runs/debug/checkpoints").glob("step-*/state.json"))
