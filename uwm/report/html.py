"""The report page: one HTML file that holds everything, made from result files only."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from storage_schemas.images import data_url
from storage_schemas.lineage.records import KINDS, LineageRecord
from storage_schemas.location import locate
from uwm.eval.files import ExampleArrays, load_evaluation, load_examples
from uwm.eval.result import PSNR_FLOOR, Evaluation, Verdict
from uwm.report.curves import loss_series
from uwm.report.plots import ActionLine, Picture, action_multiples, loss_curves, thumbnail
from uwm.report.tables import MARKS, MODE_LABELS, headline_rows, number, score_rows, with_error

if TYPE_CHECKING:
    import jinja2


@dataclass(frozen=True, kw_only=True)
class ReportRun:
    """A training run to show: its name, its folder and what a reader wants to know of it."""

    name: str
    stage: str
    folder: str
    facts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ReportEvaluation:
    """An evaluation to show: how it is called in the tables, and the folder that holds it."""

    label: str
    folder: str


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One image of a strip of frames; without a source the frame is not known."""

    label: str
    source: str
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Strip:
    """The frames of one camera of one example."""

    camera: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True, kw_only=True)
class ExampleView:
    """One example as the page shows it."""

    title: str
    detail: str
    strips: tuple[Strip, ...]
    actions: Picture | None


@dataclass(frozen=True, kw_only=True)
class EvaluationView:
    """One evaluation as the page shows it."""

    label: str
    evaluation: Evaluation
    examples: tuple[ExampleView, ...]

    @property
    def verdict_counts(self) -> str:
        """How many scores beat their baseline, lose to it, or stay open."""
        verdicts = [score.verdict for score in self.evaluation.scores]
        counts = ((one.value, verdicts.count(one)) for one in Verdict)
        return ", ".join(f"{count} {name}" for name, count in counts if count)


def write_report(
    path: str,
    *,
    title: str,
    summary: str = "",
    runs: Sequence[ReportRun] = (),
    evaluations: Sequence[ReportEvaluation] = (),
    lineage: Sequence[LineageRecord] = (),
    links: Mapping[str, str] | None = None,
    pictures: Sequence[Picture] = (),
    notes: Sequence[str] = (),
    max_examples: int = 4,
) -> str:
    """Write the report as one self-contained HTML file that needs no network.

    Args:
        path: path or URI of the file.
        title: heading of the page.
        summary: a sentence under the heading.
        runs: training runs, in the order in which they ran.
        evaluations: evaluation folders, in the order of the table's columns.
        lineage: records of everything that the results come from.
        links: node id -> page about that node; links that are not http, https or relative are dropped.
        pictures: further images for the lineage section, such as its graph.
        notes: remarks on size and honesty that the reader must not miss.
        max_examples: examples shown of each evaluation.

    Returns:
        The path as given.

    Raises:
        UserError: when an evaluation is missing or damaged.
    """
    views = [_evaluation_view(one, max_examples) for one in evaluations]
    page = (
        _environment()
        .get_template("report.html")
        .render(
            title=title,
            summary=summary,
            made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            runs=[(run, loss_curves(f"{run.name} ({run.stage})", loss_series(run.folder))) for run in runs],
            views=views,
            headlines=headline_rows([view.evaluation for view in views]),
            lineage=sorted(lineage, key=lambda record: (KINDS.index(record.kind), record.created, record.node)),
            nodes={record.node for record in lineage},
            links=dict(links or {}),
            pictures=pictures,
            notes=notes,
        )
    )
    locate(path).write_bytes(page.encode())
    return path


def _environment() -> "jinja2.Environment":
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("uwm.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"data_url": data_url, "safe_link": safe_link, "number": number, "anchor": anchor}
    environment.globals |= {"score_rows": score_rows, "with_error": with_error, "MARKS": MARKS, "Verdict": Verdict}
    return environment


def safe_link(url: str) -> str:
    """`url` if a click on it can only open a page, else an empty string."""
    scheme, colon, _ = url.partition(":")
    is_relative = not colon or any(mark in scheme for mark in "/?#")
    return url if is_relative or scheme.lower() in ("http", "https") else ""


def anchor(node: str) -> str:
    """An id for a node's place on the page."""
    return "node-" + "".join(letter if letter.isalnum() else "-" for letter in node)


def _evaluation_view(source: ReportEvaluation, max_examples: int) -> EvaluationView:
    evaluation = load_evaluation(source.folder)
    arrays = load_examples(source.folder, evaluation)
    shown = range(min(max_examples, len(evaluation.examples))) if arrays else range(0)
    examples = tuple(_example_view(evaluation, arrays, index) for index in shown) if arrays else ()
    return EvaluationView(label=source.label, evaluation=evaluation, examples=examples)


def _example_view(evaluation: Evaluation, arrays: ExampleArrays, index: int) -> ExampleView:
    example = evaluation.examples[index]
    seen = np.flatnonzero(arrays.current_mask[index] | arrays.true_mask[index])
    return ExampleView(
        title=f"{example.collection}, step {example.step}",
        detail=" · ".join(part for part in (example.language, example.source_uri) if part),
        strips=tuple(_strip(evaluation, arrays, index, view) for view in seen.tolist()),
        actions=_action_picture(evaluation, arrays, index),
    )


def _strip(evaluation: Evaluation, arrays: ExampleArrays, index: int, view: int) -> Strip:
    settings = evaluation.settings
    ahead = settings.next_start + settings.next_frames - 1
    true = arrays.true[index, view] if arrays.true_mask[index, view] else None
    current = arrays.current[index, view] if arrays.current_mask[index, view] else None
    cells = [
        _cell("now (= copied last frame)", current, true),
        _cell(f"true, {ahead} steps on", true, None),
    ]
    if arrays.reconstruction is not None:
        own = arrays.reconstruction[index, view] if true is not None else None
        cells.append(_cell("tokenizer's own", own, true))
    for mode, frames in arrays.frames.items():
        if (
            mode != "forward" or arrays.action_mask[index].any(axis=1).all()
        ):  # without its actions the question was not asked
            cells.append(_cell(MODE_LABELS.get(mode, mode), frames[index, view], true))
    return Strip(camera=settings.cameras[view], cells=tuple(cells))


def _cell(label: str, frame: NDArray[np.uint8] | None, true: NDArray[np.uint8] | None) -> Cell:
    if frame is None:
        return Cell(label=label, source="", note="not recorded")
    note = "" if true is None else f"{_psnr(frame, true):.1f} dB"
    return Cell(label=label, source=data_url(thumbnail(frame), "image/png"), note=note)


def _psnr(frame: NDArray[np.uint8], true: NDArray[np.uint8]) -> float:
    mse = float(np.square((frame.astype(np.float64) - true) / 255).mean())
    return -10 * math.log10(max(mse, PSNR_FLOOR))


def _action_picture(evaluation: Evaluation, arrays: ExampleArrays, index: int) -> Picture | None:
    if not arrays.action_mask[index].any():
        return None
    example = evaluation.examples[index]
    caption = f"Action chunk of {example.collection}, step {example.step}, in the store's units."
    return action_multiples(
        caption, evaluation.settings.action_names, list(_action_lines(arrays, index)), evaluation.settings.fps
    )


def _action_lines(arrays: ExampleArrays, index: int) -> Iterator[ActionLine]:
    known = np.where(arrays.action_mask[index], arrays.action[index], np.nan)
    yield ActionLine(label="true", values=known, style="truth")
    for mode in ("inverse", "policy"):
        if mode in arrays.actions:
            yield ActionLine(label=MODE_LABELS[mode], values=arrays.actions[mode][index])
    yield ActionLine(label="mean action", values=arrays.mean_action, style="baseline")
