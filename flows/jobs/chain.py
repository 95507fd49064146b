"""From a new dataset version to a decision: train, evaluate, compare with the best, promote or not. Imports no prefect.

Every part of it is done once, whoever asks how often: the training run resumes or is reused, evaluations are reused,
and the decision is a write-once record. So a chain that was killed is simply started again.
"""

from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field

from flows.jobs.evaluate import Evaluated
from flows.jobs.ingest import pin_dataset
from flows.jobs.options import Hours, Pair
from flows.jobs.pipeline import Jobs
from flows.jobs.promotion import MEASURES, Contender, Decision, Measure, Track
from flows.jobs.train import adapted, make_config
from flows.lineage.records import DatasetPin
from storage_schemas.errors import UserError
from storage_schemas.lineage.records import digest, lineage_root
from storage_schemas.location import locate
from uwm.config import RunConfig, replace
from uwm.eval.options import EvalOptions
from uwm.recipes import RecipeName


class Chain(BaseModel):
    """What follows from a new version of a dataset: train on it, evaluate, and promote what is better."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, field_title_generator=lambda name, _: name
    )

    track: str = Field(pattern=r"^[\w-][\w.-]{0,63}$", description="name under which the best checkpoint is kept.")
    dataset: str = Field(description="dataset whose new versions start it, one of those that the recipe trains on.")
    recipe: RecipeName = Field(description="recipe of the training run.")
    overrides: list[Pair] = Field([], description="key=value pairs that replace fields of the recipe.")
    from_best: bool = Field(False, description="finetune the best checkpoint so far; else train from scratch.")
    evaluate_on: str | None = Field(None, description="dataset with the held-out episodes; by default the same.")
    collections: list[str] = Field([], description="only these collections of it; empty takes all.")
    samples: int = Field(64, gt=0, description="segments per evaluation.")
    metric: str = Field(
        "inverse/action_mse", json_schema_extra={"enum": list(MEASURES)}, description="what decides, as mode/metric."
    )
    margin: float = Field(2.0, ge=0, description="standard errors by which a new best must be better.")
    output: str = Field("runs", description="folder for the runs.")
    hours: Hours | None = Field(None, description="most hours of training; then it stops with a checkpoint.")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a chain will do, with every version pinned."""

    chain: Chain
    dataset: DatasetPin
    evaluation: DatasetPin
    measure: Measure
    track: Track
    best: Contender | None
    """The best checkpoint of the track before."""
    identity: str
    """Of the question whether this version, trained this way, makes a better checkpoint."""
    config: RunConfig
    """Of the training run."""

    def describe(self) -> tuple[str, ...]:
        """The plan in words, a line for each thing that would be done."""
        best = self.best.checkpoint if self.best else "nothing yet"
        return (
            f"train {' '.join((self.chain.recipe, *self.chain.overrides))} on {self.dataset.uri}@{self.dataset.version}"
            f"{f', starting from {self.config.init_from}' if self.config.init_from else ''}, as {self.config.folder}",
            f"evaluate {self.measure.name} on {self.evaluation.uri}@{self.evaluation.version}, "
            f"{self.chain.samples} segments",
            f"promote in {self.track.name} when better than {best} by over {self.measure.margin:g} standard errors",
        )


@dataclass(frozen=True, kw_only=True)
class Chained:
    """What a chain came to."""

    plan: tuple[str, ...]
    decision: Decision | None
    """None in a dry run."""
    reused: bool = False
    """The same question had been decided before; nothing was done."""


def plan_chain(chain: Chain) -> Plan:
    """Pin the newest version of everything.

    Raises:
        UserError: when a dataset, the recipe, a setting or the measure is not as it should be.
    """
    measure = Measure.parse(chain.metric, chain.margin)
    dataset = pin_dataset(chain.dataset)
    track = Track(lineage_root(chain.dataset), chain.track)
    best = track.best()
    settings = (chain.recipe, *chain.overrides, *sorted(chain.collections), str(chain.samples), str(chain.from_best))
    identity = digest(chain.track, dataset.identity, measure.name, str(measure.margin), *settings)
    return Plan(
        chain=chain,
        dataset=dataset,
        evaluation=pin_dataset(chain.evaluate_on) if chain.evaluate_on else dataset,
        measure=measure,
        track=track,
        best=best,
        identity=identity,
        config=_configure(chain, dataset, identity, best if chain.from_best else None),
    )


def _configure(chain: Chain, dataset: DatasetPin, identity: str, start: Contender | None) -> RunConfig:
    """The run with name, folder, parent and version. Raises UserError when it does not train on the dataset."""
    config = make_config(chain.recipe, chain.overrides)
    uri, refs = dataset.uri, config.data.datasets
    pinned = [replace(ref, version=dataset.version) if locate(ref.uri) == locate(uri) else ref for ref in refs]
    if not any(locate(ref.uri) == locate(uri) for ref in refs):
        raise UserError(f"{chain.recipe} does not train on {uri}: name it, data.datasets.0.uri={uri}")
    return adapted(
        config,
        name=f"{chain.track}-{dataset.name}-v{dataset.version}",
        output=f"{chain.output.rstrip('/')}/{chain.track}/{dataset.name}@{dataset.version}-{identity[:6]}",
        init_from=start.uri if start else config.init_from,
        data=replace(config.data, datasets=pinned),
    )


def run_chain(jobs: Jobs, chain: Chain, *, dry_run: bool = False, run_url: str = "") -> Chained:
    """Train on the newest version of a dataset and decide whether the result is the new best of its track.

    Args:
        jobs: how training and evaluation are carried out.
        chain: what to do.
        dry_run: only say what would be done.
        run_url: the flow run, for the record.

    Raises:
        UserError: when something is not as it should be.
    """
    plan = plan_chain(chain)
    if decision := plan.track.decided(plan.identity):
        return Chained(plan=(), decision=decision, reused=True)
    words = plan.describe()
    if dry_run:
        return Chained(plan=words, decision=None)
    trained = jobs.train(plan.config)
    options = EvalOptions(version=plan.evaluation.version, collections=tuple(chain.collections), samples=chain.samples)

    def measured(uri: str) -> Evaluated:
        return jobs.evaluate(uri, plan.evaluation.uri, options)

    def remeasure(best: Contender) -> Contender:
        again = measured(best.uri)
        update = {"evaluation": again.record.node, "value": plan.measure.of(again.evaluation)}
        return best.model_copy(update=update)

    result = measured(trained.path)
    candidate = Contender(
        checkpoint=trained.record.node,
        uri=trained.path,
        identity=trained.record.identity,
        evaluation=result.record.node,
        value=plan.measure.of(result.evaluation),
    )
    dataset = f"{plan.dataset.uri}@{plan.dataset.version}"
    decision = plan.track.decide(plan.identity, candidate, plan.measure, remeasure, dataset=dataset, run_url=run_url)
    return Chained(plan=words, decision=decision)
