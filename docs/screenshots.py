"""Take the pictures of docs/images from the server of `make ui`, following the lineage's own links.

Needs Debian's chromium and the extra `browser`: `make screenshots`, with `make ui` running beside it.
"""

import re
import sys
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

IMAGES = Path(__file__).parent / "images"
OPTIONS = ("--no-sandbox", "--disable-quic", "--disable-background-networking", "--disable-component-update")


def main(server: str) -> None:
    """Photograph lineage-home and the finetuned checkpoint; walk from there to its evaluation and its sources.

    Raises:
        TimeoutError: when a page does not show what it should.
    """
    IMAGES.mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=list(OPTIONS))
        page = browser.new_page(viewport={"width": 1360, "height": 1500})
        page.goto(f"{server}/artifacts/key/lineage-home")
        shoot(page, "lineage-home", "checkpoint/demo-finetune")
        page = follow(page, "checkpoint/demo-finetune")
        shoot(page, "lineage-checkpoint", "checkpoint/demo-finetune")
        for node in ("evaluation/demo-finetune", "checkpoint/demo-finetune", "dataset/droid", "source/droid"):
            page = follow(page, node)
        browser.close()


def follow(page: Page, node: str) -> Page:
    """Click the first link of a node; the UI opens its page in a new tab, which is returned when it is drawn."""
    kind, _, name = node.partition("/")
    with page.expect_popup() as opened:
        page.get_by_role("link", name=node).first.click()
    page = opened.value
    page.wait_for_url(re.compile(f"/artifacts/key/{kind}-{name}"))
    page.wait_for_selector("h2:has-text('What came of it')")
    sys.stdout.write(f"{node}: {page.url}\n")
    return page


def shoot(page: Page, name: str, text: str) -> None:
    """Wait until the page shows `text` and a picture, then save it."""
    page.wait_for_selector(f"text={text}")
    page.wait_for_selector("img[src^='data:image/svg']")
    page.wait_for_timeout(500)
    page.screenshot(path=IMAGES / f"{name}.png", full_page=True)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:4200")
