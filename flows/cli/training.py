"""Commands about learning: train, evaluate, sample, pretrain-then-finetune."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli.console import say, say_json, say_table
from flows.cli.data import AsJson, Flow, Store, Version
from flows.cli.execution import carried_out, use_flow

if TYPE_CHECKING:
    from flows.jobs.evaluate import Evaluated
    from flows.jobs.train import Trained

Checkpoint = Annotated[str, typer.Argument(metavar="CHECKPOINT", help="Folder of a run, or of one of its checkpoints.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE ...]", help="Fields of the recipe to replace: train.steps=100")
]
Collections = Annotated[list[str] | None, typer.Option("--collection", help="Only these collections; repeatable.")]
Samples = Annotated[int, typer.Option(min=1, help="Segments to predict.")]
Seed = Annotated[int, typer.Option(help="Seed of the samples and of the noise.")]
Steps = Annotated[int | None, typer.Option(min=1, help="Sampling steps instead of the checkpoint's number.")]
Device = Annotated[str, typer.Option(help="auto takes CUDA when there is one.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command()(train)
    app.command()(evaluate)
    app.command()(sample)
    app.command("pretrain-then-finetune")(pretrain_then_finetune)


def train(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="Name of a recipe: uwm, uwm_paper, debug, ...")],
    overrides: Overrides = None,
    json: AsJson = False,
    flow: Flow = None,
) -> int:
    """Train a recipe; an interrupted run goes on from its last checkpoint, a complete one is reused.

    Ctrl-C and SIGTERM stop after the current step with a checkpoint. train.processes=8 trains on eight GPUs of this
    machine together; docs/distributed.md tells how several machines do.

    Example: uwm train debug data.datasets.0.uri=runs/droid train.steps=20
    """
    result = carried_out(flow, quiet=json).train(recipe, tuple(overrides or ()))
    if json:
        say_json({"path": result.path, "step": result.step, "reused": result.reused, "node": result.record.node})
    else:
        show_trained(result)
    return 0


def show_trained(result: "Trained") -> None:
    """Say where a run's checkpoint lies."""
    done = "was complete already" if result.reused else "is trained"
    say(f"{result.record.node} {done}: {result.path}")


def evaluate(
    checkpoint: Checkpoint,
    store: Store,
    version: Version = None,
    split: Annotated[str, typer.Option(help="train or val, the held-out episodes.")] = "val",
    collections: Collections = None,
    samples: Samples = 64,
    seed: Seed = 0,
    steps: Steps = None,
    device: Device = "auto",
    json: AsJson = False,
    flow: Flow = None,
) -> int:
    """Measure a checkpoint in all modes it has against trivial baselines.

    Example: uwm evaluate runs/demo/finetune runs/demo/droid --json
    """
    options: dict[str, Any] = {
        "version": version,
        "split": split,
        "collections": tuple(collections or ()),
        "samples": samples,
        "seed": seed,
        "steps": steps,
        "device": device,
    }
    result = carried_out(flow, quiet=json).evaluate(checkpoint, store, **options)
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
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the predictions.")] = Path("runs/samples"),
    version: Version = None,
    split: Annotated[str, typer.Option(help="train or val, the held-out episodes.")] = "val",
    collections: Collections = None,
    samples: Samples = 4,
    seed: Seed = 0,
    steps: Steps = None,
    bf16: Annotated[bool, typer.Option("--bf16", help="Sample with weights in bf16: less to read.")] = False,
    device: Device = "auto",
    json: AsJson = False,
) -> int:
    """Predict in one mode and write the predictions beside what really happened.

    Example: uwm sample runs/demo/finetune runs/demo/droid --mode forward -o runs/samples
    """
    from flows.jobs.evaluate import run_sample

    made = run_sample(
        checkpoint,
        store,
        mode,
        str(output),
        version=version,
        split=split,
        collections=tuple(collections or ()),
        samples=samples,
        seed=seed,
        steps=steps,
        precision="bf16" if bf16 else "fp32",
        device=device,
    )
    if json:
        say_json(made)
    else:
        for path in (*made.strips, made.actions):
            say(path)
    return 0


def pretrain_then_finetune(
    pretrain: Annotated[str, typer.Argument(metavar="PRETRAIN", help="Recipe of the first run.")],
    finetune: Annotated[
        str, typer.Argument(metavar="FINETUNE", help="Recipe of the second run, which starts from the first.")
    ],
    overrides: Overrides = None,
    evaluate_on: Annotated[
        list[str] | None,
        typer.Option("--evaluate", help="Evaluate both on this store's held-out episodes; repeatable."),
    ] = None,
    samples: Samples = 64,
    json: AsJson = False,
    flow: Flow = None,
) -> int:
    """Pretrain, finetune from the result, evaluate both.

    A KEY=VALUE goes to both runs; with pretrain. or finetune. before the key it goes to one of them.

    Example: uwm pretrain-then-finetune uwm uwm_finetune pretrain.train.steps=20000 --evaluate data/droid
    """
    given: dict[str, Any] = {"overrides": overrides or [], "evaluate_on": evaluate_on or [], "samples": samples}
    if use_flow(flow):
        from flows.pipeline import pretrain_then_finetune as run
        from flows.runtime.user_errors import as_function

        result = as_function(run)(pretrain, finetune, **given)
    else:
        from flows.jobs.pipeline import pretrain_then_finetune as run_plainly

        result = run_plainly(carried_out(False, quiet=json), pretrain, finetune, **given)
    if json:
        say_json(
            {
                "pretrained": result.pretrained.path,
                "finetuned": result.finetuned.path,
                "evaluations": [item.folder for item in result.evaluations],
            }
        )
        return 0
    for trained in (result.pretrained, result.finetuned):
        show_trained(trained)
    for item in result.evaluations:
        show_evaluated(item)
    return 0
