"""The flows on a real Prefect server: one server and one small pipeline for all tests of this file."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from flows.lineage.pages import HOME_KEY, keys, kind_key
from flows.runtime.server import Server, client_environment, is_healthy, local_server
from storage_schemas.lineage.records import KINDS, LineageGraph, graph

pytestmark = pytest.mark.server

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "data"
SCRIPT = """
import sys
from flows.ingest import ingest
from flows.pipeline import pretrain_then_finetune
from flows.publish import republish
from flows.train import train
from pipelines.options import IngestOptions
from storage_schemas.errors import UserError
from uwm.eval.options import EvalOptions

examples = sys.argv[1]
first = ingest(f"{examples}/droid", "data/droid", IngestOptions(val_percent=25))
ingest(f"{examples}/video", "data/video", IngestOptions(collection="clips"))
pretrain_then_finetune(
    "debug",
    "debug",
    overrides=(
        "train.steps=1",
        "data.datasets.0.uri=data/droid",
        "pretrain.data.datasets.1.uri=data/video",
        "finetune.stage=finetune",
        "finetune.name=tuned",
    ),
    evaluate_on=("data/droid",),
    options=EvalOptions(samples=2),
)
print("republished", republish(first.root))
print("again", republish(first.root))
try:
    train("debugg")
except UserError as error:
    print("refused", error)
"""


@dataclass(frozen=True)
class Site:
    """What the pipeline left behind."""

    server: Server
    output: str
    log: str
    graph: LineageGraph

    def post(self, path: str, **body: object) -> Any:
        """Ask the server's API."""
        return httpx.post(f"{self.server.api_url}/{path}", json=body).raise_for_status().json()

    def page(self, key: str) -> str:
        """The newest artifact of a key."""
        response = httpx.get(f"{self.server.api_url}/artifacts/{key}/latest").raise_for_status()
        return str(response.json()["description"])

    def page_of(self, node: str) -> str:
        """The page of a node."""
        return self.page(keys(self.graph)[node])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    with local_server(folder / "prefect", port=0) as server:
        variables = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "UWM_"))}
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(EXAMPLES)],
            cwd=folder,
            env={**variables, **client_environment(server)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        yield Site(server, done.stdout, done.stderr, graph(str(folder / "data" / "lineage")))
    assert not is_healthy(server.api_url, timeout=1), "the server is stopped when the block ends"


def test_every_flow_run_that_should_completed(site: Site) -> None:
    runs = site.post("flow_runs/filter")
    states = {(run["name"].split()[0], run["state_type"]) for run in runs if run["name"] != "train debugg"}
    assert {name for name, _ in states} >= {"ingest", "train", "evaluate", "debug"}
    assert {state for _, state in states} == {"COMPLETED"}


def test_a_users_mistake_fails_the_run_with_one_line_and_no_traceback(site: Site) -> None:
    (run,) = (run for run in site.post("flow_runs/filter") if run["name"] == "train debugg")
    assert run["state_type"] == "FAILED"
    assert "did you mean 'debug'" in run["state"]["message"]
    assert "refused unknown recipe" in site.output
    assert "Traceback" not in site.log


def test_every_node_has_a_page_and_every_link_leads_to_one(site: Site) -> None:
    kinds = sorted(record.kind for record in site.graph.records.values())
    assert kinds == sorted(["source"] * 2 + ["dataset"] * 2 + ["checkpoint"] * 2 + ["evaluation"] * 2)
    pages = {key: site.page(key) for key in [HOME_KEY, *map(kind_key, KINDS), *keys(site.graph).values()]}
    linked = {key for text in pages.values() for key in re.findall(r"\(/artifacts/key/([^)]*)\)", text)}
    assert linked == set(pages)


def test_flow_run_links_lead_to_flow_runs(site: Site) -> None:
    there = {run["id"] for run in site.post("flow_runs/filter")}
    linked = {run for node in site.graph.nodes for run in re.findall(r"/flow-run/([0-9a-f-]+)", site.page_of(node))}
    assert linked
    assert linked <= there


def test_republishing_changes_nothing(site: Site) -> None:
    assert "republished 0\nagain 0\n" in site.output


def test_training_reports_its_progress_and_its_log(site: Site) -> None:
    artifacts = {item["key"]: item for item in site.post("artifacts/latest/filter")}
    assert float(artifacts["progress-debug"]["data"]) == 100
    messages = [entry["message"] for entry in site.post("logs/filter")]
    assert any("step 1/1: loss" in message for message in messages)
    assert any("attention" in message for message in messages)


def test_the_page_of_the_finetuned_checkpoint_goes_back_to_the_raw_data(site: Site) -> None:
    (tuned,) = (node for node in site.graph.nodes if node.startswith("checkpoint/tuned"))
    text = site.page_of(tuned)
    for node in site.graph.upstream(tuned):
        assert keys(site.graph)[node] in text
    assert {node.split("/")[0] for node in site.graph.upstream(tuned)} == {"source", "dataset", "checkpoint"}
    assert "data:image/svg+xml;base64," in text
