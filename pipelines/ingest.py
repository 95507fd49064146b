"""Any source into a dataset: plan, convert batch by batch, commit each batch.

A reference is stored as a whole or not at all, and a commit holds whole references only. So a run that is killed leaves
the last commit readable, and the next run, which skips what is there by its fingerprint, completes it.
"""

import hashlib
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from pipelines.files import printable
from pipelines.filters import Filter, chosen
from pipelines.source import Rejected, Rejection, SourceReader, SourceRef
from pipelines.sources import SourceOptions, open_source
from storage_schemas.episode import EncodedFrames, Episode
from storage_schemas.errors import UserError
from storage_schemas.location import locate
from storage_schemas.store import (
    Committer,
    Dataset,
    EpisodeRow,
    QuarantineRow,
    add_quarantine,
    commit,
    create_dataset,
    dataset_exists,
    open_dataset,
    withdrawn_fingerprints,
    write_part,
)

_MAX_BYTES = 256 << 20
_MAX_STEPS = 20_000


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
    """Of the dataset after the run."""
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
    *,
    format: str | None = None,  # noqa: A002
    options: SourceOptions | None = None,
    batch_episodes: int = 64,
    run_id: str | None = None,
    val_percent: int | None = None,
    reject: Sequence[str] | None = None,
    progress: Callable[[IngestProgress], None] | None = None,
) -> IngestReport:
    """Bring a source into a dataset, which is created when there is none.

    Args:
        source: path or fsspec URI of a file, a folder or a glob.
        store_uri: the dataset.
        format: format of the source, found by its files' names when None.
        options: collection, camera and video settings; `dataset` is filled in here.
        batch_episodes: episodes per commit; a commit also ends at 256 MB or 20,000 steps.
        run_id: for lineage; a new one when None.
        val_percent: share of held-out episodes of a new dataset.
        reject: names of `pipelines.filters.FILTERS`; the format's own when None, no filter when empty.
        progress: called after every reference.

    Raises:
        UserError: when there is nothing to read or the dataset does not fit the source.
    """
    started = time.monotonic()
    run = run_id or uuid.uuid4().hex
    dataset = open_dataset(store_uri) if dataset_exists(store_uri) else None
    spec = dataset.spec if dataset else None
    reader = open_source(source, format, replace(options or SourceOptions(), dataset=spec))
    fit = Filter(reader, chosen(reject, reader.unwanted))
    dataset = dataset or _create(store_uri, reader, val_percent)
    _check_fits(dataset, reader, val_percent)
    plan = _plan(reader, dataset, fit)
    if plan.todo:
        fit.remember(dataset)
    writer = _Writer(store_uri, run, batch_episodes, plan, fit)
    _record(store_uri, plan.rejected, run)
    skipped = len(plan.refs) + len(plan.rejected) - len(plan.todo)
    for done, ref in enumerate(plan.todo, skipped + 1):
        writer.add(ref, reader)
        if progress:
            progress(writer.progress(done, len(plan.refs) + len(plan.rejected), ref))
    writer.commit()
    return IngestReport(
        store_uri=locate(store_uri).uri,
        version=open_dataset(store_uri).version,
        added=writer.total["added"],
        replaced=writer.total["replaced"],
        present=writer.total["present"] + plan.present,
        steps=writer.total["steps"],
        quarantined=(*plan.rejected, *writer.rejected),
        seconds=time.monotonic() - started,
        source_uri=printable(locate(source).uri),
        source_format=reader.format,
        source_fingerprint=_fingerprint(plan),
        run_id=run,
    )


def _create(store_uri: str, reader: SourceReader, val_percent: int | None) -> Dataset:
    spec = reader.spec()
    create_dataset(store_uri, spec if val_percent is None else replace(spec, val_percent=val_percent))
    return open_dataset(store_uri)


def _check_fits(dataset: Dataset, reader: SourceReader, val_percent: int | None) -> None:
    spec, held = reader.spec(), dataset.spec
    if spec.action_dim != held.action_dim:
        raise UserError(f"{dataset.uri} has {held.action_dim}-dim actions, the source {spec.action_dim}: use another")
    if strange := set(spec.cameras) - set(held.cameras):
        raise UserError(f"{dataset.uri} has no camera {', '.join(sorted(strange))}: use another dataset")
    if val_percent is not None and val_percent != held.val_percent:
        raise UserError(f"{dataset.uri} holds out {held.val_percent}%, which can't be changed to {val_percent}%")


def _plan(reader: SourceReader, dataset: Dataset, fit: Filter) -> _Plan:
    """List the source and compare it with the dataset, without reading a payload."""
    listed = list(reader.refs())
    refs = tuple(item for item in listed if isinstance(item, SourceRef))
    current = {ref.uri: ref.fingerprint for ref in refs}
    fingerprints = set(current.values())
    withdrawn = withdrawn_fingerprints(dataset.uri)
    held = zip(*(dataset.episodes.column(n) for n in ("source_uri", "source_fingerprint", "episode_id")), strict=True)
    known: Counter[str] = Counter()
    taken: dict[str, tuple[str, str]] = {}
    stale: dict[str, list[str]] = {}
    for uri, fingerprint, episode_id in held:
        if fingerprint in fingerprints:
            known[fingerprint] += 1
            taken[episode_id] = fingerprint, uri
        elif uri not in current and (file := uri.rpartition("#")[0]) in current:
            stale.setdefault(file, []).append(episode_id)
    copies = fit.copies(refs, dict(taken.values()))
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
class _Writer:
    """Collects episodes into parts and whole references into commits."""

    store_uri: str
    run_id: str
    batch_episodes: int
    plan: _Plan
    fit: Filter
    rejected: list[Rejection] = field(default_factory=list)
    total: Counter[str] = field(default_factory=Counter)
    _buffer: list[Episode] = field(default_factory=list)
    _rows: list[EpisodeRow] = field(default_factory=list)
    _bytes: int = 0
    _retired: list[str] = field(default_factory=list)
    _unrecorded: list[Rejection] = field(default_factory=list)
    _committer: Committer = field(init=False)

    def __post_init__(self) -> None:
        self._committer = Committer(self.store_uri)
        todo = {ref.uri for ref in self.plan.todo}  # a file may have become a copy of another, with nothing to read
        self._retired = [key for uri, ids in self.plan.stale.items() if uri not in todo for key in ids]

    def add(self, ref: SourceRef, reader: SourceReader) -> None:
        """Convert one reference; commit when the batch is full."""
        try:
            self.fit.check_reference(ref)
            for episode in self._checked(ref, reader.read(ref)):
                self._buffer.append(episode)
                self._bytes += _weight(episode)
                if self._full():
                    self._flush()
        except Rejected as error:
            self._drop(ref)
            self._turn_away(error.rejection)
        else:
            self._retired += self.plan.stale.get(ref.uri, ())
        if len(self._rows) + len(self._buffer) >= self.batch_episodes or self._full():
            self.commit()

    def progress(self, done: int, total: int, ref: SourceRef) -> IngestProgress:
        """What to tell the caller."""
        return IngestProgress(
            done=done,
            total=total,
            episodes=self.total["episodes"],
            steps=self.total["read"],
            quarantined=len(self.plan.rejected) + len(self.rejected),
            current=ref.uri,
        )

    def commit(self) -> None:
        """Make all that was added visible, and write down what was turned away."""
        self._flush()
        if self._rows or self._retired:
            result = commit(self._committer, self._rows, retire=self._retired)
            self.total.update(added=result.added, replaced=result.replaced, present=result.present)
            self.total["steps"] += sum(row.length for row in self._rows)
        if self._unrecorded:
            _record(self.store_uri, self._unrecorded, self.run_id)
        self._rows, self._retired, self._unrecorded = [], [], []

    def _checked(self, ref: SourceRef, episodes: Iterator[Episode]) -> Iterator[Episode]:
        """The same episodes, without copies of what this source has brought already."""
        for episode in episodes:
            key = episode.meta.episode_id
            fingerprint, uri = self.plan.taken.setdefault(key, (ref.fingerprint, ref.uri))
            if fingerprint != ref.fingerprint:
                detail = f"the same episode as {uri}, with other content"
                raise Rejected(ref.rejection("duplicate_episode", detail))
            if uri != ref.uri:
                self.total["present"] += 1
                continue
            if unwanted := self.fit.verdict(episode):
                del self.plan.taken[key]
                self._turn_away(unwanted)
                continue
            self.total.update(episodes=1, read=len(episode))
            yield episode

    def _turn_away(self, rejection: Rejection) -> None:
        self.rejected.append(rejection)
        self._unrecorded.append(rejection)

    def _full(self) -> bool:
        return self._bytes >= _MAX_BYTES or sum(map(len, self._buffer)) >= _MAX_STEPS

    def _flush(self) -> None:
        """Write what is in memory as a part; only `commit` makes it visible."""
        if self._buffer:
            self._rows += write_part(self.store_uri, self._buffer, run_id=self.run_id)
        self._buffer, self._bytes = [], 0

    def _drop(self, ref: SourceRef) -> None:
        """Forget what a reference gave before it turned out to be bad."""
        given = {key for key, (_, uri) in self.plan.taken.items() if uri == ref.uri}
        for key in given:
            del self.plan.taken[key]
        self._buffer = [episode for episode in self._buffer if episode.meta.episode_id not in given]
        self._rows = [row for row in self._rows if row.episode_id not in given]


def _weight(episode: Episode) -> int:
    """Bytes of an episode's frames."""
    return sum(
        sum(map(len, frames.jpegs)) if isinstance(frames, EncodedFrames) else frames.nbytes
        for frames in episode.frames.values()
    )
