"""A source becomes a dataset version, and the lineage knows it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flows.lineage.openlineage import Start, emitting
from flows.lineage.records import DatasetPin, record_dataset, record_source
from pipelines.options import INGEST_DEFAULTS, IngestOptions
from storage_schemas.lineage.records import Fact, LineageRecord, lineage_root
from storage_schemas.location import locate
from uwm.settings import DatasetVersion

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from pipelines.ingest import IngestProgress, IngestReport
    from storage_schemas.store.dataset import Dataset, DatasetSummary


@dataclass(frozen=True, kw_only=True)
class Ingested:
    """What an ingestion did and how the lineage knows it."""

    report: "IngestReport"
    root: str
    """Lineage root that holds the records."""
    source: LineageRecord
    dataset: LineageRecord | None
    """None when nothing of the source was good enough to make a version."""
    opened: "Mapping[str, Dataset]"
    """That version, opened, by its node: for who has more to say of it."""

    @property
    def record(self) -> LineageRecord | None:
        """What was made."""
        return self.dataset


def run_ingest(
    source: str,
    store: str,
    options: IngestOptions = INGEST_DEFAULTS,
    *,
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
        options: how the source becomes episodes.
        run_id: written into every row; a new one when empty.
        run_url: the flow run, for the lineage.
        executor: who converts the batches; this process when None.
        in_flight: batches that the executor is given before the first of them is committed.
        progress: called after every reference, or every batch.

    Raises:
        UserError: when the source can't be read at all or the store can't take it.
    """
    from pipelines.ingest import ingest
    from storage_schemas.catalog.commits import Committer
    from storage_schemas.store.dataset import Dataset

    committer = Committer(store)
    start = Start(job="ingest", about=locate(store).name, inputs=(source,), outputs=(store,))
    with emitting(start, run_url) as completed:
        report = ingest(
            source,
            store,
            options,
            committer=committer,
            run_id=run_id or None,
            executor=executor,
            in_flight=in_flight,
            progress=progress,
        )
        root = lineage_root(store)
        facts: dict[str, Fact] = {"format": report.source_format, "collection": options.collection}
        uri, fingerprint = report.source_uri, report.source_fingerprint
        record = record_source(root, uri=uri, fingerprint=fingerprint, facts=facts, run_url=run_url)
        dataset, opened = None, {}
        if report.version:
            contents = Dataset(locate(store), committer.snapshot(report.version))
            dataset = _record_ingested(root, report, contents, record, run_url)
            opened = {dataset.node: contents}
        result = Ingested(report=report, root=root, source=record, dataset=dataset, opened=opened)
        completed(result)
    return result


def _record_ingested(
    root: str, report: "IngestReport", dataset: "Dataset", source: LineageRecord, run_url: str
) -> LineageRecord:
    from storage_schemas.store.dataset import summary

    pin = DatasetPin(uri=dataset.uri, version=dataset.version, table_id=dataset.table_id)
    contents = summary(dataset)
    facts: dict[str, Fact] = {
        "episodes": contents.episodes,
        "steps": contents.steps,
        "actions": contents.actions_available,
        "bytes": contents.bytes,
        "added": report.added,
        "replaced": report.replaced,
        "quarantined": len(report.quarantined),
    }
    used = report.added + report.replaced + report.present > 0
    return record_dataset(root, pin, sources=(source.node,) if used else (), facts=facts, run_url=run_url)


def summary_of(store: str, version: DatasetVersion = None) -> "DatasetSummary":
    """What a dataset version holds, in numbers."""
    from storage_schemas.store.dataset import open_dataset, summary

    return summary(open_dataset(store, version))


def pin_dataset(store: str, version: DatasetVersion = None) -> DatasetPin:
    """A version of a dataset, pinned to its number. Raises UserError when there is none."""
    from storage_schemas.store.dataset import open_dataset

    dataset = open_dataset(store, version)
    return DatasetPin(uri=store, version=dataset.version, table_id=dataset.table_id)
