"""Schedules, triggers, queues and crashes on a real Prefect server with a real worker: one of each for this file."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import av
import httpx
import numpy as np
import pytest
from safetensors.numpy import load_file

from flows.runtime.server import Server, client_environment, local_server
from storage_schemas.store.dataset import open_dataset

pytestmark = [pytest.mark.server, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples" / "data"
UWM = [sys.executable, "-c", "from flows.cli import main; main()"]
STEPS, SAVE_EVERY = 400, 20
SITE = """
silence = 60

[[watch]]
name = "video"
source = "incoming"
store = "stores/video"
format = "video"
val_percent = 50
reject = []
quiet = 8
every = 20

[[chain]]
track = "video"
dataset = "stores/video"
recipe = "debug"
overrides = ["data.datasets.0.uri=stores/video", "train.steps=2"]
metric = "video/latent_mse"
samples = 4
rest = 5

[gc]
stores = ["stores/robot"]
cron = "* * * * *"
"""
LATENTS = ["data.datasets.0.uri=stores/robot", "data.latents=whole"]

T = TypeVar("T")


@dataclass
class Site:
    """A server, a site's folder, and its worker."""

    server: Server
    folder: Path
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "UWM_"))}
        return {**kept, **client_environment(self.server), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def uwm(self, *arguments: str) -> str:
        """Run a command of ours in the site's folder; returns what it prints."""
        done = subprocess.run(
            [*UWM, *arguments], cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    def cancel(self, run: str) -> None:
        command = [sys.executable, "-m", "prefect", "flow-run", "cancel", run]
        subprocess.run(command, env=self.environment, capture_output=True, check=True)

    def start_worker(self, *arguments: str) -> None:
        with (self.folder / f"worker-{len(self.workers)}.log").open("wb") as log:
            command = [*UWM, "worker", "--limit", "6", *arguments]
            self.workers.append(
                subprocess.Popen(command, cwd=self.folder, env=self.environment, stdout=log, stderr=log)
            )

    def kill_everything(self) -> None:
        """SIGKILL to the worker, its flow runs and their training processes, as when a machine loses its power."""
        for pid in reversed(family(self.workers[-1].pid)):
            os.kill(pid, signal.SIGKILL)
        self.workers[-1].wait()

    def ask(self, method: str, path: str, body: object = None) -> httpx.Response:
        """A request; again when the server's SQLite was locked, as Prefect's own client does, or a question waited."""
        for left in reversed(range(20)):
            try:
                response = httpx.request(method, f"{self.server.api_url}/{path}", json=body, timeout=60)
            except httpx.ReadTimeout:
                if method != "GET" or not left:
                    raise
                continue
            if response.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                break
            time.sleep(0.5)
        return response.raise_for_status()

    def post(self, path: str, **body: object) -> Any:
        return self.ask("POST", path, body).json()

    def get(self, path: str) -> Any:
        return self.ask("GET", path).json()

    def pause(self, name: str) -> None:
        self.ask("PATCH", f"deployments/{self.deployment(name)['id']}", {"paused": True})

    def deployment(self, name: str) -> dict[str, Any]:
        (found,) = self.post("deployments/filter", deployments={"name": {"any_": [name]}})
        return dict(found)

    def runs(self, name: str) -> list[dict[str, Any]]:
        """Flow runs of a deployment that have begun or are due."""
        found = self.post("flow_runs/filter", deployments={"name": {"any_": [name]}}, sort="START_TIME_ASC")
        return [run for run in found if not (run["auto_scheduled"] and run["state_type"] == "SCHEDULED")]

    def start(self, name: str, **parameters: object) -> str:
        run = self.post(f"deployments/{self.deployment(name)['id']}/create_flow_run", parameters=parameters)
        return str(run["id"])

    def train(self, name: str, steps: int = STEPS) -> str:
        settings = {
            "data": [{"uri": "stores/robot"}],
            "output": f"runs/{name}",
            "steps": steps,
            "save_every": SAVE_EVERY,
        }
        return self.start("train", recipe="debug", settings=settings, overrides=[f"train.log_every={SAVE_EVERY}"])

    def state(self, run: str) -> str:
        return str(self.get(f"flow_runs/{run}")["state_type"])

    def history(self, run: str) -> list[dict[str, Any]]:
        return sorted(self.get(f"flow_run_states/?flow_run_id={run}"), key=lambda state: state["timestamp"])

    def logs(self, run: str) -> list[dict[str, Any]]:
        return list(self.post("logs/filter", logs={"flow_run_id": {"any_": [run]}}, sort="TIMESTAMP_ASC", limit=200))

    def said(self, run: str, pattern: str) -> datetime:
        """When a flow run logged a line that matches."""
        times = [entry["timestamp"] for entry in self.logs(run) if re.search(pattern, entry["message"])]
        assert times, f"no {pattern!r} among {[entry['message'] for entry in self.logs(run)]}"
        return datetime.fromisoformat(times[0])

    def checkpoints(self, name: str) -> list[Path]:
        return sorted(self.folder.glob(f"runs/{name}/checkpoints/step-*/state.json"))

    def slots_taken(self) -> int:
        return int(self.get("v2/concurrency_limits/uwm-gpu")["active_slots"])

    def decisions(self) -> list[dict[str, Any]]:
        return [json.loads(path.read_text()) for path in sorted(self.folder.glob("stores/lineage/promotions/video/*"))]

    def watched(self, since: int) -> int:
        """Runs of the watch that completed, beyond the first `since`."""
        return sum(run["state_type"] == "COMPLETED" for run in self.runs("ingest-video")) - since


def family(pid: int) -> list[int]:
    """A process and all that descend from it, parents first."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents.setdefault(int(stat.read_text().rpartition(")")[2].split()[1]), []).append(int(stat.parent.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    found = [pid]
    for member in found:
        found += parents.get(member, [])
    return found


def wait_for(what: Callable[[], T], seconds: float = 240) -> T:
    """The first result that counts as true. The deadline is generous; it only keeps a failure from hanging."""
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(1)
    return found


def film(path: Path, seed: int) -> None:
    """A second and a half of moving colours."""
    y, x = np.mgrid[0:48, 0:64]
    temporary = path.with_suffix(".part")
    with av.open(str(temporary), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=15)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for step in range(24):
            waves = [
                127 + 100 * np.sin((x + seed * 7 + 3 * step) / 9 + c) * np.cos((y + 2 * step) / 7) for c in range(3)
            ]
            image = np.stack(waves, axis=-1).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    temporary.rename(path)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    (folder / "deploy.toml").write_text(SITE)
    (folder / "incoming").mkdir()
    with local_server(folder / "prefect", port=0) as server:
        made = Site(server, folder)
        made.uwm("ingest", str(EXAMPLES / "droid"), "stores/robot", "--val-percent", "50", "--no-flow")
        made.uwm("deploy")
        made.start_worker()
        try:
            yield made
        finally:
            pids = [pid for worker in made.workers if worker.poll() is None for pid in family(worker.pid)]
            for pid in reversed(pids):
                os.kill(pid, signal.SIGKILL)
            for worker in made.workers:
                worker.wait()


def test_deploying_again_changes_nothing(site: Site) -> None:
    changes = json.loads(site.uwm("deploy", "--json"))
    assert {item["what"] for item in changes} == {"unchanged"}
    assert {item["kind"] for item in changes} == {"work pool", "GPU slots", "deployment", "automation"}


def test_a_change_in_the_site_file_changes_only_what_it_names(site: Site) -> None:
    site.pause("doctor")
    file = site.folder / "deploy.toml"
    for text in (SITE.replace("[gc]", "[gc]\nage_hours = 72").replace("silence = 60", "silence = 70"), SITE):
        file.write_text(text)
        planned = json.loads(site.uwm("deploy", "--dry-run", "--json"))
        assert json.loads(site.uwm("deploy", "--json")) == planned
        changed = {item["name"]: item["what"] for item in planned if item["what"] != "unchanged"}
        assert changed == {"gc": "updated (parameters)", "uwm: mark silent runs as crashed": "updated"}
    assert site.deployment("doctor")["paused"]


def test_a_cron_deployment_creates_and_completes_a_run(site: Site) -> None:
    wait_for(lambda: any(run["state_type"] == "COMPLETED" and run["auto_scheduled"] for run in site.runs("gc")))
    site.pause("gc")


def test_new_video_becomes_a_version_and_is_trained_on_once_and_nothing_new_does_nothing(site: Site) -> None:
    wait_for(lambda: site.watched(0) >= 1)
    assert not (site.folder / "stores" / "video").exists(), "an empty folder makes no dataset"
    for seed in range(4):
        film(site.folder / "incoming" / f"first-{seed}.mp4", seed)
    (first,) = wait_for(site.decisions)
    assert first["promoted"]
    assert "no best yet" in first["reason"]
    store = str(site.folder / "stores" / "video")
    assert open_dataset(store).version == int(first["dataset"].rpartition("@")[2])
    assert first["candidate"]["evaluation"].startswith("evaluation/")

    before, version = site.watched(0), open_dataset(store).version
    wait_for(lambda: site.watched(before) >= 2)
    assert open_dataset(store).version == version, "dropping nothing makes no version"
    assert len(site.runs("chain-video")) == 1, "and starts nothing"

    for seed in range(20):
        film(site.folder / "incoming" / f"burst-{seed}.mp4", 100 + seed)
        time.sleep(0.25)
    _, second = wait_for(lambda: found if len(found := site.decisions()) == 2 else None)
    before = site.watched(0)
    wait_for(lambda: site.watched(before) >= 1)
    assert open_dataset(store).version == version + 1, "20 files make one version"
    assert len(open_dataset(store).episodes) == 24
    assert len(site.runs("chain-video")) == 2, "and one chain"
    assert second["best"]["checkpoint"] == first["candidate"]["checkpoint"]
    assert second["best"]["evaluation"] != first["candidate"]["evaluation"], "measured again on the new version"
    assert "video: " in site.uwm("promoted", "--root", "stores/lineage")
    site.pause("ingest-video")


def test_two_flows_that_queue_for_one_gpu_slot_run_one_after_the_other(site: Site) -> None:
    first = site.train("one")
    wait_for(lambda: site.checkpoints("one"))  # long before its end: the second comes to wait while it trains
    second = site.train("two", steps=40)
    wait_for(lambda: all(site.state(run) == "COMPLETED" for run in (first, second)))
    held = site.said(second, "holding a slot")
    assert site.said(second, "waiting for a slot") < site.said(first, "complete at step") < held
    assert site.slots_taken() == 0


def test_a_time_out_stops_with_a_checkpoint_and_frees_the_slot(site: Site) -> None:
    settings = {"data": [{"uri": "stores/robot"}], "output": "runs/late", "steps": 100_000}
    run = site.start("train", recipe="debug", settings=settings, overrides=["train.log_every=20"], hours=20 / 3600)
    wait_for(lambda: site.get(f"flow_runs/{run}")["state_name"] == "TimedOut")
    assert site.checkpoints("late"), "it stopped with a checkpoint"
    assert site.slots_taken() == 0


def test_a_training_process_that_dies_is_started_again_within_the_run(site: Site) -> None:
    run = site.train("flaky")
    wait_for(lambda: site.checkpoints("flaky"))
    commands = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in family(site.workers[-1].pid)}
    (trainer,) = [
        pid for pid, command in commands.items() if b"uwm.train" in command and b"end_with_parent" not in command
    ]
    os.kill(trainer, signal.SIGKILL)
    wait_for(lambda: site.state(run) == "COMPLETED")
    assert "CRASHED" not in {state["type"] for state in site.history(run)}
    assert site.checkpoints("flaky")[-1].parent.name == f"step-{STEPS:08d}"


def test_cancelling_saves_a_checkpoint_and_frees_the_slot_and_a_rerun_goes_on(
    site: Site,
) -> None:
    run = site.train("cancelled")
    wait_for(lambda: site.checkpoints("cancelled"))
    site.cancel(run)
    wait_for(lambda: site.state(run) == "CANCELLED")
    asked = next(state for state in site.history(run) if state["type"] == "CANCELLING")
    last = site.checkpoints("cancelled")[-1]
    seconds = last.stat().st_mtime - datetime.fromisoformat(asked["timestamp"]).timestamp()
    step = json.loads(last.read_text())["step"]
    assert step < STEPS
    assert seconds < 10
    wait_for(lambda: site.slots_taken() == 0, seconds=30)
    again = site.train("cancelled")
    wait_for(lambda: site.state(again) == "COMPLETED")
    assert site.said(again, f"from step {step} to {STEPS}")
    assert site.checkpoints("cancelled")[-1].parent.name == f"step-{STEPS:08d}"


def test_a_run_that_was_killed_with_its_worker_is_marked_crashed_and_resumed_to_the_same_weights(site: Site) -> None:
    run = site.train("killed")
    wait_for(lambda: site.checkpoints("killed"))
    site.kill_everything()
    step = json.loads(site.checkpoints("killed")[-1].read_text())["step"]
    assert step < STEPS
    site.start_worker()
    wait_for(lambda: site.state(run) == "COMPLETED", seconds=480)
    states = [(state["type"], state["message"] or "") for state in site.history(run)]
    assert ("CRASHED", "no heartbeat for 60 s") in states
    assert ("SCHEDULED", "resumed after a crash") in states
    assert site.said(run, f"from step {step} to {STEPS}")
    assert site.slots_taken() == 0
    settings = [
        f"train.steps={STEPS}",
        f"train.save_every={SAVE_EVERY}",
        f"train.log_every={SAVE_EVERY}",
        "data.datasets.0.uri=stores/robot",
    ]
    site.uwm("train", "debug", "output=runs/undisturbed", *settings, "--no-flow")
    killed, undisturbed = (site.checkpoints(name)[-1].parent for name in ("killed", "undisturbed"))
    assert killed.name == undisturbed.name
    for file in ("model.safetensors", "ema.safetensors"):
        found, expected = load_file(killed / file), load_file(undisturbed / file)
        assert found.keys() == expected.keys()
        assert all(np.array_equal(found[name], expected[name]) for name in expected)


def test_a_run_whose_worker_alone_is_killed_stops_in_order_and_is_resumed(site: Site) -> None:
    run = site.train("orphaned")
    wait_for(lambda: site.checkpoints("orphaned"))
    members = family(site.workers[-1].pid)
    site.workers[-1].kill()
    site.workers[-1].wait()
    wait_for(lambda: not [pid for pid in members if Path(f"/proc/{pid}").exists()], seconds=60)
    wait_for(lambda: any(state["type"] == "CRASHED" for state in site.history(run)), seconds=30)
    assert not [state for state in site.history(run) if "no heartbeat" in (state["message"] or "")]
    assert site.slots_taken() == 0
    site.start_worker()
    wait_for(lambda: site.state(run) == "COMPLETED", seconds=480)
    step = json.loads(site.checkpoints("orphaned")[-1].read_text())["step"]
    assert step == STEPS


def test_a_run_that_is_cancelled_while_its_worker_is_gone_stays_cancelled(site: Site) -> None:
    run = site.train("given-up")
    wait_for(lambda: site.checkpoints("given-up"))
    site.kill_everything()
    site.cancel(run)
    wait_for(lambda: site.state(run) == "CANCELLED")
    site.start_worker()
    last = site.train("last", steps=20)
    wait_for(lambda: site.state(last) == "COMPLETED")
    assert site.state(run) == "CANCELLED"
    assert "CRASHED" not in {state["type"] for state in site.history(run)}


def test_a_training_waits_for_a_worker_of_the_gpu_queue(site: Site) -> None:
    (site.folder / "deploy.toml").write_text(f'gpu_queue = "gpu"\n{SITE}')
    changes = json.loads(site.uwm("deploy", "--json"))
    changed = {item["name"]: item["what"] for item in changes if item["what"] != "unchanged"}
    learning = ("pretrain-then-finetune", "train", "finetune", "evaluate", "chain-video", "latents")
    if (site.folder / "stores" / "video").exists():  # it has come since the last deploy, and is known by its id now
        assert changed.pop("uwm: start chain-video") == "updated"
    assert changed == dict.fromkeys(learning, "updated (work_queue_name)")
    site.kill_everything()
    site.start_worker("--queue", "default")
    trained, encoded = site.train("queued", steps=20), site.start("latents", recipe="debug", overrides=LATENTS)
    examined = site.start("doctor", target="stores/robot")
    wait_for(lambda: site.state(examined) == "COMPLETED")
    assert (site.state(trained), site.state(encoded)) == ("SCHEDULED", "SCHEDULED")
    site.start_worker("--queue", "gpu")
    wait_for(lambda: (site.state(trained), site.state(encoded)) == ("COMPLETED", "COMPLETED"))
    assert list((site.folder / "stores" / "robot").glob("latents/*")), "the flow has encoded something"
