"""Bring the site's table of deployments to a Prefect server; what is as it should be already is left alone."""

import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

from prefect import Flow
from prefect.automations import AutomationCore
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import (
    DeploymentScheduleCreate,
    GlobalConcurrencyLimitCreate,
    GlobalConcurrencyLimitUpdate,
    WorkPoolCreate,
)
from prefect.client.schemas.objects import ConcurrencyLimitStrategy, ConcurrencyOptions
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.utilities.callables import parameter_schema
from prefect.workers.process import ProcessWorker
from pydantic import ValidationError

from flows.deploy.automations import automations
from flows.deploy.forms import parameters_form
from flows.deploy.site import TAG, Deployment, Scheduled, Site, deployments, job_variables, queue
from flows.runtime.gpu_slots import GPU_LIMIT
from storage_schemas.errors import UserError, first_problem


@dataclass(frozen=True, kw_only=True)
class Change:
    """What deploying did, or would do, about one thing on the server."""

    kind: str
    name: str
    what: str
    """created, updated (and what differed), unchanged, or left over."""


def deploy(site: Site, *, folder: Path, dry_run: bool = False) -> tuple[Change, ...]:
    """Make the work pool, the GPU slots, the deployments and the automations of a site.

    What someone paused in the UI stays paused. A deployment of ours that the site has no more is reported, not removed.

    Args:
        site: the site.
        folder: of the site file; its workspace is relative to it.
        dry_run: change nothing.

    Returns:
        Everything that was looked at and what was, or would be, done.

    Raises:
        UserError: when a schedule makes no sense or the server refuses something.
    """
    workspace = str((folder / site.workspace).resolve())
    table = deployments(site)
    try:
        with get_client(sync_client=True) as client:
            return tuple(_changes(_ServerSync(client, dry_run), site, table, workspace))
    except PrefectHTTPStatusError as error:
        raise UserError(f"the Prefect server refused it: {' '.join(str(error).split())}") from error


def _changes(server: "_ServerSync", site: Site, table: tuple[Deployment, ...], workspace: str) -> Iterator[Change]:
    yield server.pool(site.pool)
    yield server.slots(site.gpu_slots)
    for deployment in table:
        yield server.deployment(deployment, site, workspace)
    flows = sorted({_flow(item).name for item in table} | {"ingest", "train-config"})  # parts of other flows
    ids = {item.name: existing.id for item in table if (existing := server.find(item))}
    for automation in automations(site, table, flows, ids, workspace):
        yield server.automation(automation)
    yield from server.left_over(table)


class _ServerSync:
    """Compares with the server and changes what differs, unless it is a dry run."""

    def __init__(self, client: SyncPrefectClient, dry_run: bool) -> None:
        self.client = client
        self.dry_run = dry_run

    def find(self, item: Deployment) -> DeploymentResponse | None:
        """The deployment as the server has it."""
        try:
            return self.client.read_deployment_by_name(f"{_flow(item).name}/{item.name}")
        except ObjectNotFound:
            return None

    def pool(self, name: str) -> Change:
        try:
            existing = self.client.read_work_pool(name)
        except ObjectNotFound:
            if not self.dry_run:
                template = ProcessWorker.get_default_base_job_template()
                pool = WorkPoolCreate(name=name, type="process", base_job_template=template)
                self.client.create_work_pool(pool)
            return Change(kind="work pool", name=name, what="created")
        if existing.type != "process":
            raise UserError(
                f"the work pool {name} is of type {existing.type}, not process: name another one in the site file"
            )
        return Change(kind="work pool", name=name, what="unchanged")

    def slots(self, count: int) -> Change:
        try:
            existing = self.client.read_global_concurrency_limit_by_name(GPU_LIMIT)
        except ObjectNotFound:
            if not self.dry_run:
                self.client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=GPU_LIMIT, limit=count))
            return Change(kind="GPU slots", name=GPU_LIMIT, what="created")
        if existing.limit == count:
            return Change(kind="GPU slots", name=GPU_LIMIT, what="unchanged")
        if not self.dry_run:
            self.client.update_global_concurrency_limit(GPU_LIMIT, GlobalConcurrencyLimitUpdate(limit=count))
        return Change(kind="GPU slots", name=GPU_LIMIT, what=f"updated ({existing.limit} to {count})")

    def deployment(self, item: Deployment, site: Site, workspace: str) -> Change:
        fields, existing = _fields_of_site(item, site, workspace), self.find(item)
        on_server = _fields_of_server(existing) if existing else fields
        differing = [name for name, value in fields.items() if on_server[name] != value]
        if existing and not differing:
            return Change(kind="deployment", name=item.name, what="unchanged")
        if not self.dry_run:
            self._put(item, fields, existing)
        what = f"updated ({', '.join(differing)})" if existing else "created"
        return Change(kind="deployment", name=item.name, what=what)

    def _put(self, item: Deployment, fields: dict[str, Any], existing: DeploymentResponse | None) -> None:
        """Create or replace it; what someone paused stays paused."""
        active = all(schedule.active for schedule in existing.schedules) if existing else True
        queue = ConcurrencyOptions(collision_strategy=ConcurrencyLimitStrategy.ENQUEUE)
        self.client.create_deployment(
            flow_id=self.client.create_flow_from_name(_flow(item).name),
            name=item.name,
            schedules=[DeploymentScheduleCreate(schedule=clock, active=active) for clock in _clocks(item.when)],
            concurrency_limit=1 if item.single else None,
            concurrency_options=queue if item.single else None,
            paused=existing.paused if existing else False,
            enforce_parameter_schema=True,
            pull_steps=[],
            **{name: value for name, value in fields.items() if name not in ("schedules", "single")},
        )

    def automation(self, automation: AutomationCore) -> Change:
        existing = next(iter(self.client.read_automations_by_name(automation.name)), None)
        if existing and _comparable(existing) == _comparable(automation):
            return Change(kind="automation", name=automation.name, what="unchanged")
        if existing and not self.dry_run:
            update = automation.model_copy(update={"enabled": existing.enabled})
            self.client.update_automation(existing.id, update)
        elif not self.dry_run:
            self.client.create_automation(automation)
        return Change(kind="automation", name=automation.name, what="updated" if existing else "created")

    def left_over(self, table: tuple[Deployment, ...]) -> Iterator[Change]:
        names = {item.name for item in table}
        for existing in self.client.read_deployments(limit=200):
            if TAG in existing.tags and existing.name not in names:
                yield Change(kind="deployment", name=existing.name, what="left over: not in the site file any more")


def _flow(item: Deployment) -> Flow[..., Any]:
    return cast("Flow[..., Any]", getattr(importlib.import_module(item.module), item.function))


def _fields_of_site(item: Deployment, site: Site, workspace: str) -> dict[str, Any]:
    """All that a deployment should say, in the server's own words, so that it can be compared."""
    return {
        "entrypoint": item.entrypoint,
        "description": item.description,
        "parameters": dict(item.parameters),
        "tags": [TAG],
        "work_pool_name": site.pool,
        "work_queue_name": queue(item, site),
        "job_variables": job_variables(workspace),
        "parameter_openapi_schema": parameters_form(parameter_schema(_flow(item)).model_dump(exclude_unset=True)),
        "schedules": [_clock_key(clock) for clock in _clocks(item.when)],
        "single": item.single,
    }


def _fields_of_server(existing: DeploymentResponse) -> dict[str, Any]:
    """What a deployment says, as `_fields_of_site` puts it."""
    limit = existing.global_concurrency_limit
    return {
        "entrypoint": existing.entrypoint,
        "description": existing.description,
        "parameters": existing.parameters,
        "tags": existing.tags,
        "work_pool_name": existing.work_pool_name,
        "work_queue_name": existing.work_queue_name,
        "job_variables": existing.job_variables,
        "parameter_openapi_schema": existing.parameter_openapi_schema,
        "schedules": [_clock_key(entry.schedule) for entry in existing.schedules],
        "single": limit is not None and limit.limit == 1,
    }


def _clocks(when: Scheduled) -> list[CronSchedule | IntervalSchedule]:
    """The schedule in Prefect's words. Raises UserError when it makes no sense."""
    try:
        if when.cron:
            return [CronSchedule(cron=when.cron, timezone=when.timezone)]
        if when.every:
            return [IntervalSchedule(interval=timedelta(seconds=when.every), timezone=when.timezone)]
    except ValidationError as error:
        given = f"{when.cron or when.every} in {when.timezone}"
        raise UserError(f"no schedule: {given}: {first_problem(error)[1]}") from error
    return []


def _clock_key(schedule: Any) -> tuple[str, ...]:
    """A schedule without its anchor, which is the time of its making."""
    if isinstance(schedule, IntervalSchedule):
        return "interval", str(schedule.interval.total_seconds()), str(schedule.timezone)
    return "cron", str(getattr(schedule, "cron", schedule)), str(schedule.timezone)


def _comparable(automation: AutomationCore) -> Mapping[str, Any]:
    """An automation without what deploying leaves alone: whether someone switched it off, and what the server adds."""
    plain = AutomationCore.model_validate(automation.model_dump(include=set(AutomationCore.model_fields)))
    return {key: _ordered(value) for key, value in plain.model_dump(mode="json", exclude={"enabled"}).items()}


def _ordered(value: Any) -> Any:
    """A value that compares equal in any order: sets come back from the server as lists."""
    if isinstance(value, dict):
        return {key: _ordered(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return sorted((_ordered(item) for item in value), key=repr)
    return value
