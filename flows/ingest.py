"""The flow `ingest`: a source becomes a dataset version."""

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run

from flows.announce import announce
from flows.jobs import Ingested, run_ingest
from flows.publish import publish_lineage
from flows.refusal import refusing, settled
from pipelines.ingest import IngestProgress


@task(name="ingest source", cache_policy=NO_CACHE)
@refusing
def ingest_source(source: str, store: str, **options: object) -> Ingested:
    """Convert and commit what is new in the source."""
    logger = get_run_logger()

    def log(progress: IngestProgress) -> None:
        logger.info("%s of %s references", progress.done, progress.total)

    result = run_ingest(source, store, **options, progress=log)  # type: ignore[arg-type]
    for rejection in result.report.quarantined:
        logger.warning("quarantined %s: %s: %s", rejection.source_uri, rejection.reason, rejection.detail)
    return result


@flow(name="ingest", flow_run_name="ingest {source} into {store}")
@refusing
def ingest(
    source: str,
    store: str,
    format: str | None = None,  # noqa: A002 - the option's name
    collection: str | None = None,
    camera: str | None = None,
    fps: float | None = None,
    clip_steps: int | None = None,
    backend: str | None = None,
    val_percent: int | None = None,
    reject: list[str] | None = None,
) -> Ingested:
    """Bring robot episodes or videos into a store as a new version; only what is new is read.

    Args:
        source: folder, file or glob of raw data.
        store: dataset, a folder or URI.
        format: droid-rlds, video, ...; found out from the source by default.
        collection: name of the collection; by default the lab or folder.
        camera: camera that video frames count as.
        fps: most steps per second of video.
        clip_steps: most steps of an episode cut from a video.
        backend: decoder of videos, pyav or decord.
        val_percent: share of episodes held out, fixed when the store is created.
        reject: findings of the doctor that keep an episode out, such as black, static and duplicate.
    """
    result = settled(ingest_source)(
        source,
        store,
        format=format,
        collection=collection,
        camera=camera,
        fps=fps,
        clip_steps=clip_steps,
        backend=backend,
        val_percent=val_percent,
        reject=reject,
        run_id=str(flow_run.id or ""),
        run_url=flow_run.ui_url or "",
    )
    publish_lineage(result.root, [record.node for record in (result.source, result.dataset) if record])
    if result.dataset and announce(result.root, result.dataset):
        get_run_logger().info("announced %s", result.dataset.node)
    return result
