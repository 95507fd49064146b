"""The whole method on the example data: ingest, train, finetune, evaluate, report. Imports no prefect."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flows.jobs.evaluate import Evaluated
from flows.jobs.ingest import Ingested
from flows.jobs.pipeline import Jobs
from flows.jobs.train import Trained, adapted, make_config
from flows.lineage.picture import svg
from pipelines.options import IngestOptions
from storage_schemas.errors import UserError
from storage_schemas.lineage.records import LineageGraph, graph, lineage_root
from uwm.eval.options import EvalOptions

if TYPE_CHECKING:
    from uwm.config import RunConfig
    from uwm.report.plots import Picture

FOLDER = Path("runs/demo")
"""Where the demo's recipes have everything."""
VAL_PERCENT = 25
"""Of eight episodes the usual tenth would hold out none."""

NOTES = (
    "Six training episodes and minutes on a CPU show that the machine works, not how well the method does.",
    "Unlike published UWM the demo's network also sees the current frames' latents, and predicts their clean change "
    "instead of the noise (docs/decisions/0004-learning.md): so few samples don't carry the published settings.",
    "Finetuning here has one training episode. It is gentle on purpose, and may well cost what it does not teach.",
)


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """What the demo made."""

    ingested: tuple[Ingested, ...]
    trained: tuple[Trained, ...]
    evaluated: tuple[Evaluated, ...]
    report: Path
    root: str
    """Lineage root."""

    @property
    def reused(self) -> int:
        """How many of the trainings and evaluations had been done before."""
        return sum(item.reused for item in self.trained) + sum(item.reused for item in self.evaluated)


def run(jobs: Jobs, folder: Path, data: Path, tell: Callable[[str], None]) -> DemoResult:
    """Carry out the demo.

    Args:
        jobs: how they are carried out.
        folder: where everything goes.
        data: folder with `droid/` and `video/`.
        tell: is told, in a line each, what happens and how long it took.

    Raises:
        UserError: when a job can't be done.
    """
    clock = Clock(tell)
    robot, video = str(folder / "droid"), str(folder / "video")
    ingested = []
    sources = (
        ("droid", robot, IngestOptions(format="droid-rlds", val_percent=VAL_PERCENT)),
        ("video", video, IngestOptions(format="video", collection="video")),
    )
    for name, store, options in sources:
        done = jobs.ingest(str(data / name), store, options)
        clock(f"{store}: {done.report.added} new episodes, {done.report.present} there already")
        ingested.append(done)
    trained = []
    for name in ("tokenizer", "pretrain", "finetune"):
        checkpoint = jobs.train(demo_config(name, folder))
        clock(f"{checkpoint.record.node}: {'reused' if checkpoint.reused else 'trained'}, {checkpoint.path}")
        trained.append(checkpoint)
    _, pretrained, finetuned = trained
    task = demo_config("finetune", folder).data.datasets[0].collections
    evaluated = []
    for checkpoint, collections in ((pretrained, ()), (pretrained, task), (finetuned, task)):
        result = jobs.evaluate(checkpoint.path, robot, EvalOptions(collections=collections))
        clock(f"{result.record.node}: {'reused' if result.reused else 'evaluated'}, {result.folder}")
        evaluated.append(result)
    root = lineage_root(robot)
    report = write_demo_report(folder, trained, evaluated, graph(root))
    clock(f"report: {report}")
    return DemoResult(
        ingested=tuple(ingested), trained=tuple(trained), evaluated=tuple(evaluated), report=report, root=root
    )


def require_data(data: Path) -> None:
    """Check that the example data is there, before anything is started.

    Raises:
        UserError: when it is not.
    """
    for name in ("droid", "video"):
        if not (data / name).is_dir():
            raise UserError(f"{data / name} does not exist: run the demo in the repository's folder, or give --data")


def demo_config(name: str, folder: Path) -> "RunConfig":
    """A recipe of the demo, with all that lies in `runs/demo` by default in `folder`."""
    from uwm.settings import replace

    def moved(path: str) -> str:
        return path and str(folder / Path(path).relative_to(FOLDER))

    config = make_config(f"demo_{name}")
    tokenizer = config.policy.tokenizer
    if tokenizer is None:
        raise TypeError(f"demo_{name} has no tokenizer")
    datasets = [replace(ref, uri=moved(ref.uri)) for ref in config.data.datasets]
    return adapted(
        config,
        output=moved(config.output),
        init_from=moved(config.init_from),
        data=replace(config.data, datasets=datasets),
        policy=replace(config.policy, tokenizer=replace(tokenizer, path=moved(tokenizer.path))),
    )


class Clock:
    """Tells what was done and how long it took since the last time."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self.tell = tell
        self.last = time.monotonic()

    def __call__(self, done: str) -> None:
        """Tell one thing."""
        now = time.monotonic()
        self.tell(f"[{now - self.last:5.1f} s] {done}")
        self.last = now


def write_demo_report(
    folder: Path, trained: Sequence[Trained], evaluated: Sequence[Evaluated], lineage: LineageGraph
) -> Path:
    """Write `report.html`: loss curves, tables, predictions and where they come from."""
    from uwm.report.html import ReportEvaluation, ReportRun, write_report

    path = folder / "report.html"
    runs = [
        ReportRun(
            name=checkpoint.record.name,
            stage=str(checkpoint.record.facts.get("stage", "")),
            folder=str(Path(checkpoint.path).parent.parent),
            facts={name: str(value) for name, value in checkpoint.record.facts.items()},
        )
        for checkpoint in trained
    ]
    results = [ReportEvaluation(label=result.label, folder=result.folder) for result in evaluated]
    write_report(
        str(path),
        title="Unified World Model: demo",
        summary="Eight simulated robot episodes and two short videos; every part is the real one, only small.",
        runs=runs,
        evaluations=results,
        lineage=list(lineage.records.values()),
        pictures=[_picture(lineage)],
        notes=NOTES,
        max_examples=2,
    )
    return path


def _picture(lineage: LineageGraph) -> "Picture":
    from uwm.report.plots import Picture

    drawing = svg(lineage).encode()
    return Picture(caption="From the raw data to the results.", media_type="image/svg+xml", light=drawing)
