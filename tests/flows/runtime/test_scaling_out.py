"""Ingestion spread over the workers of an engine, one of which is killed: nothing lost, nothing doubled."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import simplejpeg

from flows.runtime.server import Server, client_environment, local_server
from pipelines.benchmarks.rlds import write_rlds
from pipelines.ingest import ingest
from pipelines.options import IngestOptions
from storage_schemas.episode import EncodedFrames, Episode, EpisodeMeta
from storage_schemas.maintenance.verify import verify
from storage_schemas.store.dataset import open_dataset

pytestmark = pytest.mark.server

CAMERAS = ("exterior_image_1_left", "exterior_image_2_left", "wrist_image_left")
UWM = [sys.executable, "-c", "from flows.cli import main; main()"]
ROOT = Path(__file__).resolve().parents[3]


def raw(folder: Path, episodes: int, *, steps: int = 6) -> Path:
    """A DROID source of small episodes, each with a first frame of its own."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (episodes + steps, 24, 32, 3), np.uint8)
    jpegs = [simplejpeg.encode_jpeg(image, quality=60) for image in images]
    made = []
    for number in range(episodes):
        frames = EncodedFrames(height=24, width=32, jpegs=tuple(jpegs[number : number + steps]))
        meta = EpisodeMeta(episode_id="", source_uri="", source_format="", source_fingerprint="", collection="", fps=15)
        actions = np.zeros((steps, 10), np.float32)
        made.append(
            Episode(meta=meta, action=actions, action_mask=np.ones(steps, bool), frames=dict.fromkeys(CAMERAS, frames))
        )
    return write_rlds(folder, made)


def content(store: str) -> dict[str, tuple[object, ...]]:
    """Every episode by id: its source, length, statistics and the checksum of all its bytes."""
    episodes = open_dataset(store).episodes
    columns = ("source_uri", "source_fingerprint", "length", "checksum", "collection", "split")
    ids = episodes.episode_ids
    assert len(set(ids)) == len(ids)
    return dict(zip(ids, zip(*(episodes.column(name) for name in columns), strict=True), strict=True))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with local_server(tmp_path_factory.mktemp("site") / "prefect", port=0) as started:
        yield started


def start(server: Server, folder: Path, *arguments: str) -> subprocess.Popen[str]:
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "UWM_"))}
    paths = os.pathsep.join([str(ROOT), variables.get("PYTHONPATH", "")])
    environment = {**variables, **client_environment(server), "PYTHONPATH": paths}
    return subprocess.Popen(
        [*UWM, *arguments], cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen[str]) -> Any:
    out, err = process.communicate(timeout=900)
    assert process.returncode == 0, err[-3000:]
    return json.loads(out)


def convert_runs(server: Server) -> list[str]:
    """States of the converting task runs of the newest flow run."""
    query = {"sort": "EXPECTED_START_TIME_DESC", "limit": 1}
    (flow_run,) = httpx.post(f"{server.api_url}/flow_runs/filter", json=query).raise_for_status().json()
    query = {"flow_runs": {"id": {"any_": [flow_run["id"]]}}}
    found = httpx.post(f"{server.api_url}/task_runs/filter", json=query).raise_for_status().json()
    return [run["state_type"] for run in found if run["name"].startswith("convert batch")]


def wait_for_version(store: Path, version: int) -> None:
    wait_until((store / f"episodes/_delta_log/{version:020}.json").exists, f"version {version}")


def wait_until(there: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 600
    while not there():
        assert time.monotonic() < deadline, f"no {what}"
        time.sleep(0.02)


def worker_processes(parent: int) -> list[int]:
    """Processes that the engine started below `parent`, without Python's own helpers."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            pid, above = int(status.parent.name), int(status.read_text().rpartition(")")[2].split()[1])
            command = (status.parent / "cmdline").read_text()
        except (OSError, ValueError):
            continue  # it ended while we looked
        if above == parent and "spawn_main" in command:
            found.append(pid)
    return found


@pytest.mark.parametrize("runner", ["threads", "processes", "dask"])
@pytest.mark.slow
def test_every_runner_gives_what_one_process_gives(runner: str, server: Server, tmp_path: Path) -> None:
    if runner == "dask":
        pytest.importorskip("prefect_dask", reason="the extra dask is not installed")
    source = raw(tmp_path / "raw", 12)
    calm, spread = str(tmp_path / "calm"), str(tmp_path / "spread")
    expected = ingest(str(source), calm, IngestOptions(batch_episodes=3))
    report = finish(
        start(server, tmp_path, "ingest", str(source), spread, "--batch", "3", "--runner", runner, "--workers", "2",
              "--json")
    )  # fmt: skip
    assert (report["added"], report["version"], report["steps"]) == (12, expected.version, expected.steps)
    assert content(spread) == content(calm)
    assert open_dataset(spread).episodes.episode_ids == open_dataset(calm).episodes.episode_ids
    assert verify(spread).ok
    assert convert_runs(server) == ["COMPLETED"] * 4


@pytest.fixture
def dask_cluster(tmp_path: Path) -> Iterator[str]:
    """The address of a scheduler with one worker that run already, and know nothing of Prefect or of us."""
    pytest.importorskip("prefect_dask", reason="the extra dask is not installed")
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "UWM_"))}
    environment = {**variables, "PYTHONPATH": str(ROOT)}
    file = tmp_path / "scheduler.json"
    common = ["--scheduler-file", str(file), "--host", "127.0.0.1", "--no-dashboard"]
    worker = ["worker", "--nworkers", "1", "--nthreads", "1", "--local-directory", str(tmp_path)]
    with contextlib.ExitStack() as stack:
        for command in (["scheduler", "--port", "0"], worker):
            full = [sys.executable, "-m", "dask", *command, *common]
            process = stack.enter_context(
                subprocess.Popen(full, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            )
            stack.callback(process.terminate)
            wait_until(file.exists, "a scheduler")
        yield str(json.loads(file.read_text())["address"])


@pytest.mark.slow
def test_a_cluster_that_runs_already_gives_what_one_process_gives(
    dask_cluster: str, server: Server, tmp_path: Path
) -> None:
    source = raw(tmp_path / "raw", 12)
    calm, spread = str(tmp_path / "calm"), str(tmp_path / "spread")
    expected = ingest(str(source), calm, IngestOptions(batch_episodes=3))
    report = finish(
        start(server, tmp_path, "ingest", str(source), spread, "--batch", "3", "--cluster", dask_cluster, "--json")
    )
    assert (report["added"], report["version"]) == (12, expected.version)
    assert content(spread) == content(calm)
    assert verify(spread).ok
    assert convert_runs(server) == ["COMPLETED"] * 4


@pytest.mark.slow
def test_a_killed_dask_worker_loses_and_doubles_nothing(server: Server, tmp_path: Path) -> None:
    pytest.importorskip("prefect_dask", reason="the extra dask is not installed")
    episodes, batch = 1000, 64
    source = raw(tmp_path / "raw", episodes)
    calm, spread = str(tmp_path / "calm"), tmp_path / "spread"
    expected = ingest(str(source), calm, IngestOptions(batch_episodes=batch))
    process = start(server, tmp_path, "ingest", str(source), str(spread), "--batch", str(batch), "--runner", "dask",
                    "--workers", "2", "--json")  # fmt: skip
    wait_for_version(spread, 2)
    workers = worker_processes(process.pid)
    assert len(workers) == 2
    os.kill(workers[0], signal.SIGKILL)
    assert open_dataset(str(spread)).version < expected.version, "the worker was killed while batches were running"
    report = finish(process)
    assert (report["added"], report["replaced"], report["present"]) == (episodes, 0, 0)
    assert report["version"] == expected.version
    assert content(str(spread)) == content(calm)
    assert verify(str(spread)).ok
    assert convert_runs(server) == ["COMPLETED"] * expected.version
    again = ingest(str(source), str(spread))
    assert (again.added, again.present, again.version) == (0, episodes, expected.version)
