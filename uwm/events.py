"""What a training run tells the world: typed events, one JSON line each.

The training process prints the lines on stdout, where the flows read them, and appends them to
`metrics.jsonl` in the run's folder, where the report reads them. The kind of an event is its field
`event`. This module imports no torch.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError

from storage_schemas.errors import UserError

METRICS_FILE = "metrics.jsonl"


@dataclass(frozen=True, kw_only=True)
class DatasetUse:
    """One dataset of a run, pinned: what a checkpoint was made from."""

    uri: str
    version: int
    table_id: str
    """Identity of the dataset's log: another dataset at the same uri has another one."""
    weight: float
    collections: tuple[str, ...]
    episodes: int
    """Training episodes."""
    segments: int
    """Training segments: one for each step but an episode's last."""
    action_steps: int
    """Training steps whose action is known and used."""


@dataclass(frozen=True, kw_only=True)
class DatasetPlan:
    """What a run makes of one dataset; what it does not use is named too."""

    uri: str
    version: int
    robot: str
    """Under which its actions are normalized; empty when nothing is declared, or it has none."""
    cameras: dict[str, str]
    """Camera of the run -> camera of the dataset; those of the run that it lacks are not here."""
    lacks: tuple[str, ...]
    """Cameras of the run that it lacks."""
    dropped_cameras: tuple[str, ...]
    same: tuple[str, ...]
    """Parts of the run's actions that are used as they are stored."""
    converted: tuple[str, ...]
    """Parts of the run's actions that are told from others: `theirs -> ours`."""
    masked: tuple[str, ...]
    """Parts of the run's actions that it does not have: padded with zeros and left out of the loss."""
    dropped: tuple[str, ...]
    """Parts of its own actions that the run does not use."""
    dropped_states: tuple[str, ...]
    """Fields of its state that the run does not use."""
    states: tuple[str, ...] = ()
    """States of the run: as they are stored, or `theirs -> ours`."""
    lacks_states: tuple[str, ...] = ()
    """States of the run that it does not have: masked."""
    instructions: str = ""
    """How many episodes have one, and whether the run hears them; empty when none has."""
    rate: float | None
    """Steps per second that its actions are meant for."""
    stride: int
    steps: int
    """Training steps."""
    action_steps: int
    """Training steps whose action is known and used."""

    @property
    def facts(self) -> dict[str, str]:
        """All of it in words, by what it is about."""
        seen = [ours if ours == theirs else f"{ours} (its {theirs})" for ours, theirs in self.cameras.items()]
        rate = f"{self.rate:g} Hz" if self.rate else "unknown"
        found = {
            "robot": self.robot,
            "cameras": ", ".join(seen),
            "cameras it lacks": ", ".join(self.lacks),
            "cameras dropped": ", ".join(self.dropped_cameras),
            "actions same": ", ".join(self.same),
            "actions converted": ", ".join(self.converted),
            "actions masked": ", ".join(self.masked),
            "actions dropped": ", ".join(self.dropped),
            "states": ", ".join(self.states),
            "states it lacks": ", ".join(self.lacks_states),
            "states dropped": ", ".join(self.dropped_states),
            "instructions": self.instructions,
            "rate": rate if self.stride == 1 else f"{rate}, every {self.stride} steps one",
            "steps": f"{self.steps:,}, {self.action_steps:,} with actions",
        }
        return {name: text for name, text in found.items() if text}


@dataclass(frozen=True, kw_only=True)
class TrainStarted:
    """The run is set up; the next step is `step + 1`."""

    name: str
    stage: str
    folder: str
    step: int
    """Steps already done: 0 for a new run."""
    steps: int
    batch_size: int
    """Samples of a step, over all processes."""
    device: str
    precision: str
    attention: str
    """Fused kernel that attention runs; `none` for a network without attention."""
    parameters: int
    """Trained parameters."""
    tokenizer: str
    """Fingerprint of the latent tokenizer; empty for a tokenizer run."""
    parent: str
    """Checkpoint that the weights started from; empty when from scratch."""
    datasets: tuple[DatasetUse, ...]
    code_revision: str
    processes: int = 1
    share_beyond: float = 0.0
    """Of the training steps, in the worst dimension: with actions beyond the range of the parent's normalizer."""
    plans: tuple[DatasetPlan, ...] = ()
    """What it makes of each dataset."""
    event: Literal["train_started"] = "train_started"


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """Instructions of a dataset are encoded before the run is set up; no line of `metrics.jsonl`."""

    dataset: str
    done: int
    total: int
    step: int = 0
    event: Literal["encoding"] = "encoding"


@dataclass(frozen=True, kw_only=True)
class TrainProgress:
    """Means over the steps since the last such event."""

    step: int
    steps: int
    loss: float
    logs: dict[str, float]
    """The parts of the loss, by name."""
    lr: float
    """Learning rate of this step."""
    grad_norm: float
    """Norm of this step's gradient before clipping."""
    samples_per_second: float
    data_wait: float
    """Share of the time that training stood still waiting for data, 0 to 1."""
    detail: dict[str, float] = field(default_factory=dict)
    """What else there is to see, see `uwm.train.diagnostics`."""
    event: Literal["train_progress"] = "train_progress"


@dataclass(frozen=True, kw_only=True)
class CheckpointSaved:
    """A complete checkpoint lies at `path`."""

    path: str
    step: int
    event: Literal["checkpoint_saved"] = "checkpoint_saved"


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """A checkpoint of this run was measured on held-out episodes; the result and examples lie in `folder`."""

    step: int
    dataset: str
    folder: str
    metrics: dict[str, float]
    """`<mode>/<metric>` -> mean over the segments."""
    gains: dict[str, float]
    """The same names -> gain over the first trivial baseline."""
    event: Literal["evaluated"] = "evaluated"


@dataclass(frozen=True, kw_only=True)
class TrainStopped:
    """The run was asked to stop before its end; the checkpoint at `path` resumes it."""

    path: str
    step: int
    event: Literal["train_stopped"] = "train_stopped"


@dataclass(frozen=True, kw_only=True)
class TrainFinished:
    """The run is complete. `reused` says that it had been so before, and nothing was trained."""

    path: str
    step: int
    reused: bool
    event: Literal["train_finished"] = "train_finished"


TrainEvent = Encoding | TrainStarted | TrainProgress | CheckpointSaved | Evaluated | TrainStopped | TrainFinished
OnEvent = Callable[[TrainEvent], None]

_EVENT: TypeAdapter[TrainEvent] = TypeAdapter(Annotated[TrainEvent, Field(discriminator="event")])


def to_line(event: TrainEvent) -> str:
    """The event as one line of JSON, without the line's end."""
    return _EVENT.dump_json(event).decode()


def parse_line(line: str | bytes) -> TrainEvent | None:
    """The event of a line, or None when the line is no event (a library's own output, a torn line)."""
    try:
        return _EVENT.validate_json(line)
    except ValidationError:
        return None


def read_events(lines: Iterable[str | bytes]) -> Iterator[TrainEvent]:
    """The events among some lines."""
    return (event for line in lines if (event := parse_line(line)) is not None)


def load_metrics(folder: str | Path) -> tuple[TrainProgress, ...]:
    """The progress of a run, by step; empty when it logged nothing yet."""
    path = Path(folder) / METRICS_FILE
    if not path.is_file():
        return ()
    with path.open("rb") as file:
        progress = {event.step: event for event in read_events(file) if isinstance(event, TrainProgress)}
    return tuple(progress[step] for step in sorted(progress))


class MetricsFile:
    """Appends events to `metrics.jsonl`.

    Args:
        folder: of the run; made when absent.
        step: the step that the run goes on from. Progress beyond it belongs to work that was lost
            (a crash after the last checkpoint) and is dropped.
    """

    def __init__(self, folder: Path, *, step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / METRICS_FILE
        self._drop_after(step)

    def __call__(self, event: TrainEvent) -> None:
        """Append one event; it is on disk when the process ends, however it ends. Raises UserError when it can't be."""
        try:
            with self.path.open("a") as file:
                file.write(to_line(event) + "\n")
        except OSError as error:
            raise UserError(f"can't write {self.path}: {error.strerror}") from error

    def _drop_after(self, step: int) -> None:
        if not self.path.is_file():
            return
        with self.path.open("rb") as file:
            kept = [to_line(event) + "\n" for event in read_events(file) if event.step <= step]
        temporary = self.path.with_name(f".tmp-{METRICS_FILE}")
        temporary.write_text("".join(kept))
        temporary.replace(self.path)
