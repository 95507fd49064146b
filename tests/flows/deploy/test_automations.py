"""Which events the automations act on, judged by the server's own matching."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from prefect.automations import AutomationCore
from prefect.server.events.schemas.automations import EventTrigger
from prefect.server.events.schemas.events import ReceivedEvent

from flows.deploy.automations import automations
from flows.deploy.site import Site, deployments
from flows.runtime.dataset_events import event_of
from flows.runtime.timeouts import CANCEL_SECONDS
from storage_schemas.catalog.table import dataset_id
from storage_schemas.lineage.records import LineageRecord

SITE = Site.model_validate(
    {"chain": [{"track": "policy", "dataset": "stores/droid", "recipe": "debug", "rest": 45}], "resumes": 2}
)
RUN = f"prefect.flow-run.{uuid4()}"
HEARTBEAT = "prefect.flow-run.heartbeat"


def thing(role: str, name: str) -> dict[str, str]:
    """What an event is related to."""
    return {"prefect.resource.id": f"x.{name}", "prefect.resource.role": role, "prefect.resource.name": name}


@pytest.fixture(scope="module")
def made() -> dict[str, AutomationCore]:
    ids = {"chain-policy": uuid4()}
    found = automations(SITE, deployments(SITE), ["train", "ingest"], ids, "/data/site")
    return {item.name: item for item in found}


def committed(uri: str, table_id: str = "3f") -> dict[str, Any]:
    """The event of a dataset version at a place."""
    record = LineageRecord(kind="dataset", name="droid", version="2", identity=f"{table_id}@2", uri=uri)
    event = event_of(record)
    return {name: event[name] for name in ("event", "resource", "related")}


def covers(
    automation: AutomationCore, event: str, resource: dict[str, str], related: Sequence[dict[str, str]] = ()
) -> bool:
    trigger = EventTrigger.model_validate(automation.trigger.model_dump())
    return trigger.covers(
        ReceivedEvent(
            id=uuid4(),
            occurred=datetime.now(UTC),
            event=event,
            resource=resource,
            related=list(related),
        )
    )


def test_only_a_new_version_of_the_very_dataset_starts_its_chain(made: dict[str, AutomationCore]) -> None:
    starts = made["uwm: start chain-policy"]
    assert covers(starts, **committed("/data/site/stores/droid"))
    for other in ("/data/site/stores/droid2", "/data/other/stores/droid", "/data/site/stores", "s3://b/stores/droid"):
        assert not covers(starts, **committed(other))
    assert not covers(starts, **committed("/data/site/stores/droid") | {"event": "uwm.dataset.removed"})
    assert not covers(starts, event="prefect.flow-run.Completed", resource={"prefect.resource.id": RUN})


def test_a_dataset_is_known_by_its_own_id_wherever_it_lies(store: Path, tmp_path: Path) -> None:
    """As `lab/droid` it is listened to, through a link it is written to; and then it is moved."""
    (tmp_path / "lab").symlink_to(store.parent)
    site = Site.model_validate({"chain": [{"track": "policy", "dataset": "lab/droid", "recipe": "debug"}]})
    (starts,) = (item for item in automations(site, deployments(site), [], {}, str(tmp_path)) if "chain" in item.name)
    assert covers(starts, **committed(str(store), dataset_id(store)))
    moved = store.rename(tmp_path / "elsewhere")
    assert covers(starts, **committed(str(moved), dataset_id(moved)))
    assert not covers(starts, **committed(str(moved), "another"))


def test_a_chain_waits_as_long_as_further_versions_are_ignored(made: dict[str, AutomationCore]) -> None:
    starts = made["uwm: start chain-policy"]
    (action,) = starts.actions
    assert action.schedule_after == starts.trigger.within  # type: ignore[union-attr]


def test_silence_is_only_judged_of_our_flows(made: dict[str, AutomationCore]) -> None:
    silent, run = made["uwm: mark silent runs as crashed"], {"prefect.resource.id": RUN}
    assert covers(silent, HEARTBEAT, run, [thing("flow", "train")])
    assert not covers(silent, HEARTBEAT, run, [thing("flow", "somebody-elses")])
    assert not covers(silent, HEARTBEAT, run, [thing("deployment", "train")])


def test_a_crashed_run_of_ours_is_resumed_so_often_and_no_more(made: dict[str, AutomationCore]) -> None:
    resume, crashed = made["uwm: resume crashed runs"], "prefect.flow-run.Crashed"
    for count in (1, 2, 3):
        run = {"prefect.resource.id": RUN, "prefect.run-count": str(count)}
        assert covers(resume, crashed, run, [thing("work-pool", "uwm")]) is (count <= 2)
        assert not covers(resume, crashed, run, [thing("work-pool", "other")])
        assert not covers(resume, "prefect.flow-run.Cancelled", run, [thing("work-pool", "uwm")])


def test_a_cancellation_is_finished_before_its_silence_counts_as_a_crash(made: dict[str, AutomationCore]) -> None:
    silent = made["uwm: mark silent runs as crashed"].trigger
    assert "prefect.flow-run.Cancelling" in silent.expect  # type: ignore[union-attr]
    assert Site.model_fields["silence"].metadata[0].ge > CANCEL_SECONDS


def test_a_site_that_wants_no_resuming_gets_none() -> None:
    site = Site(resumes=0)
    names = [item.name for item in automations(site, deployments(site), ["train"], {}, str(Path.cwd()))]
    assert "uwm: resume crashed runs" not in names
