"""Jobs that consist of other jobs, whoever carries those out: plain functions, or Prefect flows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from flows.jobs.evaluate import Evaluated
from flows.jobs.ingest import Ingested
from flows.jobs.options import RUNNER_DEFAULTS, RunnerOptions
from flows.jobs.train import Trained, adapted
from pipelines.options import IngestOptions
from storage_schemas.errors import UserError
from uwm.eval.options import EVAL_DEFAULTS, EvalOptions

if TYPE_CHECKING:
    from uwm.config import RunConfig


class Jobs(Protocol):
    """The three jobs that others consist of, however they are carried out."""

    def ingest(
        self, source: str, store: str, options: IngestOptions, runner: RunnerOptions = RUNNER_DEFAULTS
    ) -> Ingested:
        """Bring a source into a store. Raises UserError when it can't be done."""
        ...

    def train(self, config: "RunConfig") -> Trained:
        """Train, or go on with an interrupted run. Raises UserError when it can't be done."""
        ...

    def evaluate(self, checkpoint: str, store: str, options: EvalOptions = EVAL_DEFAULTS) -> Evaluated:
        """Measure a checkpoint. Raises UserError when it can't be done."""
        ...


@dataclass(frozen=True, kw_only=True)
class Finetuned:
    """A pretrained and a finetuned checkpoint and what they are worth."""

    pretrained: Trained
    finetuned: Trained
    evaluations: tuple[Evaluated, ...]


def pretrain_then_finetune(
    jobs: Jobs,
    pretrain: "RunConfig",
    finetune: "RunConfig",
    *,
    evaluate_on: Sequence[str] = (),
    options: EvalOptions = EVAL_DEFAULTS,
) -> Finetuned:
    """Pretrain, start another run from the last checkpoint, and evaluate both.

    Args:
        jobs: how training and evaluation are carried out.
        pretrain: the first run.
        finetune: the second run, which starts from the first's last checkpoint.
        evaluate_on: datasets on whose held-out episodes both checkpoints are evaluated.
        options: of the evaluations.

    Raises:
        UserError: when a run or a dataset is not as it should be.
    """
    from uwm.preflight import check_evaluation, check_run

    check_run(pretrain)
    check_run(finetune, after=pretrain)
    for config in (pretrain, finetune):
        for store in evaluate_on:
            check_evaluation(config, store, options)
    first = jobs.train(pretrain)
    second = jobs.train(adapted(finetune, init_from=first.path))
    evaluations = [jobs.evaluate(trained.path, store, options) for store in evaluate_on for trained in (first, second)]
    return Finetuned(pretrained=first, finetuned=second, evaluations=tuple(evaluations))


def overrides_of(stage: str, overrides: Sequence[str]) -> tuple[str, ...]:
    """The overrides that one of the two runs gets.

    Raises:
        UserError: when one is not of the form key=value.
    """
    chosen = []
    for item in overrides:
        key, equals, _ = item.partition("=")
        if not equals or not key:
            raise UserError(f"{item!r} is not of the form key=value, such as train.steps=100")
        head, _, rest = item.partition(".")
        if head not in ("pretrain", "finetune"):
            chosen.append(item)
        elif head == stage:
            chosen.append(rest)
    return tuple(chosen)
