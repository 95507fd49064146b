"""The flows `ingest`, a source becomes a dataset version, and `watch`, which does it with a folder that others fill."""

from typing import Annotated

from prefect import flow, get_run_logger
from prefect.runtime import flow_run
from pydantic import Field

from flows.jobs.ingest import Ingested, pin_dataset, run_ingest
from flows.jobs.options import RUNNER_DEFAULTS, RunnerOptions
from flows.publish import publish_lineage
from flows.runtime.dataset_events import emit_dataset_event
from flows.runtime.task_runners import TaskExecutor
from flows.runtime.user_errors import as_function, failing_on_user_error
from pipelines.folder_snapshot import FolderSnapshot, take_snapshot, wait_until_quiet
from pipelines.ingest import IngestProgress
from pipelines.options import INGEST_DEFAULTS, IngestOptions
from storage_schemas.catalog.table import dataset_exists, dataset_id
from storage_schemas.lineage.records import digest, lineage_root
from storage_schemas.location import Location, locate

FOLDER = "watched"
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@flow(name="ingest", flow_run_name="ingest {source} into {store}")
@failing_on_user_error
def ingest(
    source: str,
    store: str,
    options: IngestOptions = INGEST_DEFAULTS,
    runner: RunnerOptions = RUNNER_DEFAULTS,
) -> Ingested:
    """Bring robot episodes or videos into a store as a new version; only what is new is read.

    Args:
        source: folder, file or glob of raw data.
        store: dataset, a folder or URI.
        options: how the source becomes episodes.
        runner: what carries out the task runs.
    """
    logger = get_run_logger()

    def log(progress: IngestProgress) -> None:
        logger.info("%s of %s references", progress.done, progress.total)

    chosen = runner.choose()
    with TaskExecutor(chosen, "convert") as executor:
        result = run_ingest(
            source,
            store,
            options,
            run_id=str(flow_run.id or ""),
            run_url=flow_run.ui_url or "",
            executor=executor,
            in_flight=chosen.in_flight,
            progress=log,
        )
    for rejection in result.report.quarantined:
        logger.warning("quarantined %s: %s: %s", rejection.source_uri, rejection.reason, rejection.detail)
    for item in result.report.left_out:
        logger.warning("%s: %s: %s", item.label, item.source_uri, item.what)
    publish_lineage(result.root, [record.node for record in (result.source, result.dataset) if record], result.opened)
    if result.dataset and emit_dataset_event(result.root, result.dataset):
        get_run_logger().info("told the server of %s", result.dataset.node)
    return result


@flow(name="watch", flow_run_name="watch {source} for {store}")
@failing_on_user_error
def watch(
    source: str,
    store: str,
    options: IngestOptions = INGEST_DEFAULTS,
    runner: RunnerOptions = RUNNER_DEFAULTS,
    quiet: Seconds = 30.0,
    patience: Seconds = 600.0,
) -> Ingested | None:
    """Ingest a folder when something in it has changed and the writing has ended; else do nothing.

    Files that come together become one version: the flow waits until the folder has been left alone for a while. One
    that never is comes back with the next run.

    Args:
        source: folder, glob or URI prefix that others write to.
        store: dataset, a folder or URI.
        options: how the source becomes episodes.
        runner: what carries out the task runs.
        quiet: seconds without a change after which the writing counts as ended.
        patience: most seconds to wait for that.
    """
    logger = get_run_logger()
    if _remembered(_memory(source, store, options)) == _state(take_snapshot(source), store):
        logger.info("%s is as it was when it was ingested", source)
        return None
    seen = wait_until_quiet(source, quiet=quiet, patience=patience)
    if seen is None:
        logger.warning("%s was still being written to after %g s: the next run takes it", source, patience)
        return None
    if not seen.holds(options.format):
        logger.info("%s holds nothing to ingest yet", source)
        return None
    result = as_function(ingest)(source, store, options, runner)
    _memory(source, store, options).write_bytes(_state(seen, store).encode())
    return result


def _memory(source: str, store: str, options: IngestOptions) -> Location:
    """Where it is kept how a source was left when it was in a dataset, wherever that lies now.

    It only saves work: without it everything is compared anew.
    """
    into = dataset_id(store) if dataset_exists(store) else locate(store).uri
    name = digest(locate(source).uri, into, options.model_dump_json(exclude={"batch_episodes"}))
    return locate(lineage_root(store)) / FOLDER / f"{name}.txt"


def _remembered(file: Location) -> str:
    return file.read_bytes(0, 1000).decode("utf-8", "replace") if file.exists() else ""


def _state(seen: FolderSnapshot, store: str) -> str:
    """What a source and its dataset are now: also when somebody took episodes out of the dataset, all is compared."""
    return f"{seen.digest} {pin_dataset(store).identity if dataset_exists(store) else 'none'}"
