"""Findings as filters: keep out of a dataset what can be read but is not wanted."""

import difflib
import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.checks.content import CHECKS, COVERED, check_times, examine, samples, sketch
from pipelines.checks.duplicates import Seen
from pipelines.checks.quality import BadDataError, Rejection
from pipelines.files import raw_path
from pipelines.source import Rejected, SourceReader, SourceRef, Timed
from storage_schemas.episode import Episode, EpisodeMeta
from storage_schemas.errors import UserError
from storage_schemas.location import locate
from storage_schemas.store.dataset import Dataset

FILTERS: Mapping[str, str] = {"copy": "has the same bytes as another", **CHECKS}
"""What can be filtered; "duplicate" includes "copy"."""


def chosen(names: Iterable[str] | None, default: frozenset[str]) -> frozenset[str]:
    """The filters that apply: those named, or the default when `names` is None; "none" stands for no filter.

    Raises:
        UserError: when there is no such filter.
    """
    if names is None:
        return default
    found = {name.strip() for name in names} - {"none", ""}
    for name in sorted(found - set(FILTERS)):
        near = difflib.get_close_matches(name, [*FILTERS, "none"], n=1)
        hint = f"did you mean {near[0]}?" if near else f"use {', '.join(FILTERS)} or none"
        raise UserError(f"unknown filter {name!r}: {hint}")
    return frozenset(found)


Sketches = Mapping[str, NDArray[np.float32]]
"""Blocks (N, R, C) of an episode's cameras, see `pipelines.checks.duplicates`."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the filters say of an episode by itself."""

    rejection: Rejection | None = None
    """Why it is not wanted."""
    sketches: Sketches | None = None
    """Its looks, to be compared with all that come before it; None when they don't matter."""


class Filter:
    """The filters of an ingestion, or of one batch of it.

    An episode is looked at in its batch, where the others of the source are not known; the one filter of the whole
    ingestion then judges it in the order of the source. So the outcome does not depend on who converts which batch.

    Args:
        reader: of the source.
        names: some of `FILTERS`.
    """

    def __init__(self, reader: SourceReader, names: frozenset[str]) -> None:
        self._reader = reader
        self.names = names
        self._wanted = names & set(CHECKS)
        self._seen = _Noting() if "duplicate" in names else None

    def copies(self, refs: Iterable[SourceRef], held: Mapping[str, str]) -> dict[str, Rejection]:
        """References that have the bytes of another one, by URI.

        Args:
            refs: of the source, in order.
            held: fingerprint -> URI of an episode that the dataset holds of it.
        """
        if not self.names & {"copy", "duplicate"}:
            return {}
        listed = list(refs)
        files = {ref.uri for ref in listed}
        first: dict[str, str] = {}
        for fingerprint, uri in held.items():
            reference = uri if uri in files else uri.rpartition("#")[0]
            if reference in files or _exists(uri):  # else the file was moved, and is no copy
                first[fingerprint] = reference
        return {
            ref.uri: ref.rejection("duplicate", f"byte-identical to {first[ref.fingerprint]}")
            for ref in listed
            if first.setdefault(ref.fingerprint, ref.uri) != ref.uri
        }

    def remember(self, dataset: Dataset) -> None:
        """Look at what the dataset holds, to find its duplicates: 8 frames of every camera of every episode."""
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
        """Look at what concerns a whole reference. Raises Rejected."""
        if "time_gap" in self.names and isinstance(self._reader, Timed):
            for finding in check_times(self._reader.times(ref), ref.uri):
                raise Rejected(ref.rejection(finding.reason, finding.detail))

    def look(self, episode: Episode) -> Verdict:
        """What speaks against an episode, as far as the batch tells."""
        if not self._wanted:
            return Verdict()
        if self._seen is not None:
            self._seen.noted = None
        rejection = self._examine(episode)
        return Verdict(rejection=rejection, sketches=None if self._seen is None else self._seen.noted)

    def judge(self, source_uri: str, fingerprint: str, verdict: Verdict) -> Rejection | None:
        """Why an episode is not wanted, given all that were judged or remembered before it; None when it is."""
        if self._seen is None or verdict.sketches is None:
            return verdict.rejection
        like = self._seen.add(source_uri, verdict.sketches)
        if like is None:
            return verdict.rejection
        return Rejection(
            source_uri=source_uri, fingerprint=fingerprint, reason="duplicate", detail=f"looks like {like}"
        )

    def forget(self) -> None:
        """Compare with none of the episodes that were looked at so far: some of them are gone."""
        if self._seen is not None:
            self._seen = _Noting()

    def _examine(self, episode: Episode) -> Rejection | None:
        cameras: Collection[str] = self._reader.spec().cameras
        meta = episode.meta
        try:
            for finding in examine(episode, cameras=cameras, wanted=self._wanted, seen=self._seen, pictures=False):
                if finding.share >= COVERED:
                    return _rejection(meta, finding.reason, finding.detail)
        except BadDataError as error:
            return _rejection(meta, error.reason, error.detail)
        return None


class _Noting(Seen):
    """Remembers what it was given last."""

    noted: Sketches | None = None

    def add(self, name: str, sketches: Sketches) -> str | None:
        self.noted = sketches
        return super().add(name, sketches)


def _rejection(meta: EpisodeMeta, reason: str, detail: str) -> Rejection:
    return Rejection(source_uri=meta.source_uri, fingerprint=meta.source_fingerprint, reason=reason, detail=detail)


def _exists(uri: str) -> bool:
    path = raw_path(uri)
    return os.path.lexists(path) if "://" not in uri else locate(path).exists()  # names need not be UTF-8
