"""What an ingestion will do: what a source holds, what of it is new, and whether it fits the dataset."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest

from pipelines.checks.filters import Filter
from pipelines.checks.quality import LeftOut, Rejection
from pipelines.source import SourceReader, SourceRef
from storage_schemas.catalog.quarantine import withdrawn_fingerprints
from storage_schemas.catalog.table import dataset_exists
from storage_schemas.errors import UserError
from storage_schemas.schema import DatasetSpec
from storage_schemas.store.dataset import Dataset, open_dataset


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a source holds, and what of it is new."""

    refs: tuple[SourceRef, ...]
    rejected: tuple[Rejection, ...]
    left_out: tuple[LeftOut, ...]
    todo: tuple[SourceRef, ...]
    known: frozenset[str]
    """Fingerprints of what is stored already."""
    present: int
    """Episodes of references that need not be read."""
    taken: dict[str, tuple[str, str]]
    """Fingerprint and reference URI by id of the episodes that this source has given the dataset."""
    stale: dict[str, tuple[str, ...]]
    """Episodes by reference URI that came from an earlier content of its file or record, which the source lost."""

    @property
    def fingerprint(self) -> str:
        """Of the whole source: it changes when anything is added, removed or changed, not when it is copied."""
        parts = [ref.fingerprint for ref in self.refs] + [f"{r.reason} {r.fingerprint}" for r in self.rejected]
        return hashlib.sha256("\n".join(sorted(parts)).encode()).hexdigest()[:32]


def opened_dataset(store_uri: str) -> Dataset | None:
    """The dataset; None as well when it never had an episode, so that no source has decided yet what it holds."""
    dataset = open_dataset(store_uri) if dataset_exists(store_uri) else None
    return None if dataset is None or not dataset.version else dataset


def spec_for(dataset: Dataset | None, reader: SourceReader, val_percent: int | None) -> DatasetSpec:
    """What the dataset's episodes share: a new one's as the source has it, which must fit one that is there."""
    spec = reader.spec()
    if dataset is None:
        return spec if val_percent is None else spec.model_copy(update={"val_percent": val_percent})
    stored = dataset.spec
    if spec.action_dim != stored.action_dim:
        raise UserError(f"{dataset.uri} has {stored.action_dim}-dim actions, the source {spec.action_dim}: use another")
    if strange := set(spec.cameras) - set(stored.cameras):
        raise UserError(f"{dataset.uri} has no camera {', '.join(sorted(strange))}: use another dataset")
    if val_percent is not None and val_percent != stored.val_percent:
        raise UserError(f"{dataset.uri} holds out {stored.val_percent}%, which can't be changed to {val_percent}%")
    return _declared(dataset, spec, reader.format)


def _declared(dataset: Dataset, spec: DatasetSpec, source_format: str) -> DatasetSpec:
    """The dataset's spec, with what the source declares if nothing in it has an action yet.

    Raises:
        UserError: when a source's numbers do not mean what the dataset's do.
    """
    stored = dataset.spec
    if stored.action is not None and spec.action is not None and stored.action != spec.action:
        differing = next(pair for pair in zip_longest(stored.action.lines, spec.action.lines) if pair[0] != pair[1])
        raise UserError(
            f"{dataset.uri} has other actions than the source: {differing[0]}, not {differing[1]}: use another dataset"
        )
    if stored.action is not None or spec.action is None:
        return stored
    formats, known = dataset.episodes.column("source_format"), dataset.episodes.action_steps > 0
    if not known.any():  # started by video
        return stored.model_copy(update={"action": spec.action, "states": spec.states, "views": spec.views})
    if strange := {name for name, has in zip(formats, known, strict=True) if has} - {source_format}:
        raise UserError(
            f"{dataset.uri} does not say what its actions mean, and has some of {', '.join(sorted(strange))}: "
            f"use another dataset for {source_format}"
        )
    return stored  # of schema version 1, and more of the same


def plan_ingestion(reader: SourceReader, dataset: Dataset | None, filters: Filter) -> Plan:
    """List the source and compare it with the dataset, without reading a payload."""
    listed = list(reader.refs())
    refs = tuple(filters.identified(item) for item in listed if isinstance(item, SourceRef))
    current = {ref.uri: ref.fingerprint for ref in refs}
    fingerprints = set(current.values())
    withdrawn = set() if dataset is None else withdrawn_fingerprints(dataset.uri, dataset.episodes)
    known: Counter[str] = Counter()
    taken: dict[str, tuple[str, str]] = {}
    stale: dict[str, list[str]] = {}
    for uri, fingerprint, episode_id in _stored(dataset):
        if fingerprint in fingerprints:
            known[fingerprint] += 1
            taken[episode_id] = fingerprint, uri
        elif (reference := uri if uri in current else uri.rpartition("#")[0]) in current:
            stale.setdefault(reference, []).append(episode_id)
    copies = filters.copies(refs, dict(taken.values()))
    done = known.keys() | withdrawn
    return Plan(
        refs=tuple(ref for ref in refs if ref.uri not in copies),
        rejected=(*(item for item in listed if isinstance(item, Rejection)), *copies.values()),
        left_out=tuple(item for item in listed if isinstance(item, LeftOut)),
        todo=tuple(ref for ref in refs if ref.fingerprint not in done and ref.uri not in copies),
        known=frozenset(known),
        present=known.total(),
        taken=taken,
        stale={uri: tuple(ids) for uri, ids in stale.items()},
    )


def _stored(dataset: Dataset | None) -> Iterator[tuple[str, str, str]]:
    """URI, fingerprint and id of the episodes that are there."""
    columns = ("source_uri", "source_fingerprint", "episode_id")
    if dataset is not None:
        yield from zip(*(dataset.episodes.column(name) for name in columns), strict=True)
