"""What a user does in the browser: follow the lineage to the raw data and back, and start a run from its form."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from flows.lineage.html import html
from flows.lineage.pages import HOME_KEY, kind_key
from flows.server import Server, client_environment, local_server
from storage_schemas.lineage import LineageGraph, LineageRecord

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext

pytest.importorskip("playwright", reason="the extra `browser` is not installed: make test-browser")
import browser

pytestmark = [
    pytest.mark.browser,
    pytest.mark.server,
    pytest.mark.slow,
    pytest.mark.skipif(not browser.CHROMIUM.exists(), reason="no chromium: apt-get install chromium"),
]

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import sys
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.schedules import Cron
from flows.evaluate import evaluate
from flows.ingest import ingest
from flows.train import train

root = sys.argv[1]
ingest(f"{root}/examples/data/droid", "data/droid", val_percent=25)
trained = train("debug", ("train.steps=1", "data.datasets.0.uri=data/droid"))
evaluate(trained.path, "data/droid", samples=2)
with get_client(sync_client=True) as client:
    client.create_work_pool(WorkPoolCreate(name="here", type="process"))
there = ingest.from_source(source=root, entrypoint="flows/ingest.py:ingest")
there.to_deployment(name="nightly-video", schedule=Cron("0 2 * * *", timezone="UTC"), work_pool_name="here").apply()
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Path, dict[str, str]]]:
    """A server with a small pipeline's lineage and one scheduled deployment; its folder; variables of its clients."""
    folder = tmp_path_factory.mktemp("site")
    with local_server(folder / "prefect", port=0) as server:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "UWM_"))}
        variables = {**kept, **client_environment(server), "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(ROOT)], cwd=folder, env=variables, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-3000:]
        yield server, folder, variables


@pytest.fixture(scope="module")
def chromium() -> Iterator["BrowserContext"]:
    with browser.browser() as context:
        yield context


def test_the_links_lead_from_an_evaluation_to_the_raw_source_and_back(site: Any, chromium: "BrowserContext") -> None:
    page = browser.open_page(chromium, site[0].url, HOME_KEY)
    seen = []
    for node in ("evaluation/", "checkpoint/debug", "dataset/droid", "source/droid"):
        page = browser.follow(page, node)
        seen.append(page.inner_text("h1 >> nth=0"))
    assert "examples/data/droid/1.0.0/" in page.inner_text("body"), "the source's page lists its raw files"
    for node in ("dataset/droid", "checkpoint/debug", "evaluation/"):
        page = browser.follow(page, node)
        seen.append(page.inner_text("h1 >> nth=0"))
    assert seen[::-1] == seen, "the way back is the way there"


def test_the_pages_show_statistics_pictures_and_metrics(site: Any, chromium: "BrowserContext") -> None:
    home = browser.open_page(chromium, site[0].url, HOME_KEY)
    dataset = browser.follow(home, "dataset/droid")
    drawn = "img[src^='data:image/jpeg']"
    widths = dataset.eval_on_selector_all(drawn, "all => all.map(one => one.naturalWidth)")
    assert len(widths) == 4
    assert min(widths) > 100, "the browser decodes the sample frames"
    result = browser.follow(home, "evaluation/")
    assert result.locator("table:has-text('inverse dynamics')").count()
    assert result.locator(drawn).count()


def test_a_kind_can_be_listed_alone(site: Any, chromium: "BrowserContext") -> None:
    page = browser.open_page(chromium, site[0].url, HOME_KEY)
    with page.expect_popup() as opened:
        page.get_by_role("link", name="datasets", exact=True).first.click()
    opened.value.wait_for_url(f"**/artifacts/key/{kind_key('dataset')}")
    opened.value.wait_for_selector("td")
    rows = opened.value.locator("td:first-child").all_inner_texts()
    assert rows
    assert all(row.startswith("dataset/") for row in rows)


def test_the_html_page_filters_searches_and_opens_what_is_clicked(tmp_path: Path, chromium: "BrowserContext") -> None:
    edges = {"source/s@1": (), "dataset/d@1": ("source/s@1",), "dataset/e@1": (), "checkpoint/c@1": ("dataset/d@1",)}
    records = {
        node: LineageRecord(
            kind=node.partition("/")[0], name=node[-3], version="1", identity=node, uri=f"/lab/{node}", upstream=parents
        )
        for node, parents in edges.items()
    }
    file = tmp_path / "lineage.html"
    file.write_text(html(LineageGraph(root="/lab", records=records), {}))
    page = chromium.new_page()
    page.goto(file.as_uri())
    shown = page.locator("details:visible")
    assert shown.count() == 4
    page.uncheck("input[value=dataset]")
    assert shown.count() == 2
    page.fill("input[type=search]", "lab CHECKPOINT")
    assert shown.count() == 1
    page.locator("svg a[href='#dataset-d-1']").click()
    page.locator("details#dataset-d-1[open]").wait_for()
    assert shown.count() == 4, "a click on a node that is filtered out shows it again"
    assert "/lab/dataset/d@1" in page.locator("details#dataset-d-1").inner_text()


def test_the_parameter_form_starts_a_run_that_completes(site: Any, chromium: "BrowserContext") -> None:
    server, folder, variables = site
    page = chromium.new_page()
    page.goto(f"{server.url}/deployments")
    page.wait_for_selector("text=At 02:00 AM every day")
    browser.open_form(page, server.url, "nightly-video")
    browser.fill_form(page, {"source": str(ROOT / "examples/data/video"), "store": str(folder / "data" / "clips")})
    run = browser.submit_form(page)
    worker = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "here", "--run-once"]
    with (folder / "worker.log").open("wb") as log:
        subprocess.run(worker, cwd=folder, env=variables, stdout=log, stderr=log, timeout=180, check=True)
    assert browser.wait_finished(page) == "Completed", (folder / "worker.log").read_text()[-3000:]
    state = httpx.get(f"{server.api_url}/flow_runs/{run}").raise_for_status().json()
    assert (state["state_type"], state["parameters"]["store"]) == ("COMPLETED", str(folder / "data" / "clips"))
    made = browser.open_page(chromium, server.url, "dataset-clips-1")
    assert "What came of it" in made.inner_text("body")
