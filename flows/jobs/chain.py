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
from flows.jobs.promotion import MEASURES, Comparison, Contender, Decision, Measure, Track
from flows.jobs.train import Trained, adapted, make_config
from flows.lineage.records import DatasetPin
from storage_schemas.catalog.table import same_dataset
from storage_schemas.errors import StorageError, UserError
from storage_schemas.lineage.records import digest, lineage_root
from uwm.config import RunConfig
from uwm.eval.options import EvalOptions
from uwm.eval.result import ACTION_METRICS, Metric
from uwm.recipes import RecipeName
from uwm.settings import replace


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
    lost: str
    """Why that one can't be had any more; empty when it can."""
    identity: str
    """Of the question whether this version, trained this way, makes a better checkpoint."""
    config: RunConfig
    """Of the training run."""

    def describe(self) -> tuple[str, ...]:
        """The plan in words, a line for each thing that would be done."""
        best = self.best.checkpoint if self.best else "nothing yet"
        rule = f"when better than {best} by over {self.measure.margin:g} standard errors"
        return (
            f"train {' '.join((self.chain.recipe, *self.chain.overrides))} on {self.dataset.uri}@{self.dataset.version}"
            f"{f', starting from {self.config.init_from}' if self.config.init_from else ''}, as {self.config.folder}",
            f"evaluate {self.measure.name} on {self.evaluation.uri}@{self.evaluation.version}, "
            f"{self.chain.samples} segments",
            f"promote in {self.track.name}{f', for {self.lost}' if self.lost else f' {rule}'}",
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
    lost = _lost(best) if best else ""
    settings = (chain.recipe, *chain.overrides, *sorted(chain.collections), str(chain.samples), str(chain.from_best))
    identity = digest(chain.track, dataset.identity, measure.name, str(measure.margin), *settings)
    return Plan(
        chain=chain,
        dataset=dataset,
        evaluation=pin_dataset(chain.evaluate_on) if chain.evaluate_on else dataset,
        measure=measure,
        track=track,
        best=best,
        lost=lost,
        identity=identity,
        config=_configure(chain, dataset, identity, best if chain.from_best and not lost else None),
    )


def _lost(best: Contender) -> str:
    """Why the best so far can't be had any more; empty when it can."""
    from uwm.checkpoint import load_checkpoint

    try:
        identity = load_checkpoint(best.uri).identity
    # a storage that does not answer says nothing of the checkpoint
    except StorageError:
        raise
    except UserError as error:
        return f"{best.checkpoint}, the best so far, is gone ({error})"
    return (
        "" if identity == best.identity else f"{best.checkpoint}, the best so far, is gone (another lies in its place)"
    )


def _configure(chain: Chain, dataset: DatasetPin, identity: str, start: Contender | None) -> RunConfig:
    """The run with name, folder, parent and version. Raises UserError when it does not train on the dataset."""
    config = make_config(chain.recipe, chain.overrides)
    uri, refs = dataset.uri, config.data.datasets
    same = [same_dataset(ref.uri, uri) for ref in refs]
    if not any(same):
        raise UserError(f"{chain.recipe} does not train on {uri}: name it, data.datasets.0.uri={uri}")
    pinned = [replace(ref, version=dataset.version) if mine else ref for ref, mine in zip(refs, same, strict=True)]
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
    from uwm.preflight import check_evaluation, check_run

    plan = plan_chain(chain)
    if decision := plan.track.decided(plan.identity):
        return Chained(plan=(), decision=decision, reused=True)
    options = EvalOptions(version=plan.evaluation.version, collections=tuple(chain.collections), samples=chain.samples)
    check_run(plan.config)
    check_evaluation(plan.config, plan.evaluation.uri, options, (plan.measure.mode, plan.measure.metric))
    words = plan.describe()
    if dry_run:
        return Chained(plan=words, decision=None)
    trained = jobs.train(plan.config)
    decision = plan.track.decide(
        plan.identity,
        plan.measure,
        lambda best: _compared(jobs, plan, options, trained, best),
        dataset=f"{plan.dataset.uri}@{plan.dataset.version}",
        run_url=run_url,
    )
    return Chained(plan=words, decision=decision)


def _compared(jobs: Jobs, plan: Plan, options: EvalOptions, trained: Trained, best: Contender | None) -> Comparison:
    """Measure what was trained and the best so far on the same segments and in the same units.

    Action errors of both are told in the units of the best so far: a new version with a few extreme actions stretches
    the candidate's own, and would make any error look small.
    """
    lost = _lost(best) if best else ""
    if lost:
        best = None
    shared = options.model_copy(update={"normalizer": best.uri}) if best and _in_units(plan.measure) else options
    new = jobs.evaluate(trained.path, plan.evaluation.uri, shared)
    candidate = Contender(
        checkpoint=trained.record.node,
        uri=trained.path,
        identity=trained.record.identity,
        evaluation=new.record.node,
        value=plan.measure.of(new.evaluation),
    )
    if best is None:
        return Comparison(candidate=candidate, best=None, lost=lost)
    # in its own units, which are the shared ones: so its evaluation may be there already
    old = jobs.evaluate(best.uri, plan.evaluation.uri, options)
    again = best.model_copy(update={"evaluation": old.record.node, "value": plan.measure.of(old.evaluation)})
    return Comparison(candidate=candidate, best=again, unlike=_unlike(plan.measure, new, old))


def _in_units(measure: Measure) -> bool:
    """Whether a measure depends on a checkpoint's normalizer."""
    return measure.metric in ACTION_METRICS


def _unlike(measure: Measure, new: Evaluated, old: Evaluated) -> str:
    """Why two evaluations can't be compared; empty when they can."""
    tokenizers = (new.evaluation.settings.tokenizer, old.evaluation.settings.tokenizer)
    if measure.metric is not Metric.LATENT_MSE or tokenizers[0] == tokenizers[1]:
        return ""
    return f"{measure.name} is measured in latents of different tokenizers: choose {measure.mode}/pixel_mse or psnr"
