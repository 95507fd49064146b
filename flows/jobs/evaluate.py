"""A checkpoint and held-out episodes become numbers, and the lineage knows them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flows.jobs.train import pin_checkpoint
from flows.lineage.openlineage import Start, emitting
from flows.lineage.records import CheckpointPin, DatasetPin, checkpoint_root, record_evaluation
from storage_schemas.lineage.records import Fact, LineageRecord, digest
from storage_schemas.location import locate
from uwm.eval.options import EVAL_DEFAULTS, SAMPLE_DEFAULTS, EvalOptions, SampleOptions

if TYPE_CHECKING:
    from uwm.device import Precision
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


def run_evaluation(
    checkpoint: str,
    store: str,
    options: EvalOptions = EVAL_DEFAULTS,
    *,
    run_url: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> Evaluated:
    """Measure a checkpoint on a dataset version; the same question is not answered twice.

    The result lies beside the run's checkpoints, in `evaluations/`.

    Raises:
        UserError: when the checkpoint or the dataset is missing or unfit.
    """
    from storage_schemas.store.dataset import open_dataset
    from uwm.eval.files import load_evaluation

    start = Start(job="evaluate", about=locate(store).name, inputs=(checkpoint, store))
    with emitting(start, run_url) as completed:
        pin, _ = pin_checkpoint(checkpoint)
        opened = open_dataset(store, options.version)
        dataset = DatasetPin(uri=store, version=opened.version, table_id=opened.table_id)
        units = pin_checkpoint(options.normalizer)[0].identity if options.normalizer else pin.identity
        identity = _identity(pin, dataset, options, units)
        folder = str(results_of(pin) / f"step-{pin.step}-on-{dataset.name}@{dataset.version}-{identity[:6]}")
        reused = (locate(folder) / "evaluation.json").exists()
        if reused:
            evaluation = load_evaluation(folder)
        else:
            from uwm.eval.offline import evaluate

            evaluation = evaluate(pin.uri, opened, options, out=folder, progress=progress)
        root = checkpoint_root(pin)
        facts: dict[str, Fact] = {"split": options.split, "collections": ",".join(sorted(options.collections))}
        record = record_evaluation(
            root,
            checkpoint=pin,
            dataset=dataset,
            identity=identity,
            uri=folder,
            facts=facts | headlines(evaluation),
            run_url=run_url,
        )
        result = Evaluated(evaluation=evaluation, folder=folder, reused=reused, root=root, record=record)
        completed(result)
    return result


def _identity(pin: CheckpointPin, dataset: DatasetPin, options: EvalOptions, units: str) -> str:
    """Of the question; where it is answered does not belong to it, and neither does what is left as it is."""
    steps = () if options.steps is None else (f"steps={options.steps}",)
    other = () if units == pin.identity else (f"normalizer={units}",)
    collections = ",".join(sorted(options.collections))
    given = (options.split, collections, str(options.samples), str(options.seed), *steps, *other)
    return digest(pin.identity, dataset.identity, *given)


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
    options: SampleOptions = SAMPLE_DEFAULTS,
    *,
    precision: "Precision" = "fp32",
) -> "SampleFiles":
    """Predict in one mode on held-out segments and write images and actions to the folder `out`.

    Raises:
        UserError: when the mode is unknown, or the checkpoint or the dataset are missing or unfit.
    """
    from storage_schemas.store.dataset import open_dataset
    from uwm.eval.sample import sample

    return sample(checkpoint, open_dataset(store, options.version), mode, out, options, precision=precision)
