"""The command `uwm ablate`."""

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.console import note, say, say_json, say_table
from flows.cli.data import AsJson, Flow, Store
from flows.cli.execution import jobs_of
from flows.cli.training import Overrides, Samples

Ablations = Annotated[
    str,
    typer.Option(
        help="Ablations, with commas between them: registers, masked-loss, augmentation, ema, conventions, prediction, "
        "adaln, token-dropout; all by default."
    ),
]


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command()(ablate)


def ablate(
    base: Annotated[str, typer.Argument(metavar="BASE", help="Recipe that every variant changes in one thing.")],
    store: Store,
    overrides: Overrides = None,
    variants: Ablations = "",
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each variant; more than before add to a study.")] = 3,
    output: Annotated[
        Path, typer.Option("--out", "--output", "-o", help="Folder for runs, results log and table.")
    ] = Path("runs/ablations"),
    samples: Samples = 64,
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
