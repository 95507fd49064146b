"""The flow `watch`: what is new in a folder that others write to becomes a dataset version."""

from prefect import flow, get_run_logger

from flows.ingest import ingest
from flows.jobs import Ingested, pin_dataset
from flows.refusal import refusing, settled
from pipelines.watch import Look, look, settle
from storage_schemas.lineage import digest, lineage_root
from storage_schemas.location import Location, locate
from storage_schemas.store import dataset_exists

FOLDER = "watched"


@flow(name="watch", flow_run_name="watch {source} for {store}")
@refusing
def watch(
    source: str,
    store: str,
    format: str | None = None,  # noqa: A002 - the option's name
    collection: str | None = None,
    camera: str | None = None,
    fps: float | None = None,
    val_percent: int | None = None,
    reject: list[str] | None = None,
    quiet: float = 30.0,
    patience: float = 600.0,
) -> Ingested | None:
    """Ingest a folder when something in it has changed and the writing has ended; else do nothing.

    Files that come together become one version: the flow waits until the folder has been left alone for a while. One
    that never is comes back with the next run.

    Args:
        source: folder, glob or URI prefix that others write to.
        store: dataset, a folder or URI.
        format: droid-rlds, video, ...; found out from the source by default.
        collection: name of the collection; by default the lab or folder.
        camera: camera that video frames count as.
        fps: most steps per second of video.
        val_percent: share of episodes held out, fixed when the store is created.
        reject: findings of the doctor that keep an episode out.
        quiet: seconds without a change after which the writing counts as ended.
        patience: most seconds to wait for that.
    """
    logger = get_run_logger()
    options = {
        "format": format,
        "collection": collection,
        "camera": camera,
        "fps": fps,
        "val_percent": val_percent,
        "reject": reject,
    }
    memory = _memory(source, store, str(sorted(options.items())))
    if _remembered(memory) == _state(look(source), store):
        logger.info("%s is as it was when it was ingested", source)
        return None
    seen = settle(source, quiet=quiet, patience=patience)
    if seen is None:
        logger.warning("%s was still being written to after %g s: the next run takes it", source, patience)
        return None
    if not seen.holds(format):
        logger.info("%s holds nothing to ingest yet", source)
        return None
    result = settled(ingest)(source, store, **options)  # type: ignore[arg-type]
    memory.write_bytes(_state(seen, store).encode())
    return result


def _memory(source: str, store: str, options: str) -> Location:
    """Where it is kept how source and store were left. It only saves work: without it everything is compared anew."""
    name = digest(locate(source).uri, locate(store).uri, options)
    return locate(lineage_root(store)) / FOLDER / f"{name}.txt"


def _remembered(place: Location) -> str:
    return place.read_bytes(0, 1000).decode("utf-8", "replace") if place.exists() else ""


def _state(seen: Look, store: str) -> str:
    """What a source and its dataset are now: also when somebody took episodes out of the dataset, all is compared."""
    return f"{seen.digest} {pin_dataset(store).identity if dataset_exists(store) else 'none'}"
