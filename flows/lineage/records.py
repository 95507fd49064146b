"""What the lineage says of an ingestion, a training run and an evaluation."""

import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from storage_schemas.lineage.records import (
    Fact,
    LineageGraph,
    LineageRecord,
    digest,
    graph,
    lineage_root,
    safe_name,
    write_all,
    write_record,
)
from storage_schemas.location import locate


@dataclass(frozen=True, kw_only=True)
class DatasetPin:
    """One version of one dataset, wherever it lies."""

    uri: str
    version: int
    table_id: str
    """Identity of the dataset's log."""

    @property
    def identity(self) -> str:
        """Identity of this version."""
        return f"{self.table_id}@{self.version}"

    @property
    def name(self) -> str:
        """The dataset's name in node ids: its folder's."""
        return safe_name(locate(self.uri).name)


@dataclass(frozen=True, kw_only=True)
class CheckpointPin:
    """One checkpoint and what it was made from."""

    uri: str
    run: str
    stage: str
    step: int
    identity: str
    datasets: tuple[DatasetPin, ...]
    parents: tuple["CheckpointPin", ...] = ()
    """Checkpoints whose weights it used: the one it started from, and its tokenizer."""


def record_source(root: str, *, uri: str, fingerprint: str, facts: Mapping[str, Fact], run_url: str) -> LineageRecord:
    """Record a raw source; the same place with other content is another version of it."""
    return write_record(
        root,
        LineageRecord(
            kind="source",
            name=source_name(uri),
            version=safe_name(fingerprint[:8]),
            identity=digest(locate(uri).uri, fingerprint),
            uri=locate(uri).uri,
            facts=facts,
            run_url=run_url,
        ),
    )


def source_name(uri: str) -> str:
    """A source's name: the last segment of its place, and the one before when that is a version or a pattern."""
    head, last = posixpath.split(locate(uri).uri.rstrip("/"))
    if re.fullmatch(r"[\d.]+", last) or set(last) & set("*?["):
        return safe_name(posixpath.basename(head))
    return safe_name(last)


def record_dataset(
    root: str,
    pin: DatasetPin,
    *,
    sources: Sequence[str] = (),
    facts: Mapping[str, Fact] | None = None,
    run_url: str = "",
) -> LineageRecord:
    """Record a dataset version; besides its sources it comes from the version recorded before it."""
    known = graph(root)
    if existing := known.identified("dataset", pin.identity):
        return existing
    before = _version_before(known, pin)
    return write_record(
        root,
        LineageRecord(
            kind="dataset",
            name=pin.name,
            version=str(pin.version),
            identity=pin.identity,
            uri=locate(pin.uri).uri,
            upstream=(*sources, *before),
            facts=facts or {},
            run_url=run_url,
        ),
    )


def _version_before(known: LineageGraph, pin: DatasetPin) -> tuple[str, ...]:
    versions = {
        int(record.version): record.node
        for record in known.records.values()
        if record.kind == "dataset" and record.identity.rpartition("@")[0] == pin.table_id
    }
    earlier = [version for version in versions if version < pin.version]
    return (versions[max(earlier)],) if earlier else ()


def record_checkpoint(
    root: str,
    pin: CheckpointPin,
    *,
    sources: Sequence[str] = (),
    facts: Mapping[str, Fact] | None = None,
    run_url: str = "",
) -> LineageRecord:
    """Record a checkpoint and, where they are not yet, the datasets and checkpoints it was made from."""
    if existing := graph(root).identified("checkpoint", pin.identity):
        return existing
    datasets = [adopt_dataset(root, dataset).node for dataset in pin.datasets]
    parents = [record_checkpoint(root, parent).node for parent in pin.parents]
    return write_record(
        root,
        LineageRecord(
            kind="checkpoint",
            name=safe_name(pin.run),
            version=str(pin.step),
            identity=pin.identity,
            uri=locate(pin.uri).uri,
            upstream=(*sources, *datasets, *parents),
            facts={"stage": pin.stage, "step": pin.step, **(facts or {})},
            run_url=run_url,
        ),
    )


def adopt_dataset(root: str, pin: DatasetPin) -> LineageRecord:
    """Record a dataset version under `root`, with the ancestry that is known where the dataset lies."""
    home = lineage_root(pin.uri)
    if locate(home) != locate(root):
        known = graph(home)
        if record := known.identified("dataset", pin.identity):
            write_all(root, known.ancestry(record.node))
    return record_dataset(root, pin)


def record_evaluation(
    root: str,
    *,
    checkpoint: CheckpointPin,
    dataset: DatasetPin,
    identity: str,
    uri: str,
    facts: Mapping[str, Fact],
    run_url: str = "",
) -> LineageRecord:
    """Record a result and, where they are not yet, its checkpoint and its dataset version."""
    evaluated, data = record_checkpoint(root, checkpoint), adopt_dataset(root, dataset)
    return write_record(
        root,
        LineageRecord(
            kind="evaluation",
            name=safe_name(f"{evaluated.name}-on-{data.name}"),
            version=f"{checkpoint.step}-{identity[:6]}",
            identity=identity,
            uri=locate(uri).uri,
            upstream=(evaluated.node, data.node),
            facts=facts,
            run_url=run_url,
        ),
    )


def checkpoint_root(pin: CheckpointPin) -> str:
    """Where a checkpoint's lineage is kept: with the data it was first trained on."""
    return lineage_root(pin.datasets[0].uri if pin.datasets else pin.uri)
