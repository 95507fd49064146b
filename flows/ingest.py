"""The flow `ingest`: a source becomes a dataset version."""

from typing import Literal

from prefect import flow, get_run_logger
from prefect.runtime import flow_run

from flows.announce import announce
from flows.jobs import Ingested, run_ingest
from flows.publish import publish_lineage
from flows.refusal import refusing
from flows.runners import Sealed, batch_task, carried_by, choose
from pipelines.convert import Batch, Converted, convert
from pipelines.ingest import BATCH_EPISODES, IngestProgress


@batch_task("convert")
def convert_batch(sealed: Sealed[Batch]) -> Converted:
    """Read, check and write one batch; nothing of it is visible before the flow commits it."""
    return convert(sealed.item)


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
    batch_episodes: int = BATCH_EPISODES,
    runner: Literal["threads", "processes", "dask", "ray"] | None = None,
    workers: int | None = None,
    cluster: str | None = None,
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
        batch_episodes: episodes or video files per task run, which is one commit; 64 to 256 for large sources.
        runner: what carries out the task runs; threads by default.
        workers: batches at once: one thread by default, or as many processes as there are cores.
        cluster: address of a Dask or Ray cluster that runs already.
    """
    logger = get_run_logger()

    def log(progress: IngestProgress) -> None:
        logger.info("%s of %s references", progress.done, progress.total)

    result = run_ingest(
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
        batch_episodes=batch_episodes,
        run_id=str(flow_run.id or ""),
        run_url=flow_run.ui_url or "",
        carry=carried_by(choose(runner, workers, cluster), convert_batch),
        progress=log,
    )
    for rejection in result.report.quarantined:
        logger.warning("quarantined %s: %s: %s", rejection.source_uri, rejection.reason, rejection.detail)
    publish_lineage(result.root, [record.node for record in (result.source, result.dataset) if record])
    if result.dataset and announce(result.root, result.dataset):
        get_run_logger().info("announced %s", result.dataset.node)
    return result
