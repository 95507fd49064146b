"""What runs where and when: the site file, and the table of deployments that follows from it. Imports no prefect."""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from flows.jobs.chain import Chain
from flows.jobs.options import RunnerOptions
from flows.jobs.promotion import Measure
from flows.jobs.train import make_config
from flows.runtime.timeouts import HEARTBEAT_SECONDS, MIN_SILENCE_SECONDS
from pipelines.options import IngestOptions
from storage_schemas.errors import UserError, first_problem

MAX_SITE_BYTES = 1 << 20
TAG = "uwm"
DEFAULT_QUEUE = "default"
"""The work queue that every work pool has."""
COMMAND = "python -m flows.runtime.end_with_parent 0 python -m prefect.engine"
"""How a worker runs a flow: ended in order when the worker is gone."""


class SiteTable(BaseModel):
    """Base of the site file's tables: an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Scheduled(SiteTable):
    """When something runs: by cron, every so many seconds, or only when asked."""

    cron: str | None = Field(None, description="such as */15 * * * *")
    every: float | None = Field(None, ge=10, le=366 * 86400, description="seconds")
    timezone: str = "UTC"

    @model_validator(mode="after")
    def _one_clock(self) -> Self:
        if self.cron and self.every:
            raise ValueError("give cron or every, not both")
        if self.cron and len(self.cron.split()) != 5:
            raise ValueError(f"{self.cron!r} is no cron line of five fields")
        return self


ON_REQUEST = Scheduled()


class Watch(Scheduled, IngestOptions, RunnerOptions):
    """A folder whose new files become dataset versions; it can be told all that an ingestion by hand can."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,40}$")
    source: str
    store: str
    quiet: float = Field(30.0, ge=0)
    patience: float = Field(600.0, ge=0)


class Triggered(Chain):
    """A chain that new versions of its dataset start."""

    dry_run: bool = Field(False, description="say what would be trained, train nothing")
    rest: float = Field(60.0, ge=1, description="seconds to wait for more; versions that come meanwhile are one chain")

    @property
    def chain(self) -> Chain:
        """The chain as the flow's parameter."""
        return Chain(**{name: getattr(self, name) for name in Chain.model_fields})


class Maintenance(Scheduled):
    """When stores are checked, or cleared of what crashed writers left."""

    stores: list[str] = Field([], description="datasets")
    age_hours: float = Field(24.0, ge=1, le=24 * 3660)
    delete: bool = False


class Site(SiteTable):
    """All of a site file."""

    pool: str = Field("uwm", pattern=r"^[a-z0-9][a-z0-9-]{0,40}$", description="work pool")
    workspace: str = Field(".", description="folder in which flow runs work; other relative paths lie below it")
    gpu_queue: str = Field(
        DEFAULT_QUEUE,
        pattern=r"^[a-z0-9][a-z0-9-]{0,40}$",
        description="work queue of what needs a GPU; by default that of everything, which any worker takes",
    )
    gpu_slots: int = Field(1, ge=1, description="trainings and evaluations at once")
    silence: float = Field(
        90.0, ge=MIN_SILENCE_SECONDS, description="seconds without a heartbeat after which a run counts as crashed"
    )
    resumes: int = Field(3, ge=0, le=20, description="how often a crashed run is started again by itself")
    watch: tuple[Watch, ...] = ()
    chain: tuple[Triggered, ...] = ()
    gc: Maintenance = Maintenance()
    doctor: Maintenance = Maintenance()

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        for kind, names in (("watch", [w.name for w in self.watch]), ("chain", [c.track for c in self.chain])):
            if len(set(names)) < len(names):
                raise ValueError(f"two {kind} tables have the same name")
        return self


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """One line of the table: a flow with its parameters and its schedule."""

    name: str
    entrypoint: str
    description: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    when: Scheduled = ON_REQUEST
    gpu: bool = False
    """Whether the flow trains, evaluates or encodes, so that it belongs into the queue of the GPU machines."""
    single: bool = False
    """At most one run at a time; others wait."""
    listens_to: str = ""
    """URI of a dataset whose new versions start it."""
    rest: float = 0.0
    """Seconds between the event and the run."""

    @property
    def module(self) -> str:
        """The module of the flow."""
        return self.entrypoint.rpartition(".")[0]

    @property
    def function(self) -> str:
        """The flow in its module."""
        return self.entrypoint.rpartition(".")[2]


def load_site(path: str | Path) -> Site:
    """Read a site file.

    Raises:
        UserError: when it is missing, no TOML, or says something that makes no sense, also of a recipe or measure.
    """
    try:
        with Path(path).open("rb") as file:
            raw = tomllib.loads(file.read(MAX_SITE_BYTES).decode())
        site = Site.model_validate(raw)
    except OSError as error:
        raise UserError(f"can't read the site file {path}: {error.strerror}") from error
    except ValidationError as error:
        name, reason = first_problem(error)
        raise UserError(f"{path}: {name or 'content'}: {reason}") from error
    except ValueError as error:
        raise UserError(f"{path} is no TOML: {error}") from error
    for chain in site.chain:  # such a mistake would show only with the next dataset version
        Measure.parse(chain.metric, chain.margin)
        make_config(chain.recipe, chain.overrides)
    return site


def deployments(site: Site) -> tuple[Deployment, ...]:
    """The table of deployments, in the order in which data flows through them."""
    return (
        *(_watch(watch) for watch in site.watch),
        Deployment(
            name="pretrain-then-finetune",
            entrypoint="flows.pipeline.pretrain_then_finetune",
            description="Pretrain one recipe, finetune another one from the result, evaluate both.",
            gpu=True,
        ),
        Deployment(
            name="train",
            entrypoint="flows.train.train",
            description="Train one recipe; a run that was interrupted goes on.",
            gpu=True,
        ),
        Deployment(
            name="finetune",
            entrypoint="flows.train.train",
            description="Finetune: settings.init_from names the run or checkpoint to start from.",
            parameters={"recipe": "uwm_finetune"},
            gpu=True,
        ),
        Deployment(
            name="evaluate",
            entrypoint="flows.evaluate.evaluate",
            description="Measure a checkpoint in all five modes against trivial baselines.",
            gpu=True,
        ),
        *(_chain(chain) for chain in site.chain),
        Deployment(
            name="latents",
            entrypoint="flows.encode_latents.latents",
            description="Encode the datasets of a run once, so that it trains without its tokenizer.",
            gpu=True,
        ),
        *(_doctor(store, site.doctor) for store in site.doctor.stores),
        Deployment(
            name="doctor",
            entrypoint="flows.doctor.doctor",
            description="Say what is wrong with raw data or a dataset; nothing is changed.",
        ),
        Deployment(
            name="gc",
            entrypoint="flows.maintenance.gc",
            description="List or delete what crashed writers have left and no version names.",
            parameters={"stores": site.gc.stores, "age_hours": site.gc.age_hours, "delete": site.gc.delete},
            when=site.gc if site.gc.stores else ON_REQUEST,
            single=True,
        ),
    )


def _watch(watch: Watch) -> Deployment:
    given = watch.model_dump(mode="json", exclude_unset=True)
    models: dict[str, type[BaseModel]] = {"options": IngestOptions, "runner": RunnerOptions}
    parts = {name: {key: given[key] for key in model.model_fields if key in given} for name, model in models.items()}
    return Deployment(
        name=f"ingest-{watch.name}",
        entrypoint="flows.ingest.watch",
        description=f"What is new in {watch.source} becomes a version of {watch.store}.",
        parameters=watch.model_dump(include={"source", "store", "quiet", "patience"}) | parts,
        when=watch,
        single=True,
    )


def _chain(chain: Triggered) -> Deployment:
    return Deployment(
        name=f"chain-{chain.track}",
        entrypoint="flows.pipeline.chain",
        description=f"A new version of {chain.dataset} is trained on, and promoted when it makes a better checkpoint.",
        parameters={"chain": chain.chain.model_dump(exclude_none=True), "dry_run": chain.dry_run},
        gpu=True,
        single=True,
        listens_to=chain.dataset,
        rest=chain.rest,
    )


def _doctor(store: str, when: Scheduled) -> Deployment:
    name = re.sub(r"[^a-z0-9]+", "-", store.lower()).strip("-")
    return Deployment(
        name=f"doctor-{name}",
        entrypoint="flows.doctor.doctor",
        description=f"Examine {store}.",
        parameters={"target": store},
        when=when,
        single=True,
    )


def queue(item: Deployment, site: Site) -> str:
    """The work queue of a deployment's runs."""
    return site.gpu_queue if item.gpu else DEFAULT_QUEUE


def job_variables(workspace: str) -> dict[str, Any]:
    """What a process worker is told about every run."""
    variables = {
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_SECONDS),
        "PREFECT_LOGGING_HANDLERS_CONSOLE_CLASS": "flows.runtime.log_handler.BrokenPipeSafeHandler",
    }
    return {"command": COMMAND, "working_dir": workspace, "env": variables}
