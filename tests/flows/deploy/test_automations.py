"""Which events the automations act on, judged by the server's own matching."""

from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import pytest
from prefect.automations import AutomationCore
from prefect.server.events.schemas.automations import EventTrigger
from prefect.server.events.schemas.events import ReceivedEvent

from flows.deploy.automations import automations
from flows.deploy.site import Site, deployments
from flows.runtime.dataset_events import COMMITTED, resource_of
from flows.runtime.timeouts import CANCEL_SECONDS

SITE = Site.model_validate(
    {"chain": [{"track": "policy", "dataset": "stores/droid", "recipe": "debug", "rest": 45}], "resumes": 2}
)
RUN = f"prefect.flow-run.{uuid4()}"
HEARTBEAT = "prefect.flow-run.heartbeat"


@pytest.fixture(scope="module")
def made() -> dict[str, AutomationCore]:
    ids = {"chain-policy": uuid4()}
    found = automations(SITE, deployments(SITE), ["train", "ingest"], ids, "/data/site")
    return {item.name: item for item in found}


def covers(automation: AutomationCore, event: str, resource: dict[str, str], *related: tuple[str, str]) -> bool:
    trigger = EventTrigger.model_validate(automation.trigger.model_dump())
    return trigger.covers(
        ReceivedEvent(
            id=uuid4(),
            occurred=datetime.now(UTC),
            event=event,
            resource=resource,
            related=[
                {"prefect.resource.id": f"x.{name}", "prefect.resource.role": role, "prefect.resource.name": name}
                for role, name in related
            ],
        )
    )


def test_only_a_new_version_of_the_very_dataset_starts_its_chain(made: dict[str, AutomationCore]) -> None:
    starts = made["uwm: start chain-policy"]
    assert covers(starts, COMMITTED, {"prefect.resource.id": resource_of("/data/site/stores/droid")})
    for other in ("/data/site/stores/droid2", "/data/other/stores/droid", "/data/site/stores", "s3://b/stores/droid"):
        assert not covers(starts, COMMITTED, {"prefect.resource.id": resource_of(other)})
    assert not covers(starts, "uwm.dataset.removed", {"prefect.resource.id": resource_of("/data/site/stores/droid")})
    assert not covers(starts, "prefect.flow-run.Completed", {"prefect.resource.id": RUN})


def test_a_chain_waits_as_long_as_further_versions_are_ignored(made: dict[str, AutomationCore]) -> None:
    starts = made["uwm: start chain-policy"]
    (action,) = starts.actions
    assert action.schedule_after == starts.trigger.within  # type: ignore[union-attr]


def test_silence_is_only_judged_of_our_flows(made: dict[str, AutomationCore]) -> None:
    silent, run = made["uwm: mark silent runs as crashed"], {"prefect.resource.id": RUN}
    assert covers(silent, HEARTBEAT, run, ("flow", "train"))
    assert not covers(silent, HEARTBEAT, run, ("flow", "somebody-elses"))
    assert not covers(silent, HEARTBEAT, run, ("deployment", "train"))


def test_a_crashed_run_of_ours_is_resumed_so_often_and_no_more(made: dict[str, AutomationCore]) -> None:
    resume, crashed = made["uwm: resume crashed runs"], "prefect.flow-run.Crashed"
    for count in (1, 2, 3):
        run = {"prefect.resource.id": RUN, "prefect.run-count": str(count)}
        assert covers(resume, crashed, run, ("work-pool", "uwm")) is (count <= 2)
        assert not covers(resume, crashed, run, ("work-pool", "other"))
        assert not covers(resume, "prefect.flow-run.Cancelled", run, ("work-pool", "uwm"))


def test_a_cancellation_is_finished_before_its_silence_counts_as_a_crash(made: dict[str, AutomationCore]) -> None:
    silent = made["uwm: mark silent runs as crashed"].trigger
    assert "prefect.flow-run.Cancelling" in silent.expect  # type: ignore[union-attr]
    assert Site.model_fields["silence"].metadata[0].ge > CANCEL_SECONDS


def test_a_site_that_wants_no_resuming_gets_none() -> None:
    site = Site(resumes=0)
    names = [item.name for item in automations(site, deployments(site), ["train"], {}, str(Path.cwd()))]
    assert "uwm: resume crashed runs" not in names
