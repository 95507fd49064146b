"""What a user does in the browser: follow the lineage to the raw data and back, and start a run from its form."""

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

import httpx
import pytest

from flows.lineage.pages import HOME_KEY, kind_key
from uwm.recipes import RECIPES

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext

pytest.importorskip("playwright", reason="the extra `browser` is not installed: make test-browser")
import browser
from served import ROOT, Site, serve

pytestmark = [
    pytest.mark.browser,
    pytest.mark.server,
    pytest.mark.slow,
    pytest.mark.skipif(not browser.CHROMIUM.exists(), reason="no chromium: apt-get install chromium"),
]

SITE = """
[[watch]]
name = "robot"
source = "{examples}/droid"
store = "data/droid"
val_percent = 25
quiet = 0
cron = "0 2 * * *"
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A server with the deployments of `uwm deploy`, and a small pipeline's lineage."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "deploy.toml").write_text(SITE.format(examples=ROOT / "examples" / "data"))
    with serve(folder) as site:
        site.uwm("deploy")
        site.uwm("ingest", str(ROOT / "examples" / "data" / "droid"), "data/droid", "--val-percent", "25")
        site.uwm("train", "debug", "train.steps=1", "data.datasets.0.uri=data/droid")
        site.uwm("evaluate", "runs/debug", "data/droid", "--samples", "2")
        yield site


@pytest.fixture(scope="module")
def chromium() -> Iterator["BrowserContext"]:
    with browser.browser() as context:
        yield context


def test_the_links_lead_from_an_evaluation_to_the_raw_source_and_back(site: Site, chromium: "BrowserContext") -> None:
    page = browser.open_page(chromium, site.url, HOME_KEY)
    seen = []
    for node in ("evaluation/", "checkpoint/debug", "dataset/droid", "source/droid"):
        page = browser.follow(page, node)
        seen.append(page.inner_text("h1 >> nth=0"))
    assert "examples/data/droid/1.0.0/" in page.inner_text("body"), "the source's page lists its raw files"
    for node in ("dataset/droid", "checkpoint/debug", "evaluation/"):
        page = browser.follow(page, node)
        seen.append(page.inner_text("h1 >> nth=0"))
    assert seen[::-1] == seen, "the way back is the way there"


def test_an_episode_is_found_played_and_followed_to_its_checkpoint(site: Site, chromium: "BrowserContext") -> None:
    with site.browsing("data/droid") as url:
        page = chromium.new_page()
        page.goto(url)
        rows = page.locator("#list tbody tr")
        rows.first.wait_for()
        before = rows.count()
        page.select_option("select[name=split]", "train")
        assert 0 < rows.count() < before
        rows.first.click()
        slider = page.locator(".player input")
        page.wait_for_function("[...document.querySelectorAll('video')].every(video => video.readyState >= 2)")
        page.click("#play")
        page.wait_for_function("Number(document.querySelector('.player input').value) > 3")
        assert page.locator(".curves svg path").count() >= 10
        assert slider.get_attribute("max") == str(int(rows.first.locator("td").nth(3).inner_text()) - 1)
        browser.follow(page, "checkpoint/debug")


def test_the_pages_show_statistics_pictures_and_metrics(site: Site, chromium: "BrowserContext") -> None:
    home = browser.open_page(chromium, site.url, HOME_KEY)
    dataset = browser.follow(home, "dataset/droid")
    drawn = "img[src^='data:image/jpeg']"
    widths = dataset.eval_on_selector_all(drawn, "all => all.map(one => one.naturalWidth)")
    assert len(widths) == 4
    assert min(widths) > 100, "the browser decodes the sample frames"
    result = browser.follow(home, "evaluation/")
    assert result.locator("table:has-text('inverse dynamics')").count()
    assert result.locator(drawn).count()


def test_a_kind_can_be_listed_alone(site: Site, chromium: "BrowserContext") -> None:
    page = browser.open_page(chromium, site.url, HOME_KEY)
    with page.expect_popup() as opened:
        page.get_by_role("link", name="datasets", exact=True).first.click()
    opened.value.wait_for_url(f"**/artifacts/key/{kind_key('dataset')}")
    opened.value.wait_for_selector("td")
    rows = opened.value.locator("td:first-child").all_inner_texts()
    assert rows
    assert all(row.startswith("dataset/") for row in rows)


def test_the_list_of_deployments_shows_their_schedules(site: Site, chromium: "BrowserContext") -> None:
    page = chromium.new_page()
    browser.open_deployments(page, site.url)
    page.wait_for_selector("text=At 02:00 AM every day")
    assert page.locator(browser.DEPLOYMENT_LINK).count() == 8


def test_a_form_that_is_filled_in_wrongly_starts_nothing(site: Site, chromium: "BrowserContext") -> None:
    page = chromium.new_page()
    browser.open_form(page, site.url, "train")
    page.get_by_role("button", name="Submit").click()
    page.wait_for_selector("text='recipe' is a required property")
    browser.choose(page, "recipe", "debug")
    browser.fill_form(page, {"settings.steps": -3})
    with page.expect_response(re.compile("/create_flow_run$")) as answer:
        page.get_by_role("button", name="Submit").click()
    assert answer.value.status == httpx.codes.CONFLICT
    page.wait_for_selector("text=-3 is less than or equal to the minimum of 0")


def test_the_parameter_form_starts_a_run_that_completes(site: Site, chromium: "BrowserContext") -> None:
    page = chromium.new_page()
    browser.open_form(page, site.url, "pretrain-then-finetune")
    assert browser.choose(page, "pretrain", "debug") == list(RECIPES)
    browser.choose(page, "finetune", "debug")
    for name in ("pretrain", "finetune"):
        settings = f"{name}_settings"
        browser.add_item(page, f"{settings}.data")
        values = {"uri": "data/droid", "name": name, "output": f"runs/{name}", "steps": 1}
        browser.fill_form(page, {f"{settings}.{key}": value for key, value in values.items()})
    browser.fill_form(page, {"pretrain_settings.lr": 3, "pretrain_settings.seed": 5})
    browser.field(page, "pretrain_settings.lr", "input").fill("")
    run = browser.submit_form(page)
    with site.worker():
        assert browser.wait_finished(page) == "Completed", (site.folder / "worker.log").read_text()[-3000:]
    page.wait_for_selector("text=checkpoint/finetune@1: ")
    found = httpx.get(f"{site.server.api_url}/flow_runs/{run}").raise_for_status().json()
    given = found["parameters"]["pretrain_settings"]
    assert given["steps"] == 1
    assert given["seed"] == 5
    assert given.keys().isdisjoint({"lr", "batch_size", "init_from"}), "what is left blank is not there"
    made = browser.open_page(chromium, site.url, "checkpoint-finetune-1")
    assert "checkpoint/pretrain@1" in made.inner_text("body")
