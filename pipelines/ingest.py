"""Any source into a dataset: plan, convert batch by batch, commit each batch.

A reference is stored as a whole or not at all, and a commit holds whole references only. So a run that is killed leaves
the last commit readable, and the next run, which skips what is there by its fingerprint, completes it.

Who converts the batches does not matter: this process one after another, or workers on many machines in any order.
What they converted comes together here in the order of the plan, is judged against all that came before, and is
committed by this process alone. So every way gives the same versions.
"""

import hashlib
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import InitVar, dataclass, field, replace
from datetime import UTC, datetime

from pipelines.checks.filters import Filter
from pipelines.checks.quality import Rejection
from pipelines.convert import Batch, Candidate, Converted, ConvertedRef, Counts, convert
from pipelines.files import printable
from pipelines.options import INGEST_DEFAULTS, IngestOptions
from pipelines.source import SourceReader, SourceRef
from pipelines.sources.registry import open_source
from storage_schemas.catalog.commits import Committer, commit
from storage_schemas.catalog.quarantine import QuarantineRow, add_quarantine, withdrawn_fingerprints
from storage_schemas.catalog.rows import EpisodeRow
from storage_schemas.catalog.table import create_dataset, dataset_exists
from storage_schemas.errors import UserError
from storage_schemas.executors import in_order
from storage_schemas.location import locate
from storage_schemas.store.dataset import Dataset, open_dataset

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
    seconds: float
    source_uri: str
    source_format: str
    source_fingerprint: str
    """Hash over the fingerprints of all references."""
    run_id: str


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """What a source holds, and what of it is new."""

    refs: tuple[SourceRef, ...]
    rejected: tuple[Rejection, ...]
    todo: tuple[SourceRef, ...]
    present: int
    """Episodes of references that need not be read."""
    taken: dict[str, tuple[str, str]]
    """Fingerprint and reference URI by id of the episodes that this source has given the dataset."""
    stale: dict[str, tuple[str, ...]]
    """Episodes by reference URI that came from an earlier content of the file, which the source has no more."""


def ingest(
    source: str,
    store_uri: str,
    options: IngestOptions = INGEST_DEFAULTS,
    *,
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
        run_id: for lineage; a new one when None.
        executor: who converts the batches, anywhere and in any order; this process, one after another, when None.
        in_flight: batches that the executor is given before the first of them is committed.
        progress: called after every reference; after every batch when there is an executor.

    Raises:
        UserError: when there is nothing to read or the dataset does not fit the source.
    """
    started = time.monotonic()
    dataset = open_dataset(store_uri) if dataset_exists(store_uri) else None
    reader = open_source(source, options, dataset.spec if dataset else None)
    filters = Filter(reader, reader.unwanted if options.reject is None else frozenset(options.reject))
    dataset = dataset or _create(store_uri, reader, options.val_percent)
    _check_fits(dataset, reader, options.val_percent)
    plan = _plan(reader, dataset, filters)
    if plan.todo:
        filters.remember(dataset)
    location = locate(source)
    blank = Batch(
        source=location.path if location.is_local else source,
        options=options.model_copy(update={"format": reader.format}),
        reject=filters.names,
        store_uri=locate(store_uri).uri,
        spec=dataset.spec,
        run_id=run_id or uuid.uuid4().hex,
        refs=(),
    )
    ledger = _Ledger(dataset, blank.run_id, plan, filters)
    _record(store_uri, plan.rejected, blank.run_id)
    batches = [replace(blank, refs=refs) for refs in _cut(plan.todo, options.batch_episodes)]
    for converted in _converted(batches, reader, executor, in_flight, ledger, progress):
        ledger.take(converted)
    ledger.close()
    return IngestReport(
        store_uri=blank.store_uri,
        version=ledger.version,
        added=ledger.total["added"],
        replaced=ledger.total["replaced"],
        present=ledger.total["present"] + plan.present,
        steps=ledger.total["steps"],
        quarantined=(*plan.rejected, *ledger.rejected),
        seconds=time.monotonic() - started,
        source_uri=printable(location.uri),
        source_format=reader.format,
        source_fingerprint=_fingerprint(plan),
        run_id=blank.run_id,
    )


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


def _create(store_uri: str, reader: SourceReader, val_percent: int | None) -> Dataset:
    spec = reader.spec()
    spec = spec if val_percent is None else replace(spec, val_percent=val_percent)
    return Dataset(locate(store_uri), create_dataset(store_uri, spec))


def _check_fits(dataset: Dataset, reader: SourceReader, val_percent: int | None) -> None:
    spec, stored = reader.spec(), dataset.spec
    if spec.action_dim != stored.action_dim:
        raise UserError(f"{dataset.uri} has {stored.action_dim}-dim actions, the source {spec.action_dim}: use another")
    if strange := set(spec.cameras) - set(stored.cameras):
        raise UserError(f"{dataset.uri} has no camera {', '.join(sorted(strange))}: use another dataset")
    if val_percent is not None and val_percent != stored.val_percent:
        raise UserError(f"{dataset.uri} holds out {stored.val_percent}%, which can't be changed to {val_percent}%")


def _plan(reader: SourceReader, dataset: Dataset, filters: Filter) -> _Plan:
    """List the source and compare it with the dataset, without reading a payload."""
    listed = list(reader.refs())
    refs = tuple(filters.identified(item) for item in listed if isinstance(item, SourceRef))
    current = {ref.uri: ref.fingerprint for ref in refs}
    fingerprints = set(current.values())
    withdrawn = withdrawn_fingerprints(dataset.uri, dataset.episodes)
    stored = zip(*(dataset.episodes.column(n) for n in ("source_uri", "source_fingerprint", "episode_id")), strict=True)
    known: Counter[str] = Counter()
    taken: dict[str, tuple[str, str]] = {}
    stale: dict[str, list[str]] = {}
    for uri, fingerprint, episode_id in stored:
        if fingerprint in fingerprints:
            known[fingerprint] += 1
            taken[episode_id] = fingerprint, uri
        elif uri not in current and (file := uri.rpartition("#")[0]) in current:
            stale.setdefault(file, []).append(episode_id)
    copies = filters.copies(refs, dict(taken.values()))
    done = known.keys() | withdrawn
    return _Plan(
        refs=tuple(ref for ref in refs if ref.uri not in copies),
        rejected=(*(item for item in listed if isinstance(item, Rejection)), *copies.values()),
        todo=tuple(ref for ref in refs if ref.fingerprint not in done and ref.uri not in copies),
        present=known.total(),
        taken=taken,
        stale={uri: tuple(ids) for uri, ids in stale.items()},
    )


def _fingerprint(plan: _Plan) -> str:
    """Of the whole source: it changes when anything is added, removed or changed, not when it is copied."""
    parts = sorted([*(ref.fingerprint for ref in plan.refs), *(f"{r.reason} {r.fingerprint}" for r in plan.rejected)])
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def _record(store_uri: str, rejections: tuple[Rejection, ...] | list[Rejection], run_id: str) -> None:
    now = datetime.now(UTC)
    rows = [
        QuarantineRow(
            source_uri=r.source_uri,
            fingerprint=r.fingerprint,
            reason=r.reason,
            detail=r.detail,
            run_id=run_id,
            time=now,
        )
        for r in rejections
    ]
    if rows:
        add_quarantine(store_uri, rows)


@dataclass
class _Ledger:
    """Takes converted batches in the order of the plan and commits what is good of them."""

    dataset: InitVar[Dataset]
    """The dataset as it was before the run."""
    run_id: str
    plan: _Plan
    filters: Filter
    version: int = field(init=False)
    """The dataset's, after the last commit."""
    rejected: list[Rejection] = field(default_factory=list)
    total: Counter[str] = field(default_factory=Counter)
    _done: Counts = field(default_factory=Counts)
    _uri: str = field(init=False)
    _committer: Committer = field(init=False)
    _retired: list[str] = field(init=False)
    _rows: list[EpisodeRow] = field(default_factory=list)
    _unrecorded: list[Rejection] = field(default_factory=list)

    def __post_init__(self, dataset: Dataset) -> None:
        self._uri, self.version = dataset.uri, dataset.version
        self._committer = Committer(dataset.uri)
        todo = {ref.uri for ref in self.plan.todo}  # a file may have become a copy of another, with nothing to read
        self._retired = [key for uri, ids in self.plan.stale.items() if uri not in todo for key in ids]

    def take(self, converted: Converted) -> None:
        """Judge a batch and make what is good of it visible, whole references at once."""
        for item in converted.refs:
            if rejection := item.rejection or self._conflict(item):
                self._unrecorded.append(rejection)
            else:
                self._retired += self.plan.stale.get(item.ref.uri, ())
                for candidate in item.candidates:
                    self._take(item.ref, candidate)
        self._done += converted.counts
        self.close()

    def close(self) -> None:
        """Commit what is left, and write down what was turned away."""
        if self._rows or self._retired:
            result = commit(self._committer, self._rows, retire=self._retired)
            self.version = result.version
            self.total.update(added=result.added, replaced=result.replaced, present=result.present)
            self.total["steps"] += sum(row.length for row in self._rows)
        _record(self._uri, self._unrecorded, self.run_id)
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
