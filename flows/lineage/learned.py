"""The details of checkpoints and evaluations, from the JSON files that lie in their folders."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import numpy as np
from pydantic import BaseModel

from flows.lineage.sections import Section, pictures, strip, table
from storage_schemas.documents import read_document
from storage_schemas.errors import UserError
from storage_schemas.lineage.records import LineageGraph, LineageRecord, kind_of
from storage_schemas.location import locate
from uwm.earlier_configs import upgraded
from uwm.events import DatasetUse

T = TypeVar("T")

EXAMPLES = 3
_ELSEWHERE = ("data.datasets", "output", "init_from")
"""Settings that name places; the page shows those as links."""


class _State(BaseModel):
    """What the page needs of a checkpoint's state; loading the checkpoint would import torch and hash its weights."""

    digest: str
    metrics: Mapping[str, float] = {}
    datasets: tuple[DatasetUse, ...] = ()


def of_checkpoint(graph: LineageGraph, record: LineageRecord) -> list[Section]:
    """Metrics, the data it was trained on, and how its settings differ from its recipe's and its parent's.

    Raises:
        UserError: when the checkpoint can't be read or is another one by now.
    """
    state, config = _read(record, "state.json", _State), _settings(record)
    if state.digest != record.identity:
        raise UserError(f"{record.uri} is another checkpoint by now")
    metrics = [(name.replace("_", " "), f"{value:.5g}") for name, value in state.metrics.items()]
    sections = [table("Metrics", ("", "last logged value"), metrics), _trained_on(state), _against_recipe(config)]
    for parent in record.upstream:
        known = graph.records.get(parent)
        if known and kind_of(parent) == "checkpoint" and known.facts.get("stage") != "tokenizer":
            sections.append(_difference(f"Settings that differ from {parent}", config, _settings(known)))
    return sections


def _settings(record: LineageRecord) -> Mapping[str, Any]:
    return upgraded(_read(record, "config.json", dict[str, Any]))


def _trained_on(state: _State) -> Section:
    rows = [
        (
            f"{use.uri}@{use.version}",
            f"{use.weight:g}",
            ", ".join(use.collections) or "all",
            *(f"{count:,}" for count in (use.episodes, use.segments, use.action_steps)),
        )
        for use in state.datasets
    ]
    header = ("dataset", "weight", "collections", "training episodes", "segments", "known actions")
    return table("Trained on", header, rows)


def _against_recipe(config: Mapping[str, Any]) -> Section:
    from uwm.recipes import RECIPES

    recipes = ((name, make()) for name, make in RECIPES.items())
    match = next(((name, recipe) for name, recipe in recipes if recipe.name == config.get("name")), None)
    if match is None:
        return Section(title="Settings", text=f"No recipe of this version makes runs named {config.get('name')}.")
    return _difference(f"Settings that differ from the recipe {match[0]}", config, match[1].model_dump(mode="json"))


def _difference(title: str, settings: Mapping[str, Any], others: Mapping[str, Any]) -> Section:
    mine, theirs = flat(settings), flat(others)
    names = [name for name in {**theirs, **mine} if not name.startswith(_ELSEWHERE)]
    both = [(name, mine.get(name) or "-", theirs.get(name) or "-") for name in names]
    rows = [row for row in both if row[1] != row[2]]
    return table(title, ("setting", "here", "there"), rows, text="" if rows else "None.")


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as dotted names and their JSON."""
    named: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            named |= flat(value, f"{prefix}{name}.")
        else:
            named[prefix + name] = value if isinstance(value, str) else json.dumps(value)
    return named


def of_evaluation(graph: LineageGraph, record: LineageRecord) -> list[Section]:
    """The scores beside the trivial baselines, and predictions to look at.

    Raises:
        UserError: when the result can't be read.
    """
    from uwm.eval.files import load_evaluation
    from uwm.report.tables import score_rows, with_error

    result = load_evaluation(record.uri)
    rows = [
        (row.mode, f"{row.metric} {row.arrow}", row.model, row.baseline, row.reference, row.change, row.mark)
        for row in score_rows(result)
    ]
    settings = result.settings
    text = (
        f"{result.segments:,} segments of {result.episodes:,} {settings.split} episodes, seed {settings.seed}, "
        f"{settings.sample_steps} sampling steps. ▲ better, ▼ worse, ≈ not told apart from the baseline."
    )
    if result.ceiling:
        text += f" The tokenizer alone reaches {with_error(result.ceiling, 'dB')}."
    header = ("mode", "metric", "model", "baseline", "it reaches", "change", "")
    shown = pictures(_examples(record.uri))
    note = "Left to right: now, the true next frame, and what each mode named below it predicts." if shown else "None."
    return [table("Results", header, rows, text=text), Section(title="Examples", text=note, pictures=shown)]


def _examples(folder: str) -> Iterator[tuple[str, bytes]]:
    from uwm.eval.files import load_evaluation, load_examples

    result = load_evaluation(folder)
    arrays = load_examples(folder, result)
    if arrays is None:
        return
    for index, example in enumerate(result.examples[:EXAMPLES]):
        known = arrays.true_mask[index] & arrays.current_mask[index]  # (V,)
        for view in np.flatnonzero(known)[:1]:
            modes = {mode: frames[index, view] for mode, frames in arrays.frames.items()}
            jpeg = strip([arrays.current[index, view], arrays.true[index, view], *modes.values()])
            words = ["now", "true next", *modes]
            yield f"{' | '.join(words)}: step {example.step} of {example.episode_id} ({example.collection})", jpeg


def _read(record: LineageRecord, name: str, kind: type[T]) -> T:
    return read_document(locate(record.uri) / name, kind)
