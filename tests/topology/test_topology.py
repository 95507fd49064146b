"""The topology of docker-compose.yml, started without containers: work gets done, and kill -9 loses nothing."""

import json
import re
import shlex
import subprocess
import sys
from collections import Counter
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

from storage_schemas.catalog.table import dataset_exists
from storage_schemas.lineage.records import graph
from storage_schemas.maintenance.verify import verify
from storage_schemas.store.dataset import open_dataset
from uwm.config import DataConfig, DatasetRef
from uwm.data.loader import SegmentReader, batches
from uwm.data.mixture import mixture_sampler, open_mixture

pytestmark = [pytest.mark.topology, pytest.mark.slow]

BUCKET = "s3://uwm"
VIDEOS, STEPS_PER_VIDEO, CLIP_STEPS = 24, 60, 6
CLIPS = VIDEOS * STEPS_PER_VIDEO // CLIP_STEPS
BY_FILE = {"clip_steps": CLIP_STEPS, "batch_episodes": 1}
"""So that every video is a commit, and there is a middle to be killed in."""
RUN_SECONDS = 240.0
DEPLOY = """
import sys
from prefect import flow
made = flow.from_source(source=sys.argv[1], entrypoint="flows/ingest.py:ingest")
made.deploy("topology", work_pool_name="uwm", print_next_steps=False, ignore_warnings=True)
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
        body = {"parameters": {"source": source, "store": store, "options": options}}
        return str(self.request("POST", f"deployments/{deployment}/create_flow_run", body)["id"])

    def ids(self, kind: str) -> set[str]:
        """Of all flow runs that are not to come, or of all artifacts."""
        body = {"flow_runs": {"state": {"type": {"not_any_": ["SCHEDULED"]}}}} if kind == "flow_runs" else {}
        return {item["id"] for item in self.request("POST", f"{kind}/filter", body)}

    def state(self, run: str) -> dict[str, Any]:
        """The state of a run."""
        return dict(self.request("GET", f"flow_runs/{run}")["state"])

    def ended(self, run: str) -> dict[str, Any]:
        """The state that a run ends in; one that crashed is resumed by an automation."""

        def final() -> dict[str, Any] | None:
            state = self.state(run)
            return state if state["type"] in ("COMPLETED", "FAILED", "CANCELLED") else None

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


def test_the_site_of_the_compose_file_is_deployed(site: Site) -> None:
    """The service `deploy` made its pool, queues, deployments and automations; once more changes nothing."""
    again = site.services.run("deploy", [*site.services.command("deploy"), "--json"])
    assert again.returncode == 0, again.stderr
    changes = json.loads(again.stdout)
    assert {change["what"] for change in changes} == {"unchanged"}
    kinds = Counter(change["kind"] for change in changes)
    assert kinds == {"work pool": 1, "GPU slots": 1, "deployment": 9, "automation": 4}
    found = site.request("POST", "deployments/filter", {"deployments": {"tags": {"all_": ["uwm"]}}})
    learning = {"pretrain-then-finetune", "train", "finetune", "evaluate", "latents"}
    assert {made["name"] for made in found if made["work_queue_name"] == "gpu"} == learning
    assert {made["work_queue_name"] for made in found if made["name"] not in learning} == {"default"}


def test_videos_and_robot_data_through_a_deployment(site: Site, fixtures_root: Path) -> None:
    """From `s3://` to `s3://` and back through the loader; the lineage is on the server."""
    truth = json.loads((fixtures_root / "droid_rlds/expected_droid_100.json").read_text())
    site.files.put(f"{fixtures_root}/droid_rlds/droid_100/", f"{BUCKET}/raw/droid_100/", recursive=True)
    site.files.put(f"{fixtures_root}/videos/bikes_vp9.webm", f"{BUCKET}/raw/videos/bikes_vp9.webm")
    droid, video = f"{BUCKET}/stores/droid", f"{BUCKET}/stores/video"
    runs = [
        site.ingest(f"{BUCKET}/raw/droid_100/1.0.0", droid, val_percent=0),
        site.ingest(f"{BUCKET}/raw/videos/*.webm", video, val_percent=0),
    ]
    for run in runs:
        assert site.ended(run)["type"] == "COMPLETED", site.log(run)
    assert len(open_dataset(droid).episodes) == sum(truth["shard_lengths"])
    assert verify(droid).ok
    assert verify(video).ok
    check_batch(DataConfig(datasets=(DatasetRef(uri=droid), DatasetRef(uri=video))))
    home = site.request("GET", "artifacts/lineage-home/latest")["description"]
    assert "dataset/droid@" in home
    assert "dataset/video@" in home
    pages = f"http://127.0.0.1:{site.services.ports['server']}/"
    records = graph(f"{BUCKET}/stores/lineage").records
    assert len(records) == 4
    assert all(record.run_url.startswith(pages) for record in records.values())


def check_batch(config: DataConfig) -> None:
    """A batch of robot data and video: actions are known of the one only, and are those of the store."""
    members = open_mixture(config)
    reader = SegmentReader([member.dataset for member in members], config)
    batch = next(batches(reader, mixture_sampler(members, seed=0), start=0, stop=8, batch_size=8))
    robot = batch.dataset == 0
    assert 0 < int(robot.sum()) < 8
    assert bool(batch.action_mask[robot].any())
    assert not bool(batch.action_mask[~robot].any())
    assert bool(batch.frames[batch.view_mask].float().std() > 1)
    row, step = int(batch.episode[robot][0]), int(batch.step[robot][0])
    known = batch.action_mask[robot][0].numpy()
    stored = members[0].dataset.array(row, "action")[step:][: len(known)]
    assert (batch.action[robot][0].numpy()[known] == stored[known[: len(stored)]]).all()


@pytest.mark.parametrize("victim", ["server", "postgres", "redis"])
def test_kill_9_of_one(site: Site, clips: str, victim: str) -> None:
    """The ingestion goes on without it; when it is back, the run ends, and nothing is lost or doubled."""
    store = f"{BUCKET}/stores/without-{victim}"
    run = site.ingest(clips, store, **BY_FILE)
    wait_for("the first commit", lambda: committed(store))
    site.services.kill(victim)
    assert committed(store) < CLIPS, "it was killed in the middle"
    wait_for("the last commit", lambda: committed(store) == CLIPS)
    site.services.start(victim)
    state = site.ended(run)
    assert state["type"] == "COMPLETED", f"{state['message']}\n{site.log(run)}"
    check_whole(store)
    for name in ("server", "services", "worker"):
        wait_for(f"{name} to be healthy again", lambda name=name: site.services.is_healthy(name))


def test_kill_9_of_all(site: Site, clips: str) -> None:
    """The machine goes down in the middle: what was committed is there, and a rerun adds exactly the rest.

    The lost run may be resumed by its silence beside the rerun, and does no harm. Whether it is can't be relied on
    when the server goes with it: see docs/operations.md.
    """
    store = f"{BUCKET}/stores/power-cut"
    lost = site.ingest(clips, store, **BY_FILE)
    wait_for("the first commits", lambda: committed(store) >= 3)
    running = site.services.running()
    for name in reversed(running):
        site.services.kill(name)
    before = open_dataset(store)
    assert 0 < len(before.episodes) < CLIPS
    assert verify(store).ok
    for name in running:
        site.services.start(name)
    assert site.state(lost)["type"] in ("RUNNING", "CRASHED", "SCHEDULED")  # by how long the restart took
    site.completed(clips, store, **BY_FILE)
    assert set(before.episodes.column("episode_id")) <= set(open_dataset(store).episodes.column("episode_id"))
    check_whole(store)


def committed(store: str) -> int:
    """Episodes of the newest version; 0 when there is none."""
    return len(open_dataset(store).episodes) if dataset_exists(store) else 0


def check_whole(store: str) -> None:
    """Every clip is there once, and every byte is as it was written."""
    ids = open_dataset(store).episodes.column("episode_id")
    assert len(ids) == len(set(ids)) == CLIPS
    assert verify(store).ok


def test_a_dump_of_the_server_restores(site: Site) -> None:
    """With the commands of docs/operations.md; a second server on the restored database has the same runs."""
    services, file = site.services, site.services.home("postgres") / "prefect.dump"
    dump, create, restore = guide("pg_dump"), guide("createdb"), guide("pg_restore")
    before = site.ids("flow_runs"), site.ids("artifacts")
    assert all(before)
    with file.open("w+b") as data:
        for words, stream in ((dump, {"stdout": data}), (create, {}), (restore, {"stdin": data})):
            data.seek(0)
            command = native.pg(services, *words)
            done = subprocess.run(command, env=services.environment("postgres"), check=False, **stream)
            assert done.returncode == 0
    services.services["second"] = {
        **services.services["server"],
        "environment": {**services.services["server"]["environment"], "PREFECT_SERVER_DATABASE_NAME": create[-1]},
    }
    services.stop("server")
    services.start("second")
    restored = site.ids("flow_runs"), site.ids("artifacts")
    assert before[0] <= restored[0]  # a schedule may have started one meanwhile
    assert before[1] <= restored[1]
    services.stop("second")
    services.start("server")


def guide(program: str) -> list[str]:
    """A command of the guide, without what runs it in a container and without its redirection."""
    text = (native.ROOT / "docs/operations.md").read_text()
    (line,) = re.findall(rf"^docker compose exec -T postgres ({program} [^<>\n]*)", text, re.MULTILINE)
    return shlex.split(line)
