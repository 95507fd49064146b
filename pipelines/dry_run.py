"""What an ingestion would do, without doing it: nothing is written, and only a few references are read."""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.checks.filters import Filter
from pipelines.checks.quality import BadDataError, LeftOut, Rejection
from pipelines.files import printable
from pipelines.options import INGEST_DEFAULTS, IngestOptions
from pipelines.plan import opened_dataset, plan_ingestion, spec_for
from pipelines.source import SourceReader, SourceRef, episodes_of
from pipelines.sources.registry import open_source
from storage_schemas.episode import EncodedFrames, Episode
from storage_schemas.location import locate
from storage_schemas.store.frames import encode_frames

_LOOKED_AT = 16
"""References among which those that are read are chosen, the smallest first."""
_READ = 3
_SECONDS = 10.0
"""After which no other reference is read."""


@dataclass(frozen=True, kw_only=True)
class DryRun:
    """What an ingestion would find and do; what is estimated comes from the references that were read."""

    source_uri: str
    source_format: str
    references: int
    """That would be read: records, files or spans that are new."""
    bytes: int
    """Of raw data that would be read."""
    present: int
    """Episodes that are there already."""
    rejected: tuple[Rejection, ...]
    """What is turned away without being read, and what was read for the measure and turned away."""
    left_out: tuple[LeftOut, ...]
    measured: int
    """References that were read."""
    episodes: int
    """About so many, in all new references."""
    steps: int
    """About so many."""
    stored_bytes: int
    """About so many bytes of frames in the dataset."""
    seconds: float
    """About so long in one process, here and now."""


def dry_run(source: str, store_uri: str, options: IngestOptions = INGEST_DEFAULTS) -> DryRun:
    """Say what `pipelines.ingest.ingest` would do with the same arguments. Nothing is written.

    The first references are read, checked and encoded; what takes how long is told from them in proportion to the bytes
    of all.

    Raises:
        UserError: as the ingestion would.
    """
    started = time.monotonic()
    dataset = opened_dataset(store_uri)
    reader = open_source(source, options, None if dataset is None else dataset.spec)
    filters = Filter(reader, reader.unwanted if options.reject is None else frozenset(options.reject))
    spec_for(dataset, reader, options.val_percent)
    plan = plan_ingestion(reader, dataset, filters)
    listed = time.monotonic() - started
    measure = _Measure(reader, filters)
    measure.read(plan.todo)
    total = sum(ref.length for ref in plan.todo)
    share = total / measure.bytes if measure.bytes else len(plan.todo) / max(1, measure.references)
    return DryRun(
        source_uri=printable(locate(source).uri),
        source_format=reader.format,
        references=len(plan.todo),
        bytes=total,
        present=plan.present,
        rejected=(*plan.rejected, *measure.rejected),
        left_out=plan.left_out,
        measured=measure.references,
        episodes=round(measure.counts["episodes"] * share),
        steps=round(measure.counts["steps"] * share),
        stored_bytes=round(measure.counts["stored"] * share),
        seconds=listed + measure.seconds * share,
    )


class _Measure:
    """What a few references cost and hold."""

    def __init__(self, reader: SourceReader, filters: Filter) -> None:
        self._reader, self._filters = reader, filters
        self.references = self.bytes = 0
        self.seconds = 0.0
        self.counts: Counter[str] = Counter()
        self.rejected: list[Rejection] = []

    def read(self, refs: Sequence[SourceRef]) -> None:
        """Read some of the first references."""
        for ref in sorted(refs[:_LOOKED_AT], key=lambda ref: ref.length)[:_READ]:
            if self.seconds > _SECONDS:
                return
            started = time.monotonic()
            try:
                self._filters.check_reference(ref)
                counts = sum((self._count(episode) for episode in self._episodes(ref)), Counter[str]())
                self.counts.update(counts)
            except BadDataError as error:
                self.rejected.append(ref.rejection(error.reason, error.detail))
            self.references, self.bytes = self.references + 1, self.bytes + ref.length
            self.seconds += time.monotonic() - started

    def _episodes(self, ref: SourceRef) -> Iterator[Episode]:
        return (item for item in episodes_of(self._reader, ref) if isinstance(item, Episode))

    def _count(self, episode: Episode) -> Counter[str]:
        rejection, _ = self._filters.check(episode)
        if rejection is not None:
            self.rejected.append(rejection)
            return Counter()
        stored = 0
        for frames in episode.frames.values():
            encoded = frames.jpegs if isinstance(frames, EncodedFrames) else encode_frames(np.asarray(frames), "jpeg")
            stored += sum(map(len, encoded))
        return Counter(episodes=1, steps=len(episode), stored=stored)
