"""The whole method on the example data: ingest, train, finetune, evaluate, report. Imports no prefect."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.jobs.evaluate import Evaluated
from flows.jobs.ingest import Ingested
from flows.jobs.pipeline import Steps
from flows.jobs.train import Trained
from flows.lineage.picture import svg
from flows.runtime.server import client_environment, configured_api_url, local_server, require_server
from storage_schemas.errors import UserError
from storage_schemas.lineage.records import LineageGraph, graph, lineage_root

if TYPE_CHECKING:
    from uwm.report.plots import Picture

VAL_PERCENT = 25
"""Of eight episodes the usual tenth would hold out none."""
SAMPLES = 64


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


def run(steps: Steps, folder: Path, data: Path, tell: Callable[[str], None]) -> DemoResult:
    """Carry out the demo.

    Args:
        steps: how the jobs are carried out.
        folder: where everything goes.
        data: folder with `droid/` and `video/`.
        tell: is told, in a line each, what happens and how long it took.

    Raises:
        UserError: when a job can't be done.
    """
    clock = Clock(tell)
    robot, video = str(folder / "droid"), str(folder / "video")
    ingested = []
    sources: tuple[tuple[str, str, dict[str, Any]], ...] = (
        ("droid", robot, {"format": "droid-rlds", "val_percent": VAL_PERCENT}),
        ("video", video, {"format": "video", "collection": "video"}),
    )
    for name, store, options in sources:
        done = steps.ingest(str(data / name), store, **options)
        clock(f"{store}: {done.report.added} new episodes, {done.report.present} there already")
        ingested.append(done)
    trained = []
    for name in ("tokenizer", "pretrain", "finetune"):
        made = steps.train(f"demo_{name}", demo_overrides(name, folder))
        clock(f"{made.record.node}: {'reused' if made.reused else 'trained'}, {made.path}")
        trained.append(made)
    _, pretrained, finetuned = trained
    task = finetuned_on()
    evaluated = []
    for made, collections in ((pretrained, ()), (pretrained, task), (finetuned, task)):
        result = steps.evaluate(made.path, robot, collections=collections, samples=SAMPLES)
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


def demo_overrides(name: str, folder: Path) -> tuple[str, ...]:
    """What the demo's recipes need to know of where the demo is."""
    places = (f"output={folder / name}", f"data.datasets.0.uri={folder / 'droid'}")
    if name == "pretrain":
        return (*places, f"data.datasets.1.uri={folder / 'video'}", f"tokenizer.path={folder / 'tokenizer'}")
    if name == "finetune":
        return (*places, f"init_from={folder / 'pretrain'}")
    return places


def finetuned_on() -> tuple[str, ...]:
    """The collections that the demo finetunes on, and measures the result on."""
    from uwm.recipes import get_recipe

    return get_recipe("demo_finetune").data.datasets[0].collections


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
            name=made.record.name,
            stage=str(made.record.facts.get("stage", "")),
            folder=str(Path(made.path).parent.parent),
            facts={name: str(value) for name, value in made.record.facts.items()},
        )
        for made in trained
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


@contextlib.contextmanager
def flow_steps(folder: Path, tell: Callable[[str], None]) -> Iterator[Steps]:
    """The jobs as flows: on the configured server, or on a private one for as long as the block runs."""
    configured = configured_api_url()
    if configured:
        require_server(configured)
        yield _as_flows()
        return
    tell("starting a Prefect server of its own, this takes up to a minute")
    with local_server(folder / "prefect") as server:
        os.environ.update(client_environment(server))  # before prefect is imported: it reads its settings once
        yield _as_flows()


def _as_flows() -> Steps:
    from flows.pipeline import as_flows

    return as_flows()
