"""A checkpoint and held-out episodes become numbers, and the lineage knows them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from flows.jobs.ingest import pin_dataset
from flows.jobs.train import pin_checkpoint
from flows.lineage.openlineage import Start, emitting
from flows.lineage.records import CheckpointPin, checkpoint_root, record_evaluation
from storage_schemas.lineage.records import Fact, LineageRecord, digest
from storage_schemas.location import locate

if TYPE_CHECKING:
    from uwm.eval.result import Evaluation
    from uwm.eval.sample import SampleFiles


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """A result and where it lies."""

    evaluation: "Evaluation"
    folder: str
    reused: bool
    """The same evaluation had been made before."""
    root: str
    record: LineageRecord

    @property
    def label(self) -> str:
        """What was measured on what, for the head of a column."""
        settings = self.evaluation.settings
        return f"{settings.run} on {', '.join(settings.collections) or 'all'}"


def _starts_evaluation(checkpoint: str, store: str, **_options: object) -> Start:
    return Start(job="evaluate", about=locate(store).name, inputs=(checkpoint, store))


@emitting(_starts_evaluation)
def run_evaluation(
    checkpoint: str,
    store: str,
    *,
    version: int | None = None,
    split: str = "val",
    collections: Sequence[str] = (),
    samples: int = 64,
    seed: int = 0,
    steps: int | None = None,
    device: str = "auto",
    run_url: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> Evaluated:
    """Measure a checkpoint on a dataset version; the same question is not answered twice.

    The result lies beside the run's checkpoints, in `evaluations/`.

    Raises:
        UserError: when the checkpoint or the dataset is missing or unfit.
    """
    from uwm.eval.files import load_evaluation
    from uwm.eval.offline import evaluate

    pin, _ = pin_checkpoint(checkpoint)
    dataset = pin_dataset(store, version)
    chosen = ",".join(sorted(collections))
    other = () if steps is None else (f"steps={steps}",)
    identity = digest(pin.identity, dataset.identity, split, chosen, str(samples), str(seed), *other)
    folder = str(results_of(pin) / f"step-{pin.step}-on-{dataset.name}@{dataset.version}-{identity[:6]}")
    reused = (locate(folder) / "evaluation.json").exists()
    if reused:
        evaluation = load_evaluation(folder)
    else:
        evaluation = evaluate(
            pin.uri,
            store,
            version=dataset.version,
            split=split,
            collections=collections,
            samples=samples,
            seed=seed,
            steps=steps,
            device=device,
            out=folder,
            progress=progress,
        )
    root = checkpoint_root(pin)
    record = record_evaluation(
        root,
        checkpoint=pin,
        dataset=dataset,
        identity=identity,
        uri=folder,
        facts={"split": split, "collections": chosen} | headlines(evaluation),
        run_url=run_url,
    )
    return Evaluated(evaluation=evaluation, folder=folder, reused=reused, root=root, record=record)


def results_of(pin: CheckpointPin) -> Path:
    """Where the results of a run lie: beside its checkpoints."""
    parent = Path(pin.uri).parent
    return (parent.parent if parent.name == "checkpoints" else parent) / "evaluations"


def headlines(evaluation: "Evaluation") -> dict[str, Fact]:
    """A result's first numbers, as a lineage page shows them."""
    from uwm.report.tables import headline_rows

    cells = ((row.label, cell) for row in headline_rows([evaluation]) for cell in row.cells if cell)
    return {label: f"{cell.change} {cell.mark} over {cell.baseline}" for label, cell in cells}


def run_sample(
    checkpoint: str,
    store: str,
    mode: str,
    out: str,
    *,
    version: int | None = None,
    split: str = "val",
    collections: Sequence[str] = (),
    samples: int = 4,
    seed: int = 0,
    steps: int | None = None,
    precision: Literal["fp32", "bf16"] = "fp32",
    device: str = "auto",
) -> "SampleFiles":
    """Predict in one mode on held-out segments and write images and actions to the folder `out`.

    Raises:
        UserError: when the mode is unknown, or the checkpoint or the dataset are missing or unfit.
    """
    from uwm.eval.sample import sample

    return sample(
        checkpoint,
        store,
        mode,
        out=out,
        count=samples,
        seed=seed,
        version=version,
        split=split,
        collections=collections,
        steps=steps,
        precision=precision,
        device=device,
    )
