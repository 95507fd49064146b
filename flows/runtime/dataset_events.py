"""Tell the Prefect server of a new dataset version, once, so that automations can act on it."""

import uuid
from datetime import UTC, datetime
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.runtime import flow_run

from storage_schemas.documents import write_document
from storage_schemas.lineage.records import LineageRecord, digest
from storage_schemas.location import locate

COMMITTED = "uwm.dataset.committed"
"""Name of the event. Its resource is the dataset at one place; its version and its own id are labels of it."""
DATASET = "dataset"
"""Role of what the event is related to: the dataset by its own id, and by its place."""
MARKS = "announced"
"""Folder of the lineage in which each event that the server took leaves a mark."""


def resource_at(uri: str) -> str:
    """The id of whatever dataset lies at a place, as a resource of events."""
    return f"uwm.dataset.{locate(uri).uri}"


def resource_of(table_id: str) -> str:
    """The id of a dataset as a resource of events, by the identity of its log: the same wherever it lies."""
    return f"uwm.dataset.{table_id}"


@task(name="emit dataset event", cache_policy=NO_CACHE, retries=3, retry_delay_seconds=2)
def emit_dataset_event(root: str, dataset: LineageRecord) -> bool:
    """Send the event of a dataset version unless it was sent before.

    A mark beside the lineage is written after the server took the event. A run that is killed in between sends it
    again, under the same id, which the server knows.

    Args:
        root: folder of the lineage records.
        dataset: the record of the version.

    Returns:
        Whether it was sent now.
    """
    mark = locate(root) / MARKS / f"{dataset.name}@{dataset.version}-{digest(dataset.identity)[:8]}.json"
    if mark.exists():
        return False
    event = event_of(dataset)
    with get_client(sync_client=True) as client:
        client.request("POST", "/events", json=[event]).raise_for_status()
    write_document(mark, event)
    return True


def event_of(dataset: LineageRecord) -> dict[str, Any]:
    """The event of a dataset version, as the server takes it."""
    place, own = resource_at(dataset.uri), resource_of(dataset.identity.rpartition("@")[0])
    related = [{"prefect.resource.id": name, "prefect.resource.role": DATASET} for name in (own, place)]
    if flow_run.id:
        related.append({"prefect.resource.id": f"prefect.flow-run.{flow_run.id}", "prefect.resource.role": "flow-run"})
    return {
        "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"{COMMITTED} {dataset.identity}")),
        "occurred": datetime.now(UTC).isoformat(),
        "event": COMMITTED,
        "resource": {
            "prefect.resource.id": place,
            "prefect.resource.name": dataset.name,
            "uwm.dataset": own,
            "uwm.version": dataset.version,
            "uwm.identity": dataset.identity,
        },
        "related": related,
        "payload": {"node": dataset.node, "facts": dict(dataset.facts)},
    }
