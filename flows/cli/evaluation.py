"""Commands that ask a checkpoint: evaluate, sample."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.console import say, say_json, say_table
from flows.cli.jobs import jobs_of
from flows.cli.options import AsJson, Checkpoint, Flow, Store
from uwm.eval.options import EvalOptions, SampleOptions

if TYPE_CHECKING:
    from flows.jobs.evaluate import Evaluated
    from uwm.device import Precision


def evaluate(
    checkpoint: Checkpoint,
    store: Store,
    options: EvalOptions,
    json: AsJson = False,
    flow: Flow = None,
) -> int:
    """Measure a checkpoint in all modes it has against trivial baselines.

    Example: uwm evaluate runs/demo/finetune runs/demo/droid --json
    """
    result = jobs_of(flow, quiet=json).evaluate(checkpoint, store, options)
    if json:
        say(result.evaluation.to_json().rstrip())
    else:
        show_evaluated(result)
    return 0


def show_evaluated(result: "Evaluated") -> None:
    """Print the table of a result."""
    from uwm.report.tables import score_rows

    header = ("mode", "metric", "model", "baseline", "it reaches", "change", "")
    rows = [
        (row.mode, f"{row.metric} {row.arrow}", row.model, row.baseline, row.reference, row.change, row.mark)
        for row in score_rows(result.evaluation)
    ]
    say_table(result.record.node, header, rows)
    say(f"{'was made before' if result.reused else 'written'}: {result.folder}")


def sample(
    checkpoint: Checkpoint,
    store: Store,
    mode: Annotated[str, typer.Option(help="policy, forward, inverse, video or joint.")],
    options: SampleOptions,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the predictions.")] = Path("runs/samples"),
    bf16: Annotated[bool, typer.Option("--bf16", help="Sample with weights in bf16: less to read.")] = False,
    json: AsJson = False,
) -> int:
    """Predict in one mode and write the predictions beside what really happened.

    Example: uwm sample runs/demo/finetune runs/demo/droid --mode forward -o runs/samples
    """
    from flows.jobs.evaluate import run_sample

    precision: Precision = "bf16" if bf16 else "fp32"
    files = run_sample(checkpoint, store, mode, str(output), options, precision=precision)
    if json:
        say_json(files)
    else:
        for path in (*files.strips, files.actions):
            say(path)
    return 0


COMMANDS = (evaluate, sample)
