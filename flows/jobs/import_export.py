"""Checkpoints from elsewhere and for elsewhere, as plain functions that write their lineage. Imports no prefect."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from flows.jobs.evaluate import results_of
from flows.jobs.train import pin_checkpoint
from flows.lineage.records import checkpoint_root, record_checkpoint, record_source
from storage_schemas.errors import UserError
from storage_schemas.lineage.records import LineageRecord

if TYPE_CHECKING:
    from uwm.bundle import Manifest
    from uwm.device import Precision
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

    imported = import_reference(file, out, overrides)
    pin, _ = pin_checkpoint(imported.path)
    root = checkpoint_root(pin)
    facts = {"format": f"published {imported.policy}"}
    source = record_source(root, uri=imported.source, fingerprint=imported.sha256, facts=facts, run_url="")
    record = record_checkpoint(root, pin, sources=(source.node,), facts={"imported": imported.policy})
    return ImportedRun(imported=imported, root=root, record=record)


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A bundle that was written."""

    path: str
    manifest: "Manifest"
    evaluations: tuple[str, ...]
    """Folders of the results that its card shows."""


def run_export(checkpoint: str, out: str, *, dtype: str = "fp32", licence: str = "") -> Exported:
    """Write the inference bundle of a checkpoint; its card shows the results that lie beside the run's checkpoints.

    Raises:
        UserError: when the checkpoint can't be opened, is a tokenizer, or `out` exists.
    """
    from uwm.bundle import export
    from uwm.device import DTYPES
    from uwm.eval.files import RESULT_FILE, load_evaluation

    if dtype not in DTYPES:
        raise UserError(f"dtype {dtype!r} is none of {', '.join(DTYPES)}")
    pin, _ = pin_checkpoint(checkpoint)
    folders = sorted(str(file.parent) for file in results_of(pin).glob(f"*/{RESULT_FILE}"))
    own = tuple(folder for folder in folders if load_evaluation(folder).settings.checkpoint_identity == pin.identity)
    chosen = cast("Precision", dtype)
    manifest = export(pin.uri, out, dtype=chosen, licence=licence, evaluations=own)
    return Exported(path=str(Path(out).absolute()), manifest=manifest, evaluations=own)
