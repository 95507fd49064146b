"""A source becomes a dataset version, and the lineage knows it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flows.lineage.openlineage import Start, emitting
from flows.lineage.records import DatasetPin, record_dataset, record_source
from storage_schemas.errors import UserError
from storage_schemas.lineage.records import Fact, LineageRecord, lineage_root
from storage_schemas.location import locate

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from pipelines.ingest import IngestProgress, IngestReport
    from pipelines.options import VideoOptions
    from storage_schemas.store.dataset import DatasetSummary


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
    executor: "Executor | None" = None,
    in_flight: int = 16,
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
        executor: who converts the batches; this process when None.
        in_flight: batches that the executor is given before the first of them is committed.
        progress: called after every reference, or every batch.

    Raises:
        UserError: when the source can't be read at all or the store can't take it.
    """
    from pipelines.ingest import ingest
    from pipelines.options import SourceOptions

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
        executor=executor,
        in_flight=in_flight,
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

    from pipelines.options import VideoOptions

    options: TypeAdapter[VideoOptions] = TypeAdapter(VideoOptions)
    try:
        return options.validate_python(chosen)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        raise UserError(f"video options: {name + ': ' if name else ''}{first['msg']}") from error


def _record_ingested(root: str, report: "IngestReport", source: LineageRecord, run_url: str) -> LineageRecord:
    from storage_schemas.store.dataset import open_dataset, summary

    dataset = open_dataset(report.store_uri, report.version)
    pin = DatasetPin(uri=dataset.uri, version=dataset.version, table_id=dataset.table_id)
    found = summary(dataset)
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
    return record_dataset(root, pin, sources=(source.node,) if used else (), facts=facts, run_url=run_url)


def summary_of(store: str, version: int | None = None) -> "DatasetSummary":
    """What a dataset version holds, in numbers."""
    from storage_schemas.store.dataset import open_dataset, summary

    return summary(open_dataset(store, version))


def pin_dataset(store: str, version: int | None = None) -> DatasetPin:
    """The newest or a given version of a dataset, pinned."""
    from storage_schemas.store.dataset import open_dataset

    dataset = open_dataset(store, version)
    return DatasetPin(uri=store, version=dataset.version, table_id=dataset.table_id)
