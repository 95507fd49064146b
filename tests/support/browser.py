"""A headless Chromium on the pages of a Prefect server, for the browser tests and the pictures in docs/images."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import BrowserContext, Page, sync_playwright

CHROMIUM = Path("/usr/bin/chromium")
PATIENCE_SECONDS = 120.0
_OPTIONS = ("--no-sandbox", "--disable-quic", "--disable-background-networking", "--disable-component-update")
FINISHED = "header.page-heading-flow-run >> text=/^(Completed|Failed|Crashed|Cancelled)$/"


@contextmanager
def browser(width: int = 1360, height: int = 1500) -> Iterator[BrowserContext]:
    """A browser whose pages have that many pixels."""
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=list(_OPTIONS))
        context = chromium.new_context(viewport={"width": width, "height": height})
        context.set_default_timeout(1000 * PATIENCE_SECONDS)
        yield context
        chromium.close()


def open_page(context: BrowserContext, server: str, key: str) -> Page:
    """The lineage page of an artifact key, when it is drawn."""
    page = context.new_page()
    page.goto(f"{server}/artifacts/key/{key}")
    page.wait_for_selector("h1")
    return page


def follow(page: Page, node: str) -> Page:
    """Click the first link with `node` in its text; its page opens in a new tab, which is returned when it is drawn."""
    link = page.locator("a", has_text=node).first
    name = link.inner_text()
    with page.expect_popup() as opened:
        link.click()
    followed = opened.value
    followed.wait_for_selector("h2:has-text('What came of it')")
    assert followed.locator("h1").first.inner_text() == name, f"the link {name} leads to {followed.url}"
    return followed


def open_form(page: Page, server: str, deployment: str) -> None:
    """Go from the list of deployments to the parameter form of one."""
    page.goto(f"{server}/deployments")
    page.get_by_role("link", name=deployment, exact=True).first.click()
    page.wait_for_url(re.compile(r"/deployments/deployment/[0-9a-f-]+"))
    page.goto(f"{page.url.partition('?')[0]}/run")
    page.wait_for_selector("text=Parameters")


def fill_form(page: Page, values: Mapping[str, str]) -> None:
    """Put texts into fields of the form; its labels are not tied to them, so the field after the label it is."""
    for name, value in values.items():
        page.locator(f"xpath=//*[normalize-space(text())='{name}']/following::textarea[1]").fill(value)


def submit_form(page: Page) -> str:
    """Submit the form and go to the page of its flow run, whose id is returned."""
    with page.expect_response(re.compile("/create_flow_run$")) as answer:
        page.get_by_role("button", name="Submit").click()
    run = str(answer.value.json()["id"])
    page.locator(f"a[href*='{run}']").first.click()
    page.wait_for_url(f"**/runs/flow-run/{run}*")
    return run


def wait_finished(page: Page) -> str:
    """Wait until the flow run of the page has ended; returns the state that the page shows."""
    return page.wait_for_selector(FINISHED).inner_text()
