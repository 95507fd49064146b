"""A headless Chromium on the pages of a Prefect server, for the browser tests and the pictures in docs/images."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import BrowserContext, Locator, Page, sync_playwright

CHROMIUM = Path("/usr/bin/chromium")
PATIENCE_SECONDS = 120.0
RUN_SECONDS = 900.0
_OPTIONS = ("--no-sandbox", "--disable-quic", "--disable-background-networking", "--disable-component-update")
DEPLOYMENT_LINK = "a[href*='/deployments/deployment/']"
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


def open_deployments(page: Page, server: str) -> None:
    """The list of deployments, all on one page."""
    page.goto(f"{server}/deployments?limit=100")
    page.wait_for_selector(f"{DEPLOYMENT_LINK}")


def open_form(page: Page, server: str, deployment: str) -> None:
    """Go from the list of deployments to the parameter form of one."""
    open_deployments(page, server)
    page.locator(DEPLOYMENT_LINK, has_text=re.compile(f"^{deployment}$")).click()
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_text("Custom run").click()
    page.wait_for_selector("text=Parameters")


def field(page: Page, path: str, control: str) -> Locator:
    """The control of a field such as `settings.steps`. Labels are not tied to their fields: it is the next one."""
    place = ""
    for name in path.split("."):
        place += (
            f"{'/following::' if place else '//'}*[normalize-space(text())='{name}' or text()='{name} (Optional)'][1]"
        )
    return page.locator(f"xpath={place}/following::{control}[1]")


def fill_form(page: Page, values: Mapping[str, str | int]) -> None:
    """Put texts and numbers into fields of the form."""
    for path, value in values.items():
        field(page, path, "input" if isinstance(value, int) else "textarea").fill(str(value))


def choose(page: Page, path: str, option: str) -> list[str]:
    """Choose from the list of a field; returns all that it offers."""
    field(page, path, "button[contains(@class, 'p-select-button')]").press("ArrowDown")
    options = page.get_by_role("option")
    options.first.wait_for()
    offered = options.all_inner_texts()
    options.get_by_text(option, exact=True).click()
    return offered


def add_item(page: Page, path: str) -> None:
    """Add an empty item to a list."""
    field(page, path, "button[contains(., 'Add item')]").click()


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
    return page.wait_for_selector(FINISHED, timeout=1000 * RUN_SECONDS).inner_text()
