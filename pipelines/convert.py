"""Convert one batch of references into parts: the unit of work that a thread, a process or a machine takes.

A conversion writes parts and nothing else, and no part is visible before `pipelines.ingest` commits its rows. So a
batch may be converted again at any time, by anybody: a worker that was killed leaves an orphan for `uwm gc`, and its
batch is given to another one.

What takes a view of the whole source (is this the same episode as another one, does it look like one?) is not decided
here but where the batches come together again, in the order of the source. Only what is certain to be turned away
there is left out of the parts here.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache

from pipelines.checks.content import Sketches
from pipelines.checks.filters import Filter
from pipelines.checks.quality import BadDataError, LeftOut, Rejection
from pipelines.options import IngestOptions
from pipelines.source import SourceReader, SourceRef, episodes_of
from pipelines.sources.registry import open_source
from storage_schemas.catalog.rows import EpisodeRow
from storage_schemas.episode import EncodedFrames, Episode
from storage_schemas.schema import DatasetSpec
from storage_schemas.store.parts import check_fits, write_part

_MAX_BYTES = 256 << 20
_MAX_STEPS = 20_000
"""Frames and steps at which a part is written: they bound the memory of a batch, however many episodes it has."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """References to convert and all that it takes. Picklable, and valid wherever source and store can be reached."""

    source: str
    options: IngestOptions
    """With the format filled in."""
    reject: frozenset[str]
    """Some of `pipelines.checks.filters.FILTERS`."""
    store_uri: str
    spec: DatasetSpec
    """Of the store."""
    run_id: str
    refs: tuple[SourceRef, ...]


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Counts of what was converted, before anything is known of other batches."""

    refs: int = 0
    episodes: int = 0
    steps: int = 0
    rejected: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            refs=self.refs + other.refs,
            episodes=self.episodes + other.episodes,
            steps=self.steps + other.steps,
            rejected=self.rejected + other.rejected,
        )


@dataclass(kw_only=True)
class Candidate:
    """An episode that was read; it enters the dataset if nothing that came before speaks against it."""

    episode_id: str
    source_uri: str
    length: int
    rejection: Rejection | None = None
    """Why it is not wanted, as far as its batch tells."""
    sketches: Sketches = field(default_factory=dict)
    """What is compared with all episodes before it; empty when that does not matter."""
    row: EpisodeRow | None = None
    """Where it lies; None when it is not wanted, or is certain to be turned away."""


@dataclass(frozen=True, kw_only=True)
class ConvertedRef:
    """What became of one reference."""

    ref: SourceRef
    candidates: tuple[Candidate, ...] = ()
    rejection: Rejection | None = None
    """Why nothing of it can be stored."""
    left_out: tuple[LeftOut, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Converted:
    """What became of a batch."""

    refs: tuple[ConvertedRef, ...]
    counts: Counts


OnReference = Callable[[SourceRef, Counts], None]
"""Is told after every reference what has been done of the batch."""


def convert(
    batch: Batch, reader: SourceReader | None = None, on_reference: OnReference = lambda ref, counts: None
) -> Converted:
    """Read, check and write a batch. Nothing becomes visible, so it can be done again.

    Args:
        batch: from `pipelines.ingest`.
        reader: of the batch's source; this process opens one for all batches of a run when None.
        on_reference: for progress.

    Raises:
        UserError: when source or store can't be reached.
    """
    reader = reader or _opened(batch.source, batch.options, batch.spec, batch.run_id)
    return _Converter(batch, reader).run(on_reference)


@lru_cache(maxsize=1)
def _opened(source: str, options: IngestOptions, spec: DatasetSpec, run_id: str) -> SourceReader:
    """`run_id` makes a new run look at the source anew."""
    return open_source(source, options, spec)


@dataclass
class _Converter:
    """Collects episodes into parts."""

    batch: Batch
    reader: SourceReader
    _counts: Counts = field(default_factory=Counts)
    _buffer: list[tuple[Candidate, Episode]] = field(default_factory=list)
    _bytes: int = 0
    _kept: dict[tuple[str, str], Candidate] = field(default_factory=dict)
    """Candidates of finished references by id and fingerprint."""

    def __post_init__(self) -> None:
        self._filter = Filter(self.reader, self.batch.reject)

    def run(self, on_reference: OnReference) -> Converted:
        """All references in order."""
        converted = []
        for ref in self.batch.refs:
            converted.append(self._convert(ref))
            on_reference(ref, self._counts)
        self._flush()
        return Converted(refs=tuple(converted), counts=self._counts)

    def _convert(self, ref: SourceRef) -> ConvertedRef:
        candidates: list[Candidate] = []
        left_out: list[LeftOut] = []
        try:
            self._filter.check_reference(ref)
            for item in episodes_of(self.reader, ref):
                if isinstance(item, LeftOut):
                    left_out.append(item)
                    continue
                candidates.append(self._candidate(ref, item))
                if self._full():
                    self._flush()
        except BadDataError as error:
            # a reference is stored whole or not at all; what a part holds of it already, no row will name
            self._buffer = [item for item in self._buffer if not any(item[0] is given for given in candidates)]
            self._filter.forget()
            self._counts += Counts(refs=1, rejected=1)
            return ConvertedRef(ref=ref, rejection=ref.rejection(error.reason, error.detail))
        good = [candidate for candidate in candidates if candidate.rejection is None]
        self._kept |= {(candidate.episode_id, ref.fingerprint): candidate for candidate in good}
        self._counts += Counts(
            refs=1,
            episodes=len(good),
            steps=sum(candidate.length for candidate in good),
            rejected=len(candidates) - len(good),
        )
        return ConvertedRef(ref=ref, candidates=tuple(candidates), left_out=tuple(left_out))

    def _candidate(self, ref: SourceRef, episode: Episode) -> Candidate:
        meta = episode.meta
        try:
            check_fits(episode, self.batch.spec)
        except ValueError as error:
            raise BadDataError("misfit", str(error)) from error
        double = self._kept.get((meta.episode_id, ref.fingerprint))  # what is decided of it is decided of this one
        if double:
            return replace(double, source_uri=meta.source_uri, row=None)
        rejection, sketches = self._filter.check(episode)
        candidate = Candidate(
            episode_id=meta.episode_id,
            source_uri=meta.source_uri,
            length=len(episode),
            rejection=rejection,
            sketches=sketches,
        )
        if rejection is None:
            self._buffer.append((candidate, episode))
            self._bytes += _weight(episode)
        return candidate

    def _full(self) -> bool:
        return self._bytes >= _MAX_BYTES or sum(len(episode) for _, episode in self._buffer) >= _MAX_STEPS

    def _flush(self) -> None:
        """Write what is in memory as a part."""
        if self._buffer:
            episodes, batch = [episode for _, episode in self._buffer], self.batch
            rows = write_part(batch.store_uri, episodes, run_id=batch.run_id, spec=batch.spec)
            for (candidate, _), row in zip(self._buffer, rows, strict=True):
                candidate.row = row
        self._buffer, self._bytes = [], 0


def _weight(episode: Episode) -> int:
    """Bytes of an episode's frames."""
    return sum(
        sum(map(len, frames.jpegs)) if isinstance(frames, EncodedFrames) else frames.nbytes
        for frames in episode.frames.values()
    )
