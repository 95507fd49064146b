"""The flow `train`: a recipe becomes a checkpoint, in a process of its own."""

from typing import Any

from prefect import Task, flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.runtime import flow_run

from flows.deploy.forms import AS_THE_RECIPE, Settings
from flows.jobs.options import Hours, Pair
from flows.jobs.train import Trained, run_training
from flows.jobs.training_messages import describe
from flows.lineage.pages import slug
from flows.publish import publish_lineage
from flows.runtime.child_process import ChildError
from flows.runtime.gpu_slots import gpu_slot
from flows.runtime.progress import ProgressArtifact
from flows.runtime.user_errors import as_function, failing_on_user_error
from uwm.config import RunConfig
from uwm.events import TrainEvent, TrainFinished, TrainProgress, TrainStarted
from uwm.overrides import apply_overrides
from uwm.recipes import RecipeName, get_recipe


class FlowFollower:
    """Brings a training process's events into the flow run: log lines and a progress artifact."""

    def __init__(self) -> None:
        self.logger = get_run_logger()
        self.progress: ProgressArtifact | None = None

    def __call__(self, event: TrainEvent) -> None:
        """Take one event."""
        self.logger.info(describe(event))
        if isinstance(event, TrainStarted):
            self.progress = ProgressArtifact(f"progress-{slug(event.name)}", f"steps of {event.name}")
        if self.progress is None:
            return
        if isinstance(event, TrainStarted | TrainProgress):
            self.progress.show(100 * event.step / event.steps)
        elif isinstance(event, TrainFinished):
            self.progress.show(100.0)


def _child_failed(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    """Whether a retry may help: the training process died. A user's mistake and a time-out stay what they are."""
    return isinstance(state.result(raise_on_failure=False), ChildError)


@task(
    name="train recipe",
    cache_policy=NO_CACHE,
    retries=2,
    retry_delay_seconds=[10, 60],
    retry_condition_fn=_child_failed,
)
@failing_on_user_error
def run_process(config: RunConfig, run_url: str) -> Trained:
    """Run the training process to its end; cancelling lets it write a checkpoint, and a retry goes on from the last."""
    return run_training(config, run_url=run_url, on_event=FlowFollower())


@flow(name="train", flow_run_name="train {recipe}")
@failing_on_user_error
def train(
    recipe: RecipeName,
    overrides: tuple[Pair, ...] = (),
    settings: Settings = AS_THE_RECIPE,
    hours: Hours | None = None,
) -> Trained:
    """Train a recipe; an interrupted run goes on from its last checkpoint, a complete one is reused.

    Args:
        recipe: name of a recipe.
        overrides: key=value pairs that replace any field of its configuration.
        settings: the fields that are most often replaced.
        hours: most hours of training; then it stops with a checkpoint, and the run fails.
    """
    return _train(apply_overrides(settings.applied_to(get_recipe(recipe)), overrides), hours)


@flow(name="train-config", flow_run_name="train {config.name}")
@failing_on_user_error
def train_config(config: RunConfig, hours: Hours | None = None) -> Trained:
    """Train a configuration that a pipeline, a chain or the command line has put together.

    Args:
        config: of the run.
        hours: most hours of training; then it stops with a checkpoint, and the run fails.
    """
    return _train(config, hours)


def _train(config: RunConfig, hours: float | None) -> Trained:
    limit = 3600 * hours if hours else None
    with gpu_slot():
        result = as_function(run_process.with_options(timeout_seconds=limit))(config, flow_run.ui_url or "")
    publish_lineage(result.root, [result.record.node])
    return result
