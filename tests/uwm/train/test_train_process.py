"""The training process: lines on stdout, SIGTERM, exit codes."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

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


def begun(config: RunConfig, folder: Path, step: int = 3, **options: Any) -> "subprocess.Popen[str]":
    """A training process that has told of a step."""
    process = subprocess.Popen(
        command(written(config, folder)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )
    assert process.stdout is not None
    for line in process.stdout:
        event = parse_line(line)
        if isinstance(event, TrainProgress) and event.step >= step:
            return process
    raise AssertionError(process.communicate()[1])


def ended(process: "subprocess.Popen[str]") -> tuple[int, str]:
    """Exit code and last words of a process that ends by itself."""
    try:
        _, error = process.communicate(timeout=60)
    finally:
        process.kill()
    return process.returncode, error


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_a_reader_that_is_gone_ends_nothing_and_a_stop_saves(
    tmp_path: Path,
    make_store: Callable[..., str],
    debug_run: Callable[..., RunConfig],
    number: signal.Signals,
    workers: int,
) -> None:
    endless = ("train.steps=1000000", "train.save_every=1000000", f"data.workers={workers}")
    config = debug_run(make_store(), *endless)
    process = begun(config, tmp_path)
    assert process.stdout is not None
    process.stdout.close()
    process.stdout = None
    time.sleep(1)  # some lines that nobody reads
    process.send_signal(number)
    assert ended(process)[0] == 128 + number
    latest = latest_checkpoint(config.folder)
    assert latest
    assert load_checkpoint(latest).state.step > 3


@pytest.mark.parametrize("workers", [0, 2, 8])
def test_a_disk_that_takes_no_more_ends_the_run_at_once(
    tmp_path: Path, make_store: Callable[..., str], debug_run: Callable[..., RunConfig], workers: int
) -> None:
    """The system refuses to let a file grow beyond 64 kB, as a full disk does."""

    def bound_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))

    config = debug_run(make_store(), "train.steps=9", "train.save_every=4", f"data.workers={workers}")
    code, error = ended(begun(config, tmp_path, step=1, preexec_fn=bound_files))
    assert code == 2, error
    assert error.splitlines()[-1].startswith("error: can't write checkpoint")
    assert not list((Path(config.folder) / "checkpoints").iterdir())


@pytest.mark.parametrize("workers", [2, 8])
def test_a_killed_worker_ends_the_run_at_once(
    tmp_path: Path, make_store: Callable[..., str], debug_run: Callable[..., RunConfig], workers: int
) -> None:
    process = begun(debug_run(make_store(), "train.steps=1000000", f"data.workers={workers}"), tmp_path)
    loaders = [pid for pid in children(process.pid) if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    assert len(loaders) == workers
    os.kill(loaders[0], signal.SIGKILL)
    code, error = ended(process)
    assert code == 1
    assert "killed by signal" in error
    assert not any(running(pid) for pid in loaders)


def running(pid: int) -> bool:
    """Whether a process runs; one that nobody has waited for yet does not."""
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


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
