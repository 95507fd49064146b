"""Any source into a dataset: plan, convert batch by batch, commit each batch.

A reference is stored as a whole or not at all, and a commit holds whole references only. So a run that is killed leaves
the last commit readable, and the next run, which skips what is there by its fingerprint, completes it.

Who converts the batches does not matter: this process one after another, or workers on many machines in any order.
What they converted comes together here in the order of the plan, is judged against all that came before, and is
committed by this process alone. So every way gives the same versions.
"""

import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import InitVar, asdict, dataclass, field, replace
from datetime import UTC, datetime

from pipelines.checks.filters import Filter
from pipelines.checks.quality import LeftOut, Rejection
from pipelines.convert import Batch, Candidate, Converted, ConvertedRef, Counts, convert
from pipelines.files import printable
from pipelines.options import INGEST_DEFAULTS, IngestOptions
from pipelines.plan import Plan, opened_dataset, plan_ingestion, spec_for
from pipelines.source import SourceReader, SourceRef
from pipelines.sources.registry import open_source
from storage_schemas.catalog.commits import Committer, start_dataset
from storage_schemas.catalog.quarantine import QuarantineRow, add_quarantine, release
from storage_schemas.catalog.rows import EpisodeRow
from storage_schemas.catalog.table import create_dataset, dataset_exists
from storage_schemas.executors import in_order
from storage_schemas.location import locate
from storage_schemas.schema import DatasetSpec
from storage_schemas.store.dataset import Dataset

_BATCH_BYTES = 4 << 30
"""Raw bytes at which a batch ends too. The two bound what a killed worker, or a killed run, has to do again: a batch is
one commit."""


@dataclass(frozen=True, kw_only=True)
class IngestProgress:
    """How far an ingestion has come."""

    done: int
    """References that are stored, skipped or turned away."""
    total: int
    episodes: int
    """Episodes converted in this run."""
    steps: int
    quarantined: int
    current: str
    """The reference just finished."""


@dataclass(frozen=True, kw_only=True)
class IngestReport:
    """What an ingestion did."""

    store_uri: str
    version: int
    """The dataset's, after the run."""
    added: int
    replaced: int
    """Episodes that took the place of others, because their source had changed."""
    present: int
    """Episodes of the source that were there already."""
    steps: int
    """Steps of the episodes added or replaced."""
    quarantined: tuple[Rejection, ...]
    left_out: tuple[LeftOut, ...]
    """What the source holds beside the format's data; of a file that is there already it is not said again."""
    seconds: float
    source_uri: str
    source_format: str
    source_fingerprint: str
    """Hash over the fingerprints of all references."""
    run_id: str

    @property
    def nothing_good(self) -> bool:
        """Whether all that the source has was turned away."""
        return bool(self.quarantined) and not self.added + self.replaced + self.present


def ingest(
    source: str,
    store_uri: str,
    options: IngestOptions = INGEST_DEFAULTS,
    *,
    committer: Committer | None = None,
    run_id: str | None = None,
    executor: Executor | None = None,
    in_flight: int = 16,
    progress: Callable[[IngestProgress], None] | None = None,
) -> IngestReport:
    """Bring a source into a dataset, which is created when there is none.

    Args:
        source: path or fsspec URI of a file, a folder or a glob.
        store_uri: the dataset.
        options: how the source becomes episodes; a batch of them also ends at 4 GB of raw data.
        committer: of the dataset, for a caller who goes on with the version that it made; a new one when None.
        run_id: for lineage; a new one when None.
        executor: who converts the batches, anywhere and in any order; this process, one after another, when None.
        in_flight: batches that the executor is given before the first of them is committed.
        progress: called after every reference; after every batch when there is an executor.

    Raises:
        UserError: when there is nothing to read or the dataset does not fit the source.
    """
    started = time.monotonic()
    dataset = opened_dataset(store_uri)
    reader = open_source(source, options, None if dataset is None else dataset.spec)
    filters = Filter(reader, reader.unwanted if options.reject is None else frozenset(options.reject))
    spec = spec_for(dataset, reader, options.val_percent)
    plan = plan_ingestion(reader, dataset, filters)
    if plan.todo and dataset is not None:
        filters.remember(dataset)
    found_format = options.model_copy(update={"format": reader.format})
    blank = _blank_batch(source, store_uri, found_format, filters.names, spec, run_id or uuid.uuid4().hex)
    source_uri = printable(locate(source).uri)
    quarantine = _Quarantine(store_uri=store_uri, run_id=blank.run_id, source=f"{reader.format} {source_uri}")
    ledger = _Ledger(committer or Committer(store_uri), dataset, spec, plan, filters, quarantine)
    quarantine.add(plan.rejected)
    batches = [replace(blank, refs=refs) for refs in _cut(plan.todo, options.batch_episodes)]
    for converted in _converted(batches, reader, executor, in_flight, ledger, progress):
        ledger.take(converted)
    ledger.close()
    if not ledger.version and not dataset_exists(store_uri):
        create_dataset(store_uri, spec)
    quarantine.release(plan, (*plan.rejected, *ledger.rejected))
    return _report(blank, source_uri, ledger, time.monotonic() - started)


def _report(batch: Batch, source_uri: str, ledger: "_Ledger", seconds: float) -> IngestReport:
    """What was done, of which `batch` tells what all batches had in common."""
    plan = ledger.plan
    return IngestReport(
        store_uri=batch.store_uri,
        version=ledger.version,
        added=ledger.total["added"],
        replaced=ledger.total["replaced"],
        present=ledger.total["present"] + plan.present,
        steps=ledger.total["steps"],
        quarantined=(*plan.rejected, *ledger.rejected),
        left_out=(*plan.left_out, *ledger.left_out),
        seconds=seconds,
        source_uri=source_uri,
        source_format=batch.options.format or "",
        source_fingerprint=plan.fingerprint,
        run_id=batch.run_id,
    )


def _blank_batch(
    source: str, store_uri: str, options: IngestOptions, reject: frozenset[str], spec: DatasetSpec, run_id: str
) -> Batch:
    """What all batches of an ingestion have in common."""
    location = locate(source)
    where, store = location.path if location.is_local else source, locate(store_uri).uri
    return Batch(source=where, options=options, reject=reject, store_uri=store, spec=spec, run_id=run_id, refs=())


def _cut(refs: Sequence[SourceRef], count: int) -> Iterator[tuple[SourceRef, ...]]:
    """References in batches, in order."""
    batch: list[SourceRef] = []
    size = 0
    for ref in refs:
        if batch and (len(batch) == count or size + ref.length > _BATCH_BYTES):
            yield tuple(batch)
            batch, size = [], 0
        batch.append(ref)
        size += ref.length
    if batch:
        yield tuple(batch)


def _converted(
    batches: Sequence[Batch],
    reader: SourceReader,
    executor: Executor | None,
    in_flight: int,
    ledger: "_Ledger",
    progress: Callable[[IngestProgress], None] | None,
) -> Iterator[Converted]:
    """The batches as they are converted, with progress."""

    def tell(ref: SourceRef, counts: Counts) -> None:
        if progress:
            progress(ledger.progress(ref, counts))

    if executor is None:
        yield from (convert(batch, reader, tell) for batch in batches)
        return
    for batch, converted in zip(batches, in_order(executor, convert, batches, in_flight), strict=True):
        tell(batch.refs[-1], converted.counts)
        yield converted


@dataclass(frozen=True, kw_only=True)
class _Quarantine:
    """What this run turns away, beside the dataset."""

    store_uri: str
    run_id: str
    source: str

    def add(self, rejections: Sequence[Rejection]) -> None:
        """Write down what was turned away, as far as it is new."""
        now = datetime.now(UTC)
        rows = [QuarantineRow(**asdict(r), run_id=self.run_id, time=now, source=self.source) for r in rejections]
        if rows:
            add_quarantine(self.store_uri, rows)

    def release(self, plan: "Plan", rejections: Sequence[Rejection]) -> None:
        """Let go what this source was turned away for before and is not any more."""
        turned_away = {(r.source_uri, r.fingerprint, r.reason) for r in rejections}
        files = {ref.file.uri for ref in plan.refs}

        def is_over(entry: QuarantineRow) -> bool:
            looked_at = entry.source == self.source or entry.source_uri.partition("#")[0] in files
            return looked_at and entry.fingerprint not in plan.known and entry.key not in turned_away

        release(self.store_uri, is_over)


@dataclass
class _Ledger:
    """Takes converted batches in the order of the plan and commits what is good of them."""

    committer: Committer
    dataset: InitVar[Dataset | None]
    """As it was before the run; None when the first commit is to start it."""
    spec: DatasetSpec
    plan: Plan
    filters: Filter
    quarantine: _Quarantine
    version: int = field(init=False)
    """The dataset's, after the last commit."""
    starts: bool = field(init=False)
    """Whether the first commit gives the dataset its spec."""
    rejected: list[Rejection] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    total: Counter[str] = field(default_factory=Counter)
    _done: Counts = field(default_factory=Counts)
    _retired: list[str] = field(init=False)
    _rows: list[EpisodeRow] = field(default_factory=list)
    _unrecorded: list[Rejection] = field(default_factory=list)

    def __post_init__(self, dataset: Dataset | None) -> None:
        self.version = 0 if dataset is None else dataset.version
        self.starts = dataset is None or dataset.spec != self.spec
        # a file may have become a copy of another, with nothing to read; of a record that means nothing, for a set that
        # is built again shuffles them
        unread = self.plan.stale.keys() - {ref.uri for ref in self.plan.todo}
        self._retired = [key for uri in sorted(unread) if "#" not in uri for key in self.plan.stale[uri]]

    def take(self, converted: Converted) -> None:
        """Judge a batch and make what is good of it visible, whole references at once."""
        for item in converted.refs:
            self.left_out += item.left_out
            if rejection := item.rejection or self._conflict(item):
                self._unrecorded.append(rejection)
            else:
                stale = self.plan.stale.get(item.ref.uri, ())
                self._retired += [key for key in stale if key not in self.plan.taken]
                for candidate in item.candidates:
                    self._take(item.ref, candidate)
        self._done += converted.counts
        self.close()

    def close(self) -> None:
        """Commit what is left, and write down what was turned away."""
        if self._rows or self._retired:
            if self.starts:  # with its first commit, so that a source of which nothing is good decides nothing
                start_dataset(self.quarantine.store_uri, self.spec)
                self.starts = False
            result = self.committer.commit(self._rows, retire=self._retired)
            self.version = result.version
            self.total.update(added=result.added, replaced=result.replaced, present=result.present)
            self.total["steps"] += sum(row.length for row in self._rows)
        self.quarantine.add(self._unrecorded)
        self.rejected += self._unrecorded
        self._rows, self._retired, self._unrecorded = [], [], []

    def progress(self, ref: SourceRef, counts: Counts) -> IngestProgress:
        """What to tell the caller while a batch is under way of which `counts` is done."""
        total, done = len(self.plan.refs) + len(self.plan.rejected), self._done + counts
        return IngestProgress(
            done=total - len(self.plan.todo) + done.refs,
            total=total,
            episodes=done.episodes,
            steps=done.steps,
            quarantined=len(self.plan.rejected) + len(self.rejected) + counts.rejected,
            current=ref.uri,
        )

    def _conflict(self, item: ConvertedRef) -> Rejection | None:
        """Whether the source has brought one of the episodes already, with other content."""
        ref = item.ref
        for candidate in item.candidates:
            fingerprint, uri = self.plan.taken.get(candidate.episode_id, (ref.fingerprint, ref.uri))
            if fingerprint != ref.fingerprint:
                return ref.rejection("duplicate_episode", f"the same episode as {uri}, with other content")
        return None

    def _take(self, ref: SourceRef, candidate: Candidate) -> None:
        _, uri = self.plan.taken.setdefault(candidate.episode_id, (ref.fingerprint, ref.uri))
        if uri != ref.uri:
            self.total["present"] += 1
            return
        duplicate = self.filters.duplicate(candidate.source_uri, ref.fingerprint, candidate.sketches)
        if unwanted := duplicate or candidate.rejection:
            del self.plan.taken[candidate.episode_id]
            self._unrecorded.append(unwanted)
        elif candidate.row is None:  # a double of one in its batch
            self.total["present"] += 1
        else:
            self._rows.append(candidate.row)
