"""A recipe becomes a checkpoint, in a process of its own, and the lineage knows it."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flows.lineage.openlineage import Start, emitting
from flows.lineage.records import CheckpointPin, DatasetPin, checkpoint_root, record_checkpoint
from flows.runtime.child_process import module_command, run_child
from storage_schemas.documents import write_document
from storage_schemas.errors import UserError, first_problem
from storage_schemas.lineage.records import Fact, LineageRecord
from storage_schemas.location import locate

if TYPE_CHECKING:
    from uwm.checkpoint import Origin
    from uwm.config import RunConfig
    from uwm.events import TrainEvent, TrainFinished


@dataclass(frozen=True, kw_only=True)
class Trained:
    """The last checkpoint of a run."""

    path: str
    step: int
    reused: bool
    """The run had been complete before; nothing was trained."""
    root: str
    record: LineageRecord


def make_config(recipe: str, overrides: Sequence[str] = ()) -> "RunConfig":
    """The configuration of a recipe with some fields replaced.

    Raises:
        UserError: when the recipe or a field is unknown, or a value does not fit.
    """
    from uwm.overrides import apply_overrides
    from uwm.recipes import get_recipe

    return apply_overrides(get_recipe(recipe), list(overrides))


def adapted(config: "RunConfig", **changes: object) -> "RunConfig":
    """A configuration with some of its fields changed. Raises UserError when they don't go together."""
    from pydantic import ValidationError

    from uwm.settings import replace

    try:
        return replace(config, **changes)
    except ValidationError as error:
        raise UserError(first_problem(error)[1]) from error


def run_training(
    config: "RunConfig", *, run_url: str = "", on_event: "Callable[[TrainEvent], None] | None" = None
) -> Trained:
    """Train in a process of its own; an interrupted run goes on from its last checkpoint.

    Args:
        config: of the run.
        run_url: the flow run, for the lineage.
        on_event: is told what the training process reports.

    Raises:
        UserError: when the data of the run are not as they should be.
        ChildError: when the training process fails.
        SystemExit: when it was stopped by SIGTERM; its checkpoint resumes.
    """
    start = Start(job="train", about=config.name, inputs=tuple(dataset.uri for dataset in config.data.datasets))
    with emitting(start, run_url) as completed:
        finished = _train(config, on_event)
        pin, facts = pin_checkpoint(finished.path)
        root = checkpoint_root(pin)
        record = record_checkpoint(root, pin, facts=facts, run_url=run_url)
        result = Trained(path=finished.path, step=finished.step, reused=finished.reused, root=root, record=record)
        completed(result)
    return result


def _train(config: "RunConfig", on_event: "Callable[[TrainEvent], None] | None") -> "TrainFinished":
    """The training process from its start to its end."""
    from uwm.events import TrainFinished, parse_line

    finished: list[TrainFinished] = []

    def on_line(line: str) -> None:
        event = parse_line(line)
        if isinstance(event, TrainFinished):
            finished.append(event)
        if event is not None and on_event is not None:
            on_event(event)

    with tempfile.TemporaryDirectory(prefix="uwm-") as folder:
        path = Path(folder) / "config.json"
        write_document(locate(path), config)
        run_child(module_command("uwm.train", str(path)), on_line)
    return finished[-1]


def pin_checkpoint(path: str) -> tuple[CheckpointPin, dict[str, Fact]]:
    """A checkpoint with all that it was made from, and what is worth knowing of it.

    Raises:
        UserError: when there is no readable checkpoint.
    """
    from uwm.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(path)
    state = checkpoint.state
    origins = [origin for origin in (state.parent, state.tokenizer_checkpoint) if origin is not None]
    pin = CheckpointPin(
        uri=str(checkpoint.path),
        run=state.name,
        stage=state.stage,
        step=state.step,
        identity=checkpoint.identity,
        datasets=tuple(DatasetPin(uri=d.uri, version=d.version, table_id=d.table_id) for d in state.datasets),
        parents=tuple(_pin_origin(origin, checkpoint.path) for origin in origins),
    )
    facts: dict[str, Fact] = {name: round(value, 5) for name, value in state.metrics.items()}
    return pin, facts | {"code": state.code_revision, "seed": state.seed}


def _pin_origin(origin: "Origin", near: Path) -> CheckpointPin:
    """A checkpoint that the one at `near` was made from; of one that was pruned, what its path and digest say."""
    from uwm.checkpoint import locate_origin

    path = locate_origin(origin, near)
    if path:
        return pin_checkpoint(str(path))[0]
    gone = Path(origin.path)
    step = gone.name.removeprefix("step-")
    return CheckpointPin(
        uri=origin.path,
        run=gone.parent.parent.name,
        stage="unknown",
        step=int(step) if step.isdecimal() else 0,
        identity=origin.identity,
        datasets=(),
    )
