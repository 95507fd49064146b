"""The training process: lines on stdout, SIGTERM, exit codes."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from storage_schemas.errors import UserError
from uwm.checkpoint import latest_checkpoint, load_checkpoint
from uwm.config import RunConfig
from uwm.events import TrainFinished, TrainProgress, TrainStarted, TrainStopped, parse_line
from uwm.train.__main__ import StopSignal, main
from uwm.train.trainer import train


def command(path: Path | str) -> list[str]:
    return [sys.executable, "-m", "uwm.train", str(path)]


def written(config: RunConfig, folder: Path) -> Path:
    path = folder / "config.json"
    path.write_text(config.model_dump_json())
    return path


def test_sigterm_leaves_a_checkpoint_that_resumes(
    tmp_path: Path, make_store: Callable[..., str], debug_run: Callable[..., RunConfig]
) -> None:
    uri = make_store()
    endless = debug_run(uri, "train.steps=1000000", "train.save_every=1000000")
    process = subprocess.Popen(command(written(endless, tmp_path)), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        event = parse_line(line)
        if isinstance(event, TrainProgress) and event.step == 3:
            process.send_signal(signal.SIGTERM)
            break
    last = [parse_line(line) for line in process.stdout][-1]
    process.stdout.close()
    assert process.wait(60) == 128 + signal.SIGTERM
    assert isinstance(last, TrainStopped)
    stopped = load_checkpoint(last.path)
    assert stopped.state.step == last.step >= 3
    steps = last.step + 2
    resumed = load_checkpoint(train(debug_run(uri, f"train.steps={steps}")))
    straight = load_checkpoint(train(debug_run(uri, f"train.steps={steps}", output="straight")))
    assert resumed.state.files["model.safetensors"] == straight.state.files["model.safetensors"]
    assert resumed.state.files["optim.safetensors"] == straight.state.files["optim.safetensors"]


def test_a_terminal_that_is_closed_stops_a_run_in_order(
    tmp_path: Path, make_store: Callable[..., str], debug_run: Callable[..., RunConfig]
) -> None:
    """Nobody reads its words any more, and it gets SIGHUP; see also test_endings.py."""
    config = debug_run(make_store(), "train.steps=1000000", "train.save_every=1000000", "data.workers=2")
    process = subprocess.Popen(command(written(config, tmp_path)), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        event = parse_line(line)
        if isinstance(event, TrainProgress) and event.step == 3:
            break
    process.stdout.close()
    process.send_signal(signal.SIGHUP)
    assert process.wait(60) == 128 + signal.SIGHUP
    latest = latest_checkpoint(config.folder)
    assert latest
    assert load_checkpoint(latest).state.step >= 3


def test_a_whole_run_prints_only_events(
    tmp_path: Path,
    make_store: Callable[..., str],
    debug_run: Callable[..., RunConfig],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(StopSignal, "listen", lambda self: None)  # pytest keeps its own handlers
    path = written(debug_run(make_store()), tmp_path)
    assert main([str(path)]) == 0
    events = [parse_line(line) for line in capsys.readouterr().out.splitlines()]
    assert None not in events
    assert isinstance(events[0], TrainStarted)
    assert isinstance(events[-1], TrainFinished)
    assert "flash" in events[0].attention


def test_the_process_tells_trackers(
    tmp_path: Path,
    make_store: Callable[..., str],
    debug_run: Callable[..., RunConfig],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(StopSignal, "listen", lambda self: None)
    config = debug_run(make_store(), "train.track=tensorboard", "train.steps=1")
    assert main([str(written(config, tmp_path))]) == 0
    assert capsys.readouterr().err == ""
    assert list(Path(config.folder).glob("tensorboard/events.*"))
    missing = debug_run(make_store("other"), "train.track=mlflow", "train.steps=1", output="other")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="mlflow is not installed"):
        main([str(written(missing, tmp_path))])


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "does not exist"), ("{}", "name: Field required"), ("{", "Invalid JSON"), ("UNKNOWN", "Extra inputs")],
)
def test_bad_calls_end_with_one_line(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "config.json"
    if content:
        path.write_text(json.dumps({"name": "a", "colour": 1}) if content == "UNKNOWN" else content)
    done = subprocess.run(command(path), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
