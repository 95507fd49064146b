"""Ctrl-C ends a command with one line that says what is kept and how to go on, and with code 130."""

import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.cli import console, jobs, run
from storage_schemas.catalog.commits import commit
from storage_schemas.episode import Episode
from storage_schemas.store.dataset import open_dataset
from storage_schemas.store.parts import write_part
from uwm.checkpoint import latest_checkpoint

DROID = Path(__file__).resolve().parents[3] / "examples/data/droid"
LISTENING = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
"""A shell that runs the tests in the background has it ignored."""
MAIN = "from flows.cli import main; main()"
AFTER_TWO_UPDATES = f"""
{LISTENING}
from rich.progress import Progress
plain, updates = Progress.update, []
def update(self, *arguments, **fields):
    plain(self, *arguments, **fields)
    updates.append(fields)
    if len(updates) == 2:
        signal.raise_signal(signal.SIGINT)
Progress.update = update
{MAIN}
"""
CAMERAS = ("exterior_image_1_left", "exterior_image_2_left", "wrist_image_left")
TRAIN = ["train", "debug", "data.datasets.0.uri=data/droid", "train.steps=100000", "train.save_every=2", "output=run"]


def interrupted(*arguments: str) -> str:
    """What a command says that is interrupted after its second step."""
    command = [sys.executable, "-c", AFTER_TWO_UPDATES, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (130, "")
    return done.stderr


def test_an_interrupted_ingestion_says_what_is_stored(away: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["ingest", str(DROID), "out", "--format", "droid-rlds", "--batch", "1"]
    said = interrupted(*line)
    found = re.fullmatch(r"error: interrupted: out is at version (\d) with (\d) whole episodes?; the same .*\n", said)
    assert found, said
    assert len(open_dataset("out", int(found[1]))) == int(found[2])
    assert run(line) == 0
    assert f"{found[2]} there already" in capsys.readouterr().out


def test_an_ingestion_that_is_interrupted_before_its_first_commit_says_so(away: Path) -> None:
    said = interrupted("ingest", str(DROID), "out", "--format", "droid-rlds")
    assert said == "error: interrupted: nothing is stored yet; the same command begins anew\n"


def test_interrupted_latents_are_gone_on_with(
    store: Path, make_episode: Callable[..., Episode], capsys: pytest.CaptureFixture[str]
) -> None:
    for name in "xy":
        episode = make_episode(name, cameras=CAMERAS, size=(36, 64), action_dim=10)
        commit(str(store), write_part(str(store), [episode], run_id="test"))
    line = ["latents", "debug", f"data.datasets.0.uri={store}", "data.latents=k", "--batch", "1"]
    said = interrupted(*line)
    assert said == "error: interrupted: 2 of 3 batches encoded; what is written stays, the same command goes on\n"
    assert run(line) == 0
    encoded, present = map(int, re.findall(r"(\d+) (?:latents encoded|there already)", capsys.readouterr().out))
    assert 0 < encoded < present


def test_an_interrupted_training_names_its_checkpoint(store: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", LISTENING + MAIN, *TRAIN], stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr
        for line in process.stderr:
            if line.startswith("checkpoint of step"):
                process.send_signal(signal.SIGINT)
                break
        last = process.stderr.read().splitlines()[-1]
    assert process.returncode == 130
    assert last == f"error: interrupted: the same command goes on from {latest_checkpoint('run')}"


def test_a_log_gets_a_line_of_progress_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # as systems of CI do
    with jobs.progress_bar() as display:
        task = display.add_task("ingest", total=None)
        display.update(task, completed=1, total=3000)
        monkeypatch.setattr(console, "LINE_SECONDS", 0.0)
        display.update(task, completed=2000, total=3000)
    said = capsys.readouterr()
    assert re.fullmatch(r"ingest: 2,000 of 3,000 after \d+ s\n", said.err)
    assert said.out == ""
