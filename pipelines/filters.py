"""Findings as filters: keep out of a dataset what can be read but is not wanted."""

import difflib
import os
from collections.abc import Collection, Iterable, Mapping

from pipelines.content import CHECKS, COVERED, check_times, examine, samples, sketch
from pipelines.duplicates import Seen
from pipelines.files import raw_path
from pipelines.source import BadDataError, Rejected, Rejection, SourceReader, SourceRef, Timed
from storage_schemas.episode import Episode, EpisodeMeta
from storage_schemas.errors import UserError
from storage_schemas.location import locate
from storage_schemas.store import Dataset

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


class Filter:
    """The filters of one ingestion.

    Args:
        reader: of the source.
        names: some of `FILTERS`.
    """

    def __init__(self, reader: SourceReader, names: frozenset[str]) -> None:
        self._reader = reader
        self._names = names
        self._wanted = names & set(CHECKS)
        self._seen = Seen() if "duplicate" in names else None

    def copies(self, refs: Iterable[SourceRef], held: Mapping[str, str]) -> dict[str, Rejection]:
        """References that have the bytes of another one, by URI.

        Args:
            refs: of the source, in order.
            held: fingerprint -> URI of an episode that the dataset holds of it.
        """
        if not self._names & {"copy", "duplicate"}:
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
        if "time_gap" in self._names and isinstance(self._reader, Timed):
            for finding in check_times(self._reader.times(ref), ref.uri):
                raise Rejected(ref.rejection(finding.reason, finding.detail))

    def verdict(self, episode: Episode) -> Rejection | None:
        """Why an episode is not wanted; None when it is."""
        if not self._wanted:
            return None
        cameras: Collection[str] = self._reader.spec().cameras
        meta = episode.meta
        try:
            for finding in examine(episode, cameras=cameras, wanted=self._wanted, seen=self._seen, pictures=False):
                if finding.share >= COVERED:
                    return _rejection(meta, finding.reason, finding.detail)
        except BadDataError as error:
            return _rejection(meta, error.reason, error.detail)
        return None


def _rejection(meta: EpisodeMeta, reason: str, detail: str) -> Rejection:
    return Rejection(source_uri=meta.source_uri, fingerprint=meta.source_fingerprint, reason=reason, detail=detail)


def _exists(uri: str) -> bool:
    path = raw_path(uri)
    return os.path.lexists(path) if "://" not in uri else locate(path).exists()  # names need not be UTF-8
