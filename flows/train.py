"""The flow `train`: a recipe becomes a checkpoint, in a process of its own."""

from typing import Any
from uuid import UUID

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run

from flows.events import describe
from flows.jobs import Trained, run_training
from flows.lineage.pages import slug
from flows.publish import publish_lineage
from flows.refusal import refusing, settled
from uwm.train.log import TrainEvent, TrainFinished, TrainProgress, TrainStarted


class FlowFollower:
    """Brings a training process's events into the flow run: log lines and a progress artifact."""

    def __init__(self) -> None:
        self.logger = get_run_logger()
        self.progress: UUID | None = None

    def __call__(self, event: TrainEvent) -> None:
        """Take one event."""
        self.logger.info(describe(event))
        if isinstance(event, TrainStarted):
            self.progress = _as_id(
                create_progress_artifact(
                    100 * event.step / event.steps,
                    key=f"progress-{slug(event.name)}",
                    description=f"steps of {event.name}",
                )
            )
        elif isinstance(event, TrainProgress) and self.progress is not None:
            update_progress_artifact(self.progress, 100 * event.step / event.steps)
        elif isinstance(event, TrainFinished) and self.progress is not None:
            update_progress_artifact(self.progress, 100.0)


def _as_id(made: Any) -> UUID:
    return UUID(str(made))


@task(name="train recipe", cache_policy=NO_CACHE)
@refusing
def train_recipe(recipe: str, overrides: tuple[str, ...], run_url: str) -> Trained:
    """Run the training process to its end; cancelling lets it write a checkpoint."""
    return run_training(recipe, overrides, run_url=run_url, on_event=FlowFollower())


@flow(name="train", flow_run_name="train {recipe}")
@refusing
def train(recipe: str, overrides: tuple[str, ...] = ()) -> Trained:
    """Train a recipe; an interrupted run goes on from its last checkpoint, a complete one is reused.

    Args:
        recipe: name of a recipe.
        overrides: key=value pairs that replace fields of its configuration.
    """
    result = settled(train_recipe)(recipe, overrides, flow_run.ui_url or "")
    publish_lineage(result.root, [result.record.node])
    return result
