"""The command about normalizers: scale."""

from enum import StrEnum
from typing import Annotated

import typer

from flows.cli.console import say, say_table
from flows.cli.data import AsJson, Store, Version


class How(StrEnum):
    """What becomes [-1, 1]."""

    MIN_MAX = "min_max"
    QUANTILE = "quantile"
    Z_SCORE = "z_score"


class Split(StrEnum):
    """Which episodes count."""

    TRAIN = "train"
    VAL = "val"
    ALL = "all"


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command()(scale)


def scale(
    store: Store,
    version: Version = None,
    split: Annotated[Split, typer.Option(help="Episodes that count.")] = Split.TRAIN,
    how: Annotated[How, typer.Option(help="All actions, percentiles 1 to 99, or mean and deviation.")] = How.MIN_MAX,
    collections: Annotated[
        list[str] | None, typer.Option("--collection", help="Only these collections; repeatable.")
    ] = None,
    json: AsJson = False,
) -> int:
    """Show the action normalizer of a dataset version's split; no image is read.

    Example: uwm scale runs/droid --how quantile --split val --json
    """
    from uwm.data.mixture import dataset_normalizer

    chosen = None if split is Split.ALL else split.value
    found = dataset_normalizer(store, version, split=chosen, collections=tuple(collections or ()), scale=how.value)
    if json:
        say(found.model_dump_json(indent=1))
        return 0
    rows = [tuple(f"{value:.5g}" for value in row) for row in zip(found.low, found.high, found.mean, strict=True)]
    say_table(f"{store}, {found.count:,} steps, {found.scale}", ("becomes -1", "becomes 1", "mean"), rows)
    return 0
