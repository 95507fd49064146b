"""What a Prefect server does by itself for a site: automations about crashed runs and about new dataset versions."""

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from uuid import UUID

from prefect.automations import AutomationCore, EventTrigger, Posture, ResourceSpecification
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ActionTypes, ChangeFlowRunState, RunDeployment

from flows.deploy.site import Deployment, Site
from flows.runtime.dataset_events import COMMITTED, DATASET, resource_at, resource_of
from flows.runtime.timeouts import CANCEL_SECONDS, FIRST_HEARTBEAT_SECONDS
from storage_schemas.catalog.table import dataset_exists, dataset_id
from storage_schemas.errors import UserError
from storage_schemas.location import locate

ENDED = ("Completed", "Failed", "Crashed", "Cancelled", "TimedOut")
"""Events after which no heartbeat is missed."""
NOT_YET_DEPLOYED = UUID(int=0)
"""Stands for a deployment that a dry run would create."""


def automations(
    site: Site, table: Sequence[Deployment], flows: Sequence[str], ids: Mapping[str, UUID], workspace: str
) -> Iterator[AutomationCore]:
    """All automations of a site.

    Args:
        site: the site.
        table: its deployments.
        flows: names of the flows whose runs are looked after, also as parts of other runs.
        ids: of the deployments, by name.
        workspace: absolute path of the folder in which flow runs work.
    """
    yield _crashed(list(flows), site.silence)
    yield _never_started(site.pool)
    yield _cancelled(site.pool)
    if site.resumes:
        yield _resume(site)
    for item in table:
        if item.listens_to:
            yield _started_by(item, ids.get(item.name, NOT_YET_DEPLOYED), workspace)


def _crashed(flows: list[str], silence: float) -> AutomationCore:
    """Runs of our flows that fall silent are crashed: nobody else says so of a process that was killed."""
    heartbeat = "prefect.flow-run.heartbeat"
    return _unless(
        "uwm: mark silent runs as crashed",
        "A flow run that sends no heartbeat was killed with its worker or its machine.",
        after=heartbeat,
        expect={heartbeat, "prefect.flow-run.Cancelling"},
        seconds=silence,
        of=_related("flow", flows),
        then=ChangeFlowRunState(state=StateType.CRASHED, message=f"no heartbeat for {silence:g} s"),
    )


def _never_started(pool: str) -> AutomationCore:
    """A worker or a server that was killed while a run started leaves it pending or running for ever."""
    return _unless(
        "uwm: mark runs that do not start as crashed",
        "A worker took the flow run, and no heartbeat came of it.",
        after="prefect.flow-run.Pending",
        expect={"prefect.flow-run.heartbeat"},
        seconds=FIRST_HEARTBEAT_SECONDS,
        of=_related("work-pool", [pool]),
        then=ChangeFlowRunState(state=StateType.CRASHED, message=f"did not start within {FIRST_HEARTBEAT_SECONDS} s"),
    )


def _cancelled(pool: str) -> AutomationCore:
    """Nobody carries out the cancellation of a run whose worker is gone; crashed and resumed it must not be."""
    return _unless(
        "uwm: finish cancellations",
        "A flow run that was to be cancelled has no worker any more.",
        after="prefect.flow-run.Cancelling",
        expect=set(),
        seconds=CANCEL_SECONDS,
        of=_related("work-pool", [pool]),
        then=ChangeFlowRunState(state=StateType.CANCELLED, message="cancelled; its worker was gone"),
    )


def _unless(
    name: str,
    description: str,
    *,
    after: str,
    expect: set[str],
    seconds: float,
    of: ResourceSpecification,
    then: ChangeFlowRunState,
) -> AutomationCore:
    """Do something about a flow run when neither the expected nor its end follows an event in time."""
    return AutomationCore(
        name=name,
        description=description,
        trigger=EventTrigger(
            posture=Posture.Proactive,
            after={after},
            expect={*expect, *(f"prefect.flow-run.{state}" for state in ENDED)},
            match=ResourceSpecification.model_validate({"prefect.resource.id": "prefect.flow-run.*"}),
            match_related=of,
            for_each={"prefect.resource.id"},
            threshold=1,
            within=timedelta(seconds=seconds),
        ),
        actions=[then],
    )


def _resume(site: Site) -> AutomationCore:
    """Runs of our deployments that crashed go on, but not for ever: each start counts."""
    counts = [str(count) for count in range(1, site.resumes + 1)]
    return AutomationCore(
        name="uwm: resume crashed runs",
        description=f"Starts a crashed run again, at most {site.resumes} times; training goes on from its checkpoint.",
        trigger=EventTrigger(
            posture=Posture.Reactive,
            expect={"prefect.flow-run.Crashed"},
            match=ResourceSpecification.model_validate(
                {"prefect.resource.id": "prefect.flow-run.*", "prefect.run-count": counts}
            ),
            match_related=_related("work-pool", [site.pool]),
            threshold=1,
        ),
        actions=[ChangeFlowRunState(state=StateType.SCHEDULED, name="AwaitingRetry", message="resumed after a crash")],
    )


def _started_by(item: Deployment, deployment: UUID, workspace: str) -> AutomationCore:
    """A new version of exactly one dataset starts a deployment.

    The run waits as long as further events are ignored, and takes the newest version then, so none is lost.
    """
    rest = timedelta(seconds=item.rest)
    actions: list[ActionTypes] = [RunDeployment(deployment_id=deployment, schedule_after=rest)]
    return AutomationCore(
        name=f"uwm: start {item.name}",
        description=f"A new version of {item.listens_to} starts {item.name}.",
        trigger=EventTrigger(
            posture=Posture.Reactive,
            expect={COMMITTED},
            match=ResourceSpecification.model_validate({"prefect.resource.id": "uwm.dataset.*"}),
            match_related=ResourceSpecification.model_validate(
                {
                    "prefect.resource.role": DATASET,
                    "prefect.resource.id": list(_resources(absolute(item.listens_to, workspace))),
                }
            ),
            for_each={"uwm.dataset"},
            threshold=1,
            within=rest,
        ),
        actions=actions,
    )


def _resources(uri: str) -> Iterator[str]:
    """What a dataset is called in events: by its place and, when it is there already, by its own id.

    So a version that was ingested by another spelling of the place counts, and one of before it was moved.
    """
    yield resource_at(uri)
    try:
        if dataset_exists(uri):
            yield resource_of(dataset_id(uri))
    except UserError:  # the machine that deploys need not reach the data
        return


def absolute(uri: str, workspace: str) -> str:
    """A dataset's place as a flow run in the workspace sees it."""
    return uri if re.match(r"\w+://", uri) else locate(Path(workspace) / uri).uri


def _related(role: str, names: list[str]) -> ResourceSpecification:
    return ResourceSpecification.model_validate({"prefect.resource.role": role, "prefect.resource.name": names})
