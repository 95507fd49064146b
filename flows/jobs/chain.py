"""From a new dataset version to a decision: train, evaluate, compare with the best, promote or not. Imports no prefect.

Every part of it is done once, whoever asks how often: the training run resumes or is reused, evaluations are reused,
and the decision is a write-once record. So a chain that was killed is simply started again.
"""

from dataclasses import dataclass

from flows.deploy.forms import Chain
from flows.jobs.evaluate import Evaluated
from flows.jobs.ingest import pin_dataset
from flows.jobs.pipeline import Steps
from flows.jobs.promotion import Contender, Decision, Measure, Track
from flows.jobs.train import make_config
from flows.lineage.records import DatasetPin
from storage_schemas.errors import UserError
from storage_schemas.lineage.records import digest, lineage_root
from storage_schemas.location import locate


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
    overrides: tuple[str, ...]
    """Settings of the training run beyond the recipe's."""

    def describe(self) -> tuple[str, ...]:
        """The plan in words, a line for each thing that would be done."""
        best = self.best.checkpoint if self.best else "nothing yet"
        return (
            f"train {self.chain.recipe} {' '.join(self.overrides)}",
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
        overrides=_overrides(chain, dataset, identity, best if chain.from_best else None),
    )


def _overrides(chain: Chain, dataset: DatasetPin, identity: str, start: Contender | None) -> tuple[str, ...]:
    """The run's name, folder, parent and pinned version. Raises UserError when it does not train on the dataset."""
    folder = f"{chain.output.rstrip('/')}/{chain.track}/{dataset.name}@{dataset.version}-{identity[:6]}"
    given = (*chain.overrides, f"name={chain.track}-{dataset.name}-v{dataset.version}", f"output={folder}")
    if start:
        given = (*given, f"init_from={start.uri}")
    uses = make_config(chain.recipe, given).data.datasets
    places = [index for index, use in enumerate(uses) if locate(use.uri) == locate(dataset.uri)]
    if not places:
        uri = dataset.uri
        raise UserError(f"{chain.recipe} does not train on {uri}: name it, data.datasets.0.uri={uri}")
    return (*given, *(f"data.datasets.{index}.version={dataset.version}" for index in places))


def run_chain(steps: Steps, chain: Chain, *, dry_run: bool = False, run_url: str = "") -> Chained:
    """Train on the newest version of a dataset and decide whether the result is the new best of its track.

    Args:
        steps: how training and evaluation are carried out.
        chain: what to do.
        dry_run: only say what would be done.
        run_url: the flow run, for the record.

    Raises:
        UserError: when something is not as it should be.
    """
    plan = plan_chain(chain)
    if made := plan.track.decided(plan.identity):
        return Chained(plan=(), decision=made, reused=True)
    words = plan.describe()
    if dry_run:
        return Chained(plan=words, decision=None)
    trained = steps.train(chain.recipe, plan.overrides)

    def measured(uri: str) -> Evaluated:
        where = {"version": plan.evaluation.version, "collections": tuple(chain.collections)}
        return steps.evaluate(uri, plan.evaluation.uri, **where, samples=chain.samples)

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
