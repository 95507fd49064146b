"""Take the pictures of docs/images from a running Prefect server, following the lineage's own links.

Needs Debian's chromium and the extra `browser`: `make screenshots`, with `make ui` running beside it. With
`--submit NAME` it also fills in and submits the parameter form of a deployment that a worker serves.
"""

import argparse
import sys
from pathlib import Path

from browser import browser, fill_form, follow, open_form, open_page, submit_form, wait_finished
from playwright.sync_api import BrowserContext, Page

from flows.lineage.pages import HOME_KEY

IMAGES = Path(__file__).parent / "images"


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


def deployments(page: Page, server: str) -> None:
    """Photograph the list of deployments with their schedules."""
    page.goto(f"{server}/deployments")
    page.wait_for_selector("text=Schedules")
    shoot(page, "deployments", height=700)


def form(page: Page, server: str, deployment: str, values: dict[str, str]) -> None:
    """Photograph a deployment's parameter form, submit it, and photograph the run when it has ended."""
    open_form(page, server, deployment)
    fill_form(page, values)
    shoot(page, "deployment-form", height=1100)
    submit_form(page)
    sys.stdout.write(f"{deployment}: {wait_finished(page)}\n")
    shoot(page, "deployment-run", height=900)


def shoot(page: Page, name: str, *, height: int) -> None:
    """Save what a window of that height shows, once all its pictures are there."""
    page.set_viewport_size({"width": 1360, "height": height})
    page.wait_for_function("[...document.images].every(image => image.complete)")
    page.wait_for_timeout(1500)  # the pages fade in
    page.screenshot(path=IMAGES / f"{name}.png")
    sys.stdout.write(f"{name}: {page.url}\n")


def main() -> None:
    """Take all pictures that the server has something to show for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("server", nargs="?", default="http://127.0.0.1:4200")
    parser.add_argument("--submit", metavar="DEPLOYMENT", help="submit this deployment's form")
    parser.add_argument("--set", metavar="NAME=VALUE", action="append", default=[], help="a parameter for the form")
    given = parser.parse_args()
    IMAGES.mkdir(exist_ok=True)
    with browser() as context:
        lineage(context, given.server)
        deployments(context.new_page(), given.server)
        if given.submit:
            values = dict(item.split("=", 1) for item in given.set)
            form(context.new_page(), given.server, given.submit, values)


if __name__ == "__main__":
    main()
