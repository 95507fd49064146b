"""The daily jobs as plain functions: each does its work and writes its lineage. Imports no prefect.

The flows call these, and so does the command line when no Prefect server is set: both ways give the
same stores, checkpoints, results and records.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from flows.openlineage import Start, emitting
from flows.process import follow, python_module
from flows.records import (
    CheckpointPin,
    DatasetPin,
    checkpoint_root,
    record_checkpoint,
    record_dataset,
    record_evaluation,
    record_source,
)
from storage_schemas.errors import UserError
from storage_schemas.lineage import Fact, LineageRecord, digest, lineage_root
from storage_schemas.location import locate

if TYPE_CHECKING:
    from pipelines.ingest import Carry, IngestProgress, IngestReport
    from pipelines.sources.video import VideoOptions
    from storage_schemas.store import DatasetSummary
    from uwm.config import RunConfig
    from uwm.eval.result import Evaluation
    from uwm.eval.sample import SampleFiles
    from uwm.train.log import TrainEvent


@dataclass(frozen=True, kw_only=True)
class Ingested:
    """What an ingestion did and how the lineage knows it."""

    report: "IngestReport"
    root: str
    """Lineage root that holds the records."""
    source: LineageRecord
    dataset: LineageRecord | None
    """None when nothing of the source was good enough to make a version."""

    @property
    def record(self) -> LineageRecord | None:
        """What was made."""
        return self.dataset


@dataclass(frozen=True, kw_only=True)
class Trained:
    """The last checkpoint of a run."""

    path: str
    step: int
    reused: bool
    """The run had been complete before; nothing was trained."""
    root: str
    record: LineageRecord


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """A result and where it lies."""

    evaluation: "Evaluation"
    folder: str
    reused: bool
    """The same evaluation had been made before."""
    root: str
    record: LineageRecord

    @property
    def label(self) -> str:
        """What was measured on what, for the head of a column."""
        settings = self.evaluation.settings
        return f"{settings.run} on {', '.join(settings.collections) or 'all'}"


def _starts_ingest(source: str, store: str, **_options: object) -> Start:
    return Start(job="ingest", about=locate(store).name, inputs=(source,), outputs=(store,))


@emitting(_starts_ingest)
def run_ingest(
    source: str,
    store: str,
    *,
    format: str | None = None,  # noqa: A002 - the option's name
    collection: str | None = None,
    camera: str | None = None,
    fps: float | None = None,
    clip_steps: int | None = None,
    backend: str | None = None,
    val_percent: int | None = None,
    reject: Sequence[str] | None = None,
    batch_episodes: int = 64,
    run_id: str = "",
    run_url: str = "",
    carry: "Carry | None" = None,
    progress: "Callable[[IngestProgress], None] | None" = None,
) -> Ingested:
    """Bring a source into a store; a second call adds only what is new.

    Args:
        source: folder, file, glob or URI of raw data.
        store: dataset, a folder or URI; created when there is none.
        format: of the source; found out when None.
        collection: name for all episodes; by default the lab or folder.
        camera: camera of the dataset that video frames count as.
        fps: most steps per second of video.
        clip_steps: most steps of an episode cut from a video.
        backend: decoder of videos.
        val_percent: share of held-out episodes of a new dataset.
        reject: findings of the doctor that keep an episode out; the format's own when None.
        batch_episodes: episodes or video files per commit.
        run_id: written into every row; a new one when empty.
        run_url: the flow run, for the lineage.
        carry: who converts the batches; this process when None.
        progress: called after every reference, or every batch.

    Raises:
        UserError: when the source can't be read at all or the store can't take it.
    """
    from pipelines.ingest import ingest
    from pipelines.sources import SourceOptions

    video = _video_options(fps=fps, clip_steps=clip_steps, backend=backend)
    report = ingest(
        source,
        store,
        format=format,
        options=SourceOptions(collection=collection, camera=camera, video=video),
        val_percent=val_percent,
        reject=reject,
        batch_episodes=batch_episodes,
        run_id=run_id or None,
        carry=carry,
        progress=progress,
    )
    root = lineage_root(store)
    facts: dict[str, Fact] = {"format": report.source_format, "collection": collection}
    made = record_source(
        root, uri=report.source_uri, fingerprint=report.source_fingerprint, facts=facts, run_url=run_url
    )
    dataset = _record_ingested(root, report, made, run_url) if report.version else None
    return Ingested(report=report, root=root, source=made, dataset=dataset)


def _video_options(**given: str | float | None) -> "VideoOptions | None":
    chosen = {name: value for name, value in given.items() if value is not None}
    if not chosen:
        return None
    from pydantic import TypeAdapter, ValidationError

    from pipelines.sources.video import VideoOptions

    options: TypeAdapter[VideoOptions] = TypeAdapter(VideoOptions)
    try:
        return options.validate_python(chosen)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        raise UserError(f"video options: {name + ': ' if name else ''}{first['msg']}") from error


def _record_ingested(root: str, report: "IngestReport", source: LineageRecord, run_url: str) -> LineageRecord:
    found = summary_of(report.store_uri, report.version)
    facts: dict[str, Fact] = {
        "episodes": found.episodes,
        "steps": found.steps,
        "actions": found.actions_available,
        "bytes": found.bytes,
        "added": report.added,
        "replaced": report.replaced,
        "quarantined": len(report.quarantined),
    }
    used = report.added + report.replaced + report.present > 0
    pin = pin_dataset(report.store_uri, report.version)
    return record_dataset(root, pin, sources=(source.node,) if used else (), facts=facts, run_url=run_url)


def summary_of(store: str, version: int | None = None) -> "DatasetSummary":
    """What a dataset version holds, in numbers."""
    from storage_schemas.store import open_dataset, summary

    return summary(open_dataset(store, version))


def pin_dataset(store: str, version: int | None = None) -> DatasetPin:
    """The newest or a given version of a dataset, pinned."""
    from storage_schemas.store import open_dataset

    dataset = open_dataset(store, version)
    return DatasetPin(uri=store, version=dataset.version, table_id=dataset.table_id)


def make_config(recipe: str, overrides: Sequence[str] = ()) -> "RunConfig":
    """The configuration of a recipe with some fields replaced.

    Raises:
        UserError: when the recipe or a field is unknown, or a value does not fit.
    """
    from uwm.recipes import apply_overrides, get_recipe

    return apply_overrides(get_recipe(recipe), list(overrides))


def _starts_training(recipe: str, overrides: Sequence[str] = (), **_options: object) -> Start:
    used = make_config(recipe, overrides).data.datasets
    return Start(job="train", about=recipe, inputs=tuple(dataset.uri for dataset in used))


@emitting(_starts_training)
def run_training(
    recipe: str,
    overrides: Sequence[str] = (),
    *,
    run_url: str = "",
    on_event: "Callable[[TrainEvent], None] | None" = None,
) -> Trained:
    """Train a recipe in a process of its own; an interrupted run goes on from its last checkpoint.

    Args:
        recipe: name of a recipe.
        overrides: `key=value` pairs that replace fields of its configuration.
        run_url: the flow run, for the lineage.
        on_event: is told what the training process reports.

    Raises:
        UserError: when the recipe or its data are not as they should be.
        ChildError: when the training process fails.
        SystemExit: when it was stopped by SIGTERM; its checkpoint resumes.
    """
    from uwm.train.log import TrainFinished, parse_line

    config = make_config(recipe, overrides)
    finished: list[TrainFinished] = []

    def on_line(line: str) -> None:
        event = parse_line(line)
        if isinstance(event, TrainFinished):
            finished.append(event)
        if event is not None and on_event is not None:
            on_event(event)

    with tempfile.TemporaryDirectory(prefix="uwm-") as folder:
        path = Path(folder) / "config.json"
        path.write_text(config.model_dump_json())
        follow(python_module("uwm.train", str(path)), on_line)
    done = finished[-1]
    pin, facts = pin_checkpoint(done.path)
    root = checkpoint_root(pin)
    record = record_checkpoint(root, pin, facts=facts, run_url=run_url)
    return Trained(path=done.path, step=done.step, reused=done.reused, root=root, record=record)


def pin_checkpoint(path: str) -> tuple[CheckpointPin, dict[str, Fact]]:
    """A checkpoint with all that it was made from, and what is worth knowing of it.

    Raises:
        UserError: when there is no readable checkpoint.
    """
    from uwm.train.checkpoint import load_checkpoint

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
        parents=tuple(pin_checkpoint(origin.path)[0] for origin in origins),
    )
    facts: dict[str, Fact] = {name: round(value, 5) for name, value in state.metrics.items()}
    return pin, facts | {"code": state.code_revision, "seed": state.seed}


def _starts_evaluation(checkpoint: str, store: str, **_options: object) -> Start:
    return Start(job="evaluate", about=locate(store).name, inputs=(checkpoint, store))


@emitting(_starts_evaluation)
def run_evaluation(
    checkpoint: str,
    store: str,
    *,
    version: int | None = None,
    split: str = "val",
    collections: Sequence[str] = (),
    samples: int = 64,
    seed: int = 0,
    steps: int | None = None,
    device: str = "auto",
    run_url: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> Evaluated:
    """Measure a checkpoint on a dataset version; the same question is not answered twice.

    The result lies beside the run's checkpoints, in `evaluations/`.

    Raises:
        UserError: when the checkpoint or the dataset is missing or unfit.
    """
    from uwm.eval.files import load_evaluation
    from uwm.eval.offline import evaluate

    pin, _ = pin_checkpoint(checkpoint)
    dataset = pin_dataset(store, version)
    chosen = ",".join(sorted(collections))
    other = () if steps is None else (f"steps={steps}",)
    identity = digest(pin.identity, dataset.identity, split, chosen, str(samples), str(seed), *other)
    folder = str(results_of(pin) / f"step-{pin.step}-on-{dataset.name}@{dataset.version}-{identity[:6]}")
    reused = (locate(folder) / "evaluation.json").exists()
    if reused:
        evaluation = load_evaluation(folder)
    else:
        evaluation = evaluate(
            pin.uri,
            store,
            version=dataset.version,
            split=split,
            collections=collections,
            samples=samples,
            seed=seed,
            steps=steps,
            device=device,
            out=folder,
            progress=progress,
        )
    root = checkpoint_root(pin)
    record = record_evaluation(
        root,
        checkpoint=pin,
        dataset=dataset,
        identity=identity,
        uri=folder,
        facts={"split": split, "collections": chosen} | headlines(evaluation),
        run_url=run_url,
    )
    return Evaluated(evaluation=evaluation, folder=folder, reused=reused, root=root, record=record)


def results_of(pin: CheckpointPin) -> Path:
    """Where the results of a run lie: beside its checkpoints."""
    parent = Path(pin.uri).parent
    return (parent.parent if parent.name == "checkpoints" else parent) / "evaluations"


def headlines(evaluation: "Evaluation") -> dict[str, Fact]:
    """A result's first numbers, as a lineage page shows them."""
    from uwm.report.tables import headline_rows

    cells = ((row.label, cell) for row in headline_rows([evaluation]) for cell in row.cells if cell)
    return {label: f"{cell.change} {cell.mark} over {cell.baseline}" for label, cell in cells}


def run_sample(
    checkpoint: str,
    store: str,
    mode: str,
    out: str,
    *,
    version: int | None = None,
    split: str = "val",
    collections: Sequence[str] = (),
    samples: int = 4,
    seed: int = 0,
    steps: int | None = None,
    precision: Literal["fp32", "bf16"] = "fp32",
    device: str = "auto",
) -> "SampleFiles":
    """Predict in one mode on held-out segments and write images and actions to the folder `out`.

    Raises:
        UserError: when the mode is unknown, or the checkpoint or the dataset are missing or unfit.
    """
    from uwm.eval.sample import sample

    return sample(
        checkpoint,
        store,
        mode,
        out=out,
        count=samples,
        seed=seed,
        version=version,
        split=split,
        collections=collections,
        steps=steps,
        precision=precision,
        device=device,
    )
