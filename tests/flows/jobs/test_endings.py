"""A training whose starter is gone saves what it has; one whose starter nobody reads goes on."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from endings import WAIT_SECONDS, Marked

from flows.runtime.server import Server, client_environment, local_server
from uwm.checkpoint import load_checkpoint
from uwm.overrides import apply_overrides
from uwm.recipes import get_recipe

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="finds the processes in /proc")]

UWM = [sys.executable, "-c", "from flows.cli import main; main()"]
DROID = Path(__file__).resolve().parents[3] / "examples" / "data" / "droid"
SETTINGS = ("train.batch_size=2", "train.save_every=1000000", "train.restarts=0", "train.threads=1")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("data")
    subprocess.run([*UWM, "ingest", str(DROID), str(folder / "droid"), "--no-flow"], check=True, capture_output=True)
    return str(folder / "droid")


@pytest.fixture
def started(tmp_path: Path, store: str) -> Iterator[Callable[..., tuple[subprocess.Popen[bytes], Marked]]]:
    """Starts `uwm train` in the test's folder, and ends what is left of it."""
    running: list[tuple[subprocess.Popen[bytes], Marked]] = []

    def begin(*pairs: str, server: Server | None = None) -> tuple[subprocess.Popen[bytes], Marked]:
        marked = Marked()
        variables = {**marked.environment, **(client_environment(server) if server else {})}
        settings = (f"data.datasets.0.uri={store}", f"output={tmp_path / 'run'}", *SETTINGS, *pairs)
        apply_overrides(get_recipe("debug"), settings)  # a mistake in them is this test's
        command = [*UWM, "train", "debug", *settings, "--flow" if server else "--no-flow"]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, env=variables)
        running.append((process, marked))
        return running[-1]

    yield begin
    for process, marked in running:
        marked.kill()
        process.communicate()


def wait_for_steps(folder: Path, steps: int) -> None:
    until = time.monotonic() + WAIT_SECONDS
    log = folder / "metrics.jsonl"
    while not log.exists() or log.read_text().count('"loss"') < steps:
        assert time.monotonic() < until, "it does not train"
        time.sleep(0.1)


def saved_step(folder: Path) -> int:
    return load_checkpoint(sorted((folder / "checkpoints").glob("step-*"))[-1]).state.step


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP, signal.SIGTERM])
@pytest.mark.parametrize(("processes", "workers"), [(1, 0), (1, 2), (2, 2)])
def test_a_training_whose_starter_ends_saves_and_ends(
    tmp_path: Path,
    started: Callable[..., tuple[subprocess.Popen[bytes], Marked]],
    number: signal.Signals,
    processes: int,
    workers: int,
) -> None:
    process, marked = started("train.steps=1000000", f"train.processes={processes}", f"data.workers={workers}")
    wait_for_steps(tmp_path / "run", 2)
    os.kill(process.pid, number)
    process.communicate(timeout=WAIT_SECONDS)
    assert process.returncode in (-number, 128 + number)
    marked.wait()
    assert saved_step(tmp_path / "run") >= 2


def test_a_training_whose_words_nobody_reads_goes_on_to_its_end(
    tmp_path: Path, started: Callable[..., tuple[subprocess.Popen[bytes], Marked]]
) -> None:
    process, _ = started("train.steps=8")
    assert process.stderr is not None
    process.stderr.readline()
    process.stderr.close()
    process.stderr = None
    assert process.wait(WAIT_SECONDS) == 0
    assert saved_step(tmp_path / "run") == 8


@pytest.mark.server
def test_a_training_whose_server_is_lost_goes_on_to_its_end(
    tmp_path: Path,
    started: Callable[..., tuple[subprocess.Popen[bytes], Marked]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PREFECT_CLIENT_MAX_RETRIES", "0")
    with local_server(tmp_path / "prefect", port=0) as server:
        process, _ = started("train.steps=300", server=server)
        wait_for_steps(tmp_path / "run", 2)
        server.process.kill()
        process.communicate(timeout=3 * WAIT_SECONDS)
    assert saved_step(tmp_path / "run") == 300
