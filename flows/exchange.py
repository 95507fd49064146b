"""Checkpoints from elsewhere and for elsewhere, as plain functions that write their lineage. Imports no prefect."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flows.jobs import pin_checkpoint
from flows.records import checkpoint_root, record_checkpoint, record_source
from storage_schemas.lineage import LineageRecord

if TYPE_CHECKING:
    from uwm.reference.importer import Imported


@dataclass(frozen=True, kw_only=True)
class ImportedRun:
    """A published checkpoint as one of ours, and how the lineage knows it."""

    imported: "Imported"
    root: str
    record: LineageRecord


def run_import(file: str, out: str, overrides: Sequence[str] = ()) -> ImportedRun:
    """Turn a published checkpoint into a checkpoint directory, without running anything in it.

    Args:
        file: what the published trainer wrote.
        out: folder of the run that it becomes.
        overrides: `key=value` pairs for what the file does not tell.

    Raises:
        UserError: when the file is hostile, damaged, or of no published network.
    """
    from uwm.reference.importer import import_reference

    made = import_reference(file, out, overrides)
    pin, _ = pin_checkpoint(made.path)
    root = checkpoint_root(pin)
    facts = {"format": f"published {made.policy}"}
    source = record_source(root, uri=made.source, fingerprint=made.sha256, facts=facts, run_url="")
    record = record_checkpoint(root, pin, sources=(source.node,), facts={"imported": made.policy})
    return ImportedRun(imported=made, root=root, record=record)
