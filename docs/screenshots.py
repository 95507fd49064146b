"""Take the pictures of docs/images: the demo, its schedules and a run started by hand, in Prefect's UI.

`make screenshots` does all of it; it needs Debian's chromium and the extra `browser`. The pages show where the data
lie, so choose a folder that anyone may see: `make screenshots FOLDER=/srv/uwm`. A demo that is there already is used,
and its lineage shows what was started there since.
"""

import argparse
import shutil
import sys
from pathlib import Path

import browser
from browser import follow, open_page
from playwright.sync_api import BrowserContext, Page
from served import ROOT, Site, environment, serve, uwm

from flows.lineage.pages import HOME_KEY

IMAGES = ROOT / "docs" / "images"
SITE = ROOT / "docs" / "screenshots.toml"
DEMO = "runs/demo"


def prepare(folder: Path) -> None:
    """Bring the example data and the site file to the folder, and run the demo there."""
    shutil.copytree(ROOT / "examples" / "data", folder / "examples" / "data", dirs_exist_ok=True)
    shutil.copy(SITE, folder / "deploy.toml")
    uwm(folder, environment(), "demo")


def lineage(context: BrowserContext, server: str) -> None:
    """Photograph lineage-home, an evaluation, a checkpoint and a dataset version, each by a link of the one before."""
    page = open_page(context, server, HOME_KEY)
    shoot(page, HOME_KEY, height=1310)
    for node, height in (
        ("evaluation/demo-finetune", 2500),
        ("checkpoint/demo-finetune", 1900),
        ("dataset/droid", 2900),
    ):
        page = follow(page, node)
        shoot(page, f"lineage-{node.partition('/')[0]}", height=height)


def episodes(context: BrowserContext, site: Site) -> None:
    """Photograph the pages of `uwm browse`, in the middle of an episode that plays."""
    with site.browsing(f"{DEMO}/droid") as url:
        page = context.new_page()
        page.goto(url)
        page.locator("#list tbody tr").nth(2).click()
        page.wait_for_function("[...document.querySelectorAll('video')].every(video => video.readyState >= 2)")
        page.click("#play")
        page.wait_for_function("Number(document.querySelector('.player input').value) >= 12")
        page.click("#play")
        shoot(page, "browse", height=1250)


def deployments(page: Page, server: str) -> None:
    """Photograph the list of deployments with their schedules."""
    browser.open_deployments(page, server)
    shoot(page, "deployments", width=1500, height=1090)


def form(page: Page, server: str) -> None:
    """Fill in and photograph a parameter form, submit it, and photograph the run when it has ended."""
    browser.open_form(page, server, "pretrain-then-finetune")
    browser.choose(page, "pretrain", "demo_pretrain")
    browser.choose(page, "finetune", "demo_finetune")
    browser.add_item(page, "evaluate_on")
    browser.add_item(page, "pretrain_settings.data")
    values = {
        "evaluate_on": f"{DEMO}/droid",
        "options.samples": 8,
        "pretrain_settings.uri": f"{DEMO}/droid",
        "pretrain_settings.name": "short",
        "pretrain_settings.output": "runs/short",
        "pretrain_settings.steps": 20,
        "finetune_settings.name": "short-finetune",
        "finetune_settings.output": "runs/short-finetune",
        "finetune_settings.steps": 10,
    }
    browser.fill_form(page, values)
    page.set_viewport_size({"width": 1360, "height": 1700})
    page.get_by_text("Parameters", exact=True).click()  # the cursor leaves the form, the page its end
    shoot(page, "deployment-form", height=1700)
    browser.submit_form(page)
    sys.stdout.write(f"pretrain-then-finetune: {browser.wait_finished(page)}\n")
    page.set_viewport_size({"width": 1360, "height": 1480})
    page.reload()  # a graph that was drawn while the run went on has times in disorder
    page.get_by_text(f"/artifacts/key/{HOME_KEY}").first.wait_for()
    shoot(page, "deployment-run", height=1480)


def shoot(page: Page, name: str, *, width: int = 1360, height: int) -> None:
    """Save what a window of that size shows, once all its pictures are there."""
    page.set_viewport_size({"width": width, "height": height})
    page.wait_for_function("[...document.images].every(image => image.complete)")
    page.wait_for_timeout(2500)  # the pages fade in
    page.screenshot(path=IMAGES / f"{name}.png")
    sys.stdout.write(f"{name}: {page.url}\n")


def photograph(site: Site) -> None:
    """Take all pictures."""
    with browser.browser() as context:
        lineage(context, site.url)
        episodes(context, site)
        with site.worker():
            form(context.new_page(), site.url)
            deployments(context.new_page(), site.url)


def main() -> None:
    """Take all pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "runs" / "screenshots")
    folder = parser.parse_args().folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    IMAGES.mkdir(exist_ok=True)
    prepare(folder)
    with serve(folder, f"{DEMO}/prefect") as site:
        site.uwm("deploy", "deploy.toml")
        photograph(site)


if __name__ == "__main__":
    main()
