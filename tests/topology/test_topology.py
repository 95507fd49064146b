"""The topology of docker-compose.yml, started without containers: work gets done, and kill -9 loses nothing."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import fsspec
import numpy as np
import pytest
import topology as native
from topology import Topology, wait_for

from storage_schemas.integrity import verify
from storage_schemas.store import dataset_exists, open_dataset

pytestmark = [pytest.mark.topology, pytest.mark.slow, pytest.mark.server]

BUCKET = "s3://uwm"
VIDEOS, STEPS_PER_VIDEO, CLIP_STEPS = 24, 60, 6
CLIPS = VIDEOS * STEPS_PER_VIDEO // CLIP_STEPS
RUN_SECONDS = 240.0
DEPLOY = """
import sys
from prefect import flow
made = flow.from_source(source=sys.argv[1], entrypoint="flows/ingest.py:ingest")
made.deploy("topology", work_pool_name="cpu", print_next_steps=False, ignore_warnings=True)
"""


@dataclass
class Site:
    """The topology with a deployment of the flow `ingest`, and the S3 that it works on."""

    services: Topology
    files: Any
    """fsspec's view of the S3."""

    def request(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Ask the API."""
        with self.services.client() as client:
            return client.request(method, path, json=body).raise_for_status().json()

    def ingest(self, source: str, store: str, **options: Any) -> str:
        """Start a run of the deployment; its id."""
        deployment = self.request("GET", "deployments/name/ingest/topology")["id"]
        body = {"parameters": {"source": source, "store": store, **options}}
        return str(self.request("POST", f"deployments/{deployment}/create_flow_run", body)["id"])

    def state(self, run: str) -> dict[str, Any]:
        """The state of a run."""
        return dict(self.request("GET", f"flow_runs/{run}")["state"])

    def ended(self, run: str) -> dict[str, Any]:
        """The state that a run ends in."""

        def final() -> dict[str, Any] | None:
            state = self.state(run)
            return state if state["type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED") else None

        return dict(wait_for(f"the end of run {run}", final, RUN_SECONDS, pause=0.5))

    def completed(self, source: str, store: str, **options: Any) -> None:
        """Ingest and wait; a state other than completed fails the test with the run's log."""
        run = self.ingest(source, store, **options)
        state = self.ended(run)
        assert state["type"] == "COMPLETED", f"{state['name']}: {state['message']}\n{self.log(run)}"

    def log(self, run: str) -> str:
        """What a run said."""
        body = {"logs": {"flow_run_id": {"any_": [run]}}, "sort": "TIMESTAMP_ASC"}
        return "\n".join(entry["message"] for entry in self.request("POST", "logs/filter", body))


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    if missing := native.missing_programs():
        pytest.skip(f"needs {' and '.join(missing)}: apt-get install {' '.join(missing)}, or make test-topology")
    with native.running() as services, pytest.MonkeyPatch.context() as patch:
        variables = services.environment("worker")
        for name in (name for name in variables if name.startswith("AWS_")):
            patch.setenv(name, variables[name])
        patch.delenv("UWM_LINEAGE", raising=False)
        made = services.run("worker", [sys.executable, "-c", DEPLOY, str(native.ROOT)])
        assert made.returncode == 0, made.stderr
        yield Site(services, fsspec.filesystem("s3", skip_instance_cache=True))


@pytest.fixture(scope="module")
def clips(site: Site, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder of the S3 with videos enough for several commits."""
    folder = tmp_path_factory.mktemp("clips")
    for number in range(VIDEOS):
        write_video(folder / f"{number:02}.mp4", number)
    site.files.put(f"{folder}/", f"{BUCKET}/raw/clips/", recursive=True)
    return f"{BUCKET}/raw/clips/*.mp4"


def write_video(path: Path, seed: int) -> None:
    """Four seconds of patterns that move, different for every seed."""
    rng = np.random.default_rng(seed)
    phase, speed = rng.uniform(0, 6, (2, 3))
    y, x = np.mgrid[0:96, 0:128]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=15)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for step in range(STEPS_PER_VIDEO):
            wave = np.sin(x[..., None] / 9 + phase + step * speed / 5) + np.cos(y[..., None] / 7 + phase - step / 3)
            frame = av.VideoFrame.from_ndarray(np.clip(128 + 60 * wave, 0, 255).astype(np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def test_videos_and_robot_data_through_a_deployment(site: Site, fixtures_root: Path) -> None:
    site.files.put(f"{fixtures_root}/droid_rlds/droid_100/", f"{BUCKET}/raw/droid_100/", recursive=True)
    site.files.put(f"{fixtures_root}/videos/world_5fps.mp4", f"{BUCKET}/raw/videos/world_5fps.mp4")
    robot = site.ingest(f"{BUCKET}/raw/droid_100/1.0.0", f"{BUCKET}/stores/droid")
    video = site.ingest(f"{BUCKET}/raw/videos/*.mp4", f"{BUCKET}/stores/video", collection="clips")
    for run in (robot, video):
        assert site.ended(run)["type"] == "COMPLETED", site.log(run)
    truth = json.loads((fixtures_root / "droid_rlds/expected_droid_100.json").read_text())
    assert len(open_dataset(f"{BUCKET}/stores/droid").episodes) == sum(truth["shard_lengths"])


@pytest.mark.parametrize("victim", ["server", "postgres", "redis"])
def test_kill(site: Site, clips: str, victim: str) -> None:
    """The ingestion goes on without its orchestrator; when that is back, the run ends and nothing is lost or doubled."""
    store = f"{BUCKET}/stores/killed-{victim}"
    run = site.ingest(clips, store, clip_steps=CLIP_STEPS)
    wait_for("the first commit", lambda: dataset_exists(store) and open_dataset(store).version > 0, RUN_SECONDS)
    site.services.kill(victim)
    import time
    b=time.monotonic()
    wait_for("the last commit", lambda: len(open_dataset(store).episodes) == CLIPS, RUN_SECONDS)
    print(victim, "last commit without it", time.monotonic() - b)
    site.services.start(victim)
    print("restarted", time.monotonic() - b)
    state = site.ended(run)
    print(state, time.monotonic() - b)
    print(site.log(run)[-600:])
    site.completed(clips, store, clip_steps=CLIP_STEPS)
    ids = open_dataset(store).episodes.column("episode_id")
    assert len(ids) == len(set(ids)) == CLIPS
    assert verify(store).ok
    assert open_dataset(store).version == 4
