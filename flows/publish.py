"""Bring lineage pages to the Prefect server as markdown artifacts."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, cast

from prefect import flow, get_run_logger, task
from prefect.artifacts import Artifact, create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from flows.lineage.details import NOTHING_OPENED, Opened, details_of
from flows.lineage.pages import HOME_KEY, home, keys, kind_pages, page
from storage_schemas.lineage.records import LineageGraph, graph

if TYPE_CHECKING:
    from prefect.client.schemas.objects import Artifact as ArtifactResponse


@task(name="publish lineage", cache_policy=NO_CACHE, retries=2, retry_delay_seconds=2)
def publish_lineage(root: str, nodes: list[str] | None = None, opened: Opened = NOTHING_OPENED) -> int:
    """Publish the pages that show `nodes`, and those of many nodes; all pages when `nodes` is None.

    `opened` are dataset versions that the caller has opened already, by their nodes.
    """
    known = graph(root)
    changed = publish(known, known.nodes if nodes is None else nodes, opened)
    get_run_logger().info("lineage: %d pages are new or changed, all of it at /artifacts/key/%s", changed, HOME_KEY)
    return changed


def publish(known: LineageGraph, nodes: Iterable[str], opened: Opened = NOTHING_OPENED) -> int:
    """Publish the pages of `nodes` and of all that is connected with them; what is unchanged stays.

    Returns:
        How many artifacts were made.
    """
    return sum(_publish_page(key, text) for key, text in pages(known, nodes, opened).items())


def pages(known: LineageGraph, nodes: Iterable[str], opened: Opened = NOTHING_OPENED) -> dict[str, str]:
    """Artifact key -> page: of `nodes`, of all that is connected with them, of their kinds, and the home page."""
    touched: set[str] = set()
    for node in nodes:
        touched |= {node, *known.upstream(node), *known.downstream(node)}
    links = keys(known)
    shown = [node for node in known.nodes if node in touched]
    details = details_of(known, shown, keep=True, opened=opened)
    result = {links[node]: page(known, node, details.get(node, ()), links) for node in shown}
    return result | kind_pages(known, links) | {HOME_KEY: home(known, links)}


def _publish_page(key: str, text: str) -> bool:
    """Put the page into the description: the UI shows that under the key's address, and the data one click deeper."""
    current = cast("ArtifactResponse | None", Artifact.get(key))
    if current is not None and current.description == text:
        return False
    create_markdown_artifact(f"[The newest state of this page](/artifacts/key/{key})", key=key, description=text)
    return True


@flow(name="publish-lineage")
def republish(root: str) -> int:
    """Publish every page of a lineage; pages that did not change stay.

    Args:
        root: folder of the lineage records.
    """
    return publish_lineage(root)
