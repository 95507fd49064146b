"""Flows of flows: pretrain, finetune, evaluate; and what follows from a new dataset version."""

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.runtime import flow_run

from flows.deploy.forms import AS_THE_RECIPE, Settings
from flows.evaluate import evaluate
from flows.ingest import ingest
from flows.jobs.chain import Chain, Chained, run_chain
from flows.jobs.evaluate import Evaluated
from flows.jobs.ingest import Ingested
from flows.jobs.options import RUNNER_DEFAULTS, Hours, Pair, RunnerOptions
from flows.jobs.pipeline import Finetuned, overrides_of
from flows.jobs.pipeline import pretrain_then_finetune as carry_out
from flows.jobs.promotion import Decision
from flows.jobs.train import Trained
from flows.lineage.pages import HOME_KEY, slug
from flows.lineage.sections import facts_of
from flows.runtime.user_errors import as_function, failing_on_user_error
from flows.train import train_config
from pipelines.options import IngestOptions
from storage_schemas.markdown import table
from uwm.config import RunConfig
from uwm.eval.options import EVAL_DEFAULTS, EvalOptions
from uwm.overrides import apply_overrides
from uwm.recipes import RecipeName, get_recipe


class FlowJobs:
    """The three jobs as flows; a user's mistake in one is raised here, as by the plain functions.

    Args:
        hours: most hours of a training run.
    """

    def __init__(self, *, hours: Hours | None = None) -> None:
        self._hours = hours

    def ingest(
        self, source: str, store: str, options: IngestOptions, runner: RunnerOptions = RUNNER_DEFAULTS
    ) -> Ingested:
        """The flow `ingest`."""
        return as_function(ingest)(source, store, options, runner)

    def train(self, config: RunConfig) -> Trained:
        """The flow `train-config`."""
        return as_function(train_config)(config, self._hours)

    def evaluate(self, checkpoint: str, store: str, options: EvalOptions = EVAL_DEFAULTS) -> Evaluated:
        """The flow `evaluate`."""
        return as_function(evaluate)(checkpoint, store, options)


@flow(name="pretrain-then-finetune", flow_run_name="{pretrain} then {finetune}")
@failing_on_user_error
def pretrain_then_finetune(
    pretrain: RecipeName,
    finetune: RecipeName,
    overrides: tuple[Pair, ...] = (),
    evaluate_on: tuple[str, ...] = (),
    options: EvalOptions = EVAL_DEFAULTS,
    pretrain_settings: Settings = AS_THE_RECIPE,
    finetune_settings: Settings = AS_THE_RECIPE,
    hours: Hours | None = None,
) -> Finetuned:
    """Pretrain one recipe, start another one from its last checkpoint, and evaluate both.

    Args:
        pretrain: recipe of the first run.
        finetune: recipe of the second run.
        overrides: key=value pairs for both runs; pretrain.key=value or finetune.key=value for one.
        evaluate_on: datasets on whose held-out episodes both are evaluated.
        options: of the evaluations.
        pretrain_settings: the fields that are most often replaced, of the first run.
        finetune_settings: of the second run.
        hours: most hours of training of either run; then it stops with a checkpoint, and the run fails.
    """
    first = apply_overrides(pretrain_settings.applied_to(get_recipe(pretrain)), overrides_of("pretrain", overrides))
    second = apply_overrides(finetune_settings.applied_to(get_recipe(finetune)), overrides_of("finetune", overrides))
    result = carry_out(FlowJobs(hours=hours), first, second, evaluate_on=evaluate_on, options=options)
    logger = get_run_logger()
    for trained in (result.pretrained, result.finetuned):
        logger.info("%s: %s", trained.record.node, trained.path)
    for evaluated in result.evaluations:
        facts = "\n".join(f"  {name}: {value}" for name, value in facts_of(evaluated.record))
        logger.info("%s:\n%s", evaluated.record.node, facts)
    logger.info("what came from what: /artifacts/key/%s", HOME_KEY)
    return result


@flow(name="chain", flow_run_name="{chain.track} from {chain.dataset}")
@failing_on_user_error
def chain(chain: Chain, dry_run: bool = False) -> Chained:
    """Train on a dataset's newest version, evaluate, and promote the checkpoint when it is better than the best.

    Args:
        chain: what to train, and what decides.
        dry_run: only say what would be done.
    """
    logger = get_run_logger()
    result = run_chain(FlowJobs(hours=chain.hours), chain, dry_run=dry_run, run_url=flow_run.ui_url or "")
    for line in result.plan:
        logger.info("%s: %s", "would" if dry_run else "planned", line)
    if result.decision is None:
        return result
    logger.info("%s%s", "decided before: " if result.reused else "", _verdict(result.decision))
    if not result.reused:
        create_markdown_artifact(
            _page(result.decision), key=f"promotion-{slug(chain.track)}", description=_verdict(result.decision)
        )
    return result


def _verdict(decision: Decision) -> str:
    return f"{decision.candidate.checkpoint} {'promoted' if decision.promoted else 'not promoted'}: {decision.reason}"


def _page(decision: Decision) -> str:
    best = decision.best
    rows = [("dataset", decision.dataset), ("candidate", decision.candidate.checkpoint)]
    rows += [("evaluation", decision.candidate.evaluation), ("best so far", best.checkpoint if best else "none")]
    return f"{_verdict(decision)}\n\n{table((f'decision {decision.number}', ''), rows)}"
