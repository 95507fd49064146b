"""Findings as filters: keep out of a dataset what can be read but is not wanted."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace

from pipelines.checks.content import COVERED, Sketches, check_episode, check_times, samples, sketch
from pipelines.checks.duplicates import Seen
from pipelines.checks.quality import BadDataError, Rejection
from pipelines.files import raw_path
from pipelines.names import CHECKS
from pipelines.source import SourceReader, SourceRef, Timed
from storage_schemas.episode import Episode
from storage_schemas.location import locate
from storage_schemas.store.dataset import Dataset


class Filter:
    """The filters of an ingestion, or of one batch of it.

    An episode is checked in its batch, where the others of the source are not known; the one filter of the whole
    ingestion then compares it in the order of the source. So the outcome does not depend on who converts which batch.

    Args:
        reader: of the source.
        names: some of `FILTERS`.
    """

    def __init__(self, reader: SourceReader, names: frozenset[str]) -> None:
        self._reader = reader
        self.names = names
        self._checks = names & set(CHECKS)
        self._seen = Seen() if "duplicate" in names else None

    def identified(self, ref: SourceRef) -> SourceRef:
        """The reference as the dataset knows it: where no copies are wanted, one of several is like the only one."""
        return replace(ref, fingerprint=ref.content) if self.names & {"copy", "duplicate"} else ref

    def copies(self, refs: Iterable[SourceRef], stored: Mapping[str, str]) -> dict[str, Rejection]:
        """References that have the bytes of another one, by URI.

        Args:
            refs: of the source, in order.
            stored: fingerprint -> URI of an episode that the dataset holds of it.
        """
        if not self.names & {"copy", "duplicate"}:
            return {}
        listed = list(refs)
        files = {ref.uri for ref in listed}
        first: dict[str, str] = {}
        for fingerprint, uri in stored.items():
            reference = uri if uri in files else uri.rpartition("#")[0]
            if reference in files or _exists(uri):  # else the file was moved, and is no copy
                first[fingerprint.partition("+")[0]] = reference
        return {
            ref.uri: ref.rejection("duplicate", f"byte-identical to {first[ref.content]}")
            for ref in listed
            if first.setdefault(ref.content, ref.uri) != ref.uri
        }

    def remember(self, dataset: Dataset) -> None:
        """Sketch what the dataset holds, to find its duplicates: 8 frames of every camera of every episode."""
        if self._seen is None:
            return
        names = dataset.episodes.column("source_uri")
        for episode, length in enumerate(dataset.episodes.lengths.tolist()):
            sketches = {}
            for view, camera in enumerate(dataset.spec.cameras):
                if dataset.episodes.sizes[episode, view, 0]:
                    frames = dataset.frames(episode, camera, samples(length).tolist())
                    sketches[camera] = sketch(frames, range(len(frames)))
            if sketches:
                self._seen.add(names[episode], sketches)

    def check_reference(self, ref: SourceRef) -> None:
        """Check what concerns a whole reference. Raises BadDataError."""
        if "time_gap" in self.names and isinstance(self._reader, Timed):
            for finding in check_times(self._reader.times(ref), ref.uri):
                raise BadDataError(finding.reason, finding.detail)

    def check(self, episode: Episode) -> tuple[Rejection | None, Sketches]:
        """Why an episode is not wanted, as far as the batch tells, and what it is to be compared by."""
        if not self._checks:
            return None, {}
        meta = episode.meta
        try:
            spec = self._reader.spec()
            checked = check_episode(episode, cameras=spec.cameras, space=spec.action, checks=self._checks)
        except BadDataError as error:
            return _rejection(meta.source_uri, meta.source_fingerprint, error.reason, error.detail), {}
        for finding in checked.findings:
            if finding.share >= COVERED:
                return _rejection(meta.source_uri, meta.source_fingerprint, finding.reason, finding.detail), {}
        return self.duplicate(meta.source_uri, meta.source_fingerprint, checked.sketches), checked.sketches

    def duplicate(self, source_uri: str, fingerprint: str, sketches: Sketches) -> Rejection | None:
        """Why an episode is not wanted, given all that were compared or remembered before it; None when it is."""
        like = self._seen.add(source_uri, sketches) if self._seen is not None and sketches else None
        return _rejection(source_uri, fingerprint, "duplicate", f"looks like {like}") if like else None

    def forget(self) -> None:
        """Compare with none of the episodes that were checked so far: some of them are gone."""
        if self._seen is not None:
            self._seen = Seen()


def _rejection(source_uri: str, fingerprint: str, reason: str, detail: str) -> Rejection:
    return Rejection(source_uri=source_uri, fingerprint=fingerprint, reason=reason, detail=detail)


def _exists(uri: str) -> bool:
    path = raw_path(uri)
    return os.path.lexists(path) if "://" not in uri else locate(path).exists()  # names need not be UTF-8
