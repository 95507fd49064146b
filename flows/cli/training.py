"""Commands about training: train, latents, pretrain-then-finetune, ablate."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.console import count, note, say, say_json, say_table
from flows.cli.evaluation import show_evaluated
from flows.cli.jobs import LocalJobs, jobs_of, use_flow
from flows.cli.options import AsJson, Flow, Overrides, Store
from flows.jobs.options import LatentsOptions, RunnerOptions
from uwm.eval.options import EVAL_DEFAULTS, EvalOptions

if TYPE_CHECKING:
    from flows.jobs.train import Trained

Ablations = Annotated[
    str,
    typer.Option(
        help="Ablations, with commas between them: registers, masked-loss, augmentation, ema, conventions, prediction, "
        "adaln, token-dropout; all by default."
    ),
]
Samples = Annotated[int, typer.Option(min=1, help="Segments to predict.")]


def train(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="Name of a recipe: uwm, uwm_paper, debug, ...")],
    overrides: Overrides = None,
    json: AsJson = False,
    flow: Flow = None,
) -> int:
    """Train a recipe; an interrupted run goes on from its last checkpoint, a complete one is reused.

    Ctrl-C, SIGTERM and a closed terminal stop after the current step with a checkpoint. train.processes=8 trains on
    eight GPUs of this machine together; docs/distributed.md tells how several machines do.

    Example: uwm train debug data.datasets.0.uri=runs/droid train.steps=20
    """
    from flows.jobs.train import make_config

    result = jobs_of(flow, quiet=json).train(make_config(recipe, overrides or ()))
    if json:
        say_json({"path": result.path, "step": result.step, "reused": result.reused, "node": result.record.node})
    else:
        show_trained(result)
    return 0


def show_trained(result: "Trained") -> None:
    """Say where a run's checkpoint lies."""
    done = "was complete already" if result.reused else "is trained"
    say(f"{result.record.node} {done}: {result.path}")


def latents(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="Recipe of the run that shall train on them.")],
    options: LatentsOptions,
    runner: RunnerOptions,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE ...]", help="Fields of the recipe: data.latents=NAME")
    ] = None,
    json: AsJson = False,
    flow: Flow = None,
) -> int:
    """Encode the datasets of a run once, so that it trains without its tokenizer.

    Killed or given again after new episodes came, it encodes only what is missing. Train with the same settings.

    Example: uwm latents uwm data.datasets.0.uri=stores/droid data.latents=k4 --variants 4
    """
    pairs = tuple(overrides or ())
    if use_flow(flow):
        from flows.encode_latents import latents as run
        from flows.runtime.user_errors import as_function

        reports = as_function(run)(recipe, pairs, options=options, runner=runner)
    else:
        from flows.jobs.train import make_config

        reports = LocalJobs(quiet=json).encode(make_config(recipe, pairs), options, runner)
    if json:
        say_json([asdict(report) for report in reports])
    for report in () if json else reports:
        done = f"{count(report.encoded, 'latent')} encoded, {report.present:,} there already"
        say(f"{report.uri} version {report.version}, latents {report.name}: {done}")
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
    samples: Samples = EVAL_DEFAULTS.samples,
    json: AsJson = False,
    flow: Flow = None,
) -> int:
    """Pretrain, finetune from the result, evaluate both.

    A KEY=VALUE goes to both runs; with pretrain. or finetune. before the key it goes to one of them.

    Example: uwm pretrain-then-finetune uwm uwm_finetune pretrain.train.steps=20000 --evaluate data/droid
    """
    from flows.jobs.pipeline import overrides_of
    from flows.jobs.pipeline import pretrain_then_finetune as run_plainly
    from flows.jobs.train import make_config

    pairs, stores, options = tuple(overrides or ()), tuple(evaluate_on or ()), EvalOptions(samples=samples)
    first = make_config(pretrain, overrides_of("pretrain", pairs))
    second = make_config(finetune, overrides_of("finetune", pairs))
    if use_flow(flow):
        from flows.pipeline import pretrain_then_finetune as run
        from flows.runtime.user_errors import as_function

        result = as_function(run)(pretrain, finetune, pairs, stores, options)
    else:
        jobs = LocalJobs(quiet=json)
        result = run_plainly(jobs, first, second, evaluate_on=stores, options=options)
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


def ablate(
    base: Annotated[str, typer.Argument(metavar="BASE", help="Recipe that every variant changes in one thing.")],
    store: Store,
    overrides: Overrides = None,
    variants: Ablations = "",
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each variant; more than before add to a study.")] = 3,
    output: Annotated[
        Path, typer.Option("--out", "--output", "-o", help="Folder for runs, results log and table.")
    ] = Path("runs/ablations"),
    samples: Samples = EVAL_DEFAULTS.samples,
    json: AsJson = False,
    flow: Flow = None,
) -> int:
    """Train variants of a recipe that differ in one thing, and compare them on the same held-out segments.

    A study that was stopped goes on where it stood, and finished runs are reused. Every run is a line of results.jsonl;
    ablations.md has mean and standard error over the seeds.

    Example: uwm ablate debug runs/droid train.steps=200 --variants registers,ema --seeds 3
    """
    from flows.jobs.ablations import run_ablations

    study = run_ablations(
        jobs_of(flow, quiet=True),
        base,
        store,
        overrides=tuple(overrides or ()),
        ablations=[name for name in variants.split(",") if name.strip()],
        seeds=seeds,
        out=str(output),
        samples=samples,
        tell=note,
    )
    if json:
        say_json(study)
        return 0
    head, *body = study.lines
    say_table("", head, body)
    say(f"{study.runs} runs, {study.reused} of them reused; log: {study.log}, table: {study.table}")
    return 0


COMMANDS = (train, latents, pretrain_then_finetune, ablate)
