"""Result tables: typed text rows that the report, the command line and the flows all print."""

from collections.abc import Sequence
from dataclasses import dataclass

from storage_schemas.markdown import table
from uwm.eval.result import Estimate, Evaluation, Metric, Score, Verdict

MODE_LABELS = {
    "policy": "policy",
    "forward": "forward dynamics",
    "inverse": "inverse dynamics",
    "video": "video prediction",
    "joint": "joint prediction",
}
METRIC_LABELS = {
    Metric.ACTION_MSE: "action MSE",
    Metric.ACTION_L1: "action L1",
    Metric.LATENT_MSE: "latent MSE",
    Metric.PIXEL_MSE: "pixel MSE",
    Metric.PSNR: "PSNR",
}
MARKS = {Verdict.BETTER: "▲", Verdict.WORSE: "▼", Verdict.UNRESOLVED: "≈"}
HEADLINES = (
    ("forward", Metric.LATENT_MSE),
    ("forward", Metric.PSNR),
    ("video", Metric.LATENT_MSE),
    ("video", Metric.PSNR),
    ("inverse", Metric.ACTION_MSE),
    ("policy", Metric.ACTION_MSE),
)
"""What a run is first judged by: the four single questions; images in latents and in pixels."""


@dataclass(frozen=True, kw_only=True)
class ScoreRow:
    """One line of a result table, ready to print."""

    mode: str
    metric: str
    arrow: str
    """Which direction is good: ↑ or ↓."""
    model: str
    baseline: str
    reference: str
    change: str
    """The model against the baseline: per cent of the error removed, or dB gained; signed, + is good."""
    verdict: Verdict

    @property
    def mark(self) -> str:
        """▲ better, ▼ worse, ≈ not told apart."""
        return MARKS[self.verdict]


@dataclass(frozen=True, kw_only=True)
class HeadlineRow:
    """One question over several evaluations."""

    label: str
    baseline: str
    cells: tuple[ScoreRow | None, ...]


def number(value: float) -> str:
    """Three significant digits, never in exponent notation between 0.0001 and 100000."""
    if value == 0:
        return "0"
    if 1e-4 <= abs(value) < 1e5:
        digits = max(0, 2 - _exponent(value))
        return f"{value:.{digits}f}"
    return f"{value:.2e}"


def _exponent(value: float) -> int:
    return int(f"{abs(value):.2e}".partition("e")[2])


def with_error(estimate: Estimate, unit: str = "") -> str:
    """`0.123 ± 0.004 dB`, the error to two significant digits and the mean to the same place."""
    tail = f" {unit}" if unit else ""
    if estimate.error == 0:
        return number(estimate.mean) + tail
    digits = max(0, min(6, 1 - _exponent(estimate.error)))
    return f"{estimate.mean:.{digits}f} ± {estimate.error:.{digits}f}{tail}"


def score_row(score: Score) -> ScoreRow:
    """The text of one score."""
    return ScoreRow(
        mode=MODE_LABELS[score.mode],
        metric=METRIC_LABELS[score.metric],
        arrow="↑" if score.metric.higher_is_better else "↓",
        model=with_error(score.model, score.metric.unit),
        baseline=score.baseline,
        reference=with_error(score.reference, score.metric.unit),
        change=_change(score),
        verdict=score.verdict,
    )


def _change(score: Score) -> str:
    if score.metric is Metric.PSNR:
        return _signed(f"{score.gain.mean:+.2f} ± {score.gain.error:.2f} dB")
    if score.reference.mean == 0:
        return "baseline exact"
    return _signed(f"{round(100 * score.gain.mean):+d} ± {round(100 * score.gain.error)} %")


def _signed(text: str) -> str:
    return text.replace("-", "−")


def score_rows(evaluation: Evaluation) -> tuple[ScoreRow, ...]:
    """Every score of an evaluation, in its order."""
    return tuple(score_row(score) for score in evaluation.scores)


def headline_rows(evaluations: Sequence[Evaluation]) -> tuple[HeadlineRow, ...]:
    """The headline questions, with one cell per evaluation; questions that none answers are left out."""
    rows = []
    for mode, metric in HEADLINES:
        scores = [evaluation.score(mode, metric) for evaluation in evaluations]
        first = next((score for score in scores if score), None)
        if first:
            cells = tuple(score_row(score) if score else None for score in scores)
            label = f"{MODE_LABELS[mode]}, {METRIC_LABELS[metric]}"
            rows.append(HeadlineRow(label=label, baseline=first.baseline, cells=cells))
    return tuple(rows)


def markdown_table(evaluation: Evaluation) -> str:
    """The result table as GitHub markdown."""
    head = ("mode", "metric", "model", "baseline", "it reaches", "change", "")
    body = (
        (row.mode, f"{row.metric} {row.arrow}", row.model, row.baseline, row.reference, row.change, row.mark)
        for row in score_rows(evaluation)
    )
    return table(head, body)
