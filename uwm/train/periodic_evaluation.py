"""Evaluation while training: a checkpoint on held-out episodes, every so many steps.

It measures the checkpoint, in a network of its own, so it can't touch the weights, the sample order or the noise of
the run, and `uwm evaluate` of the same checkpoint gives the same numbers.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from storage_schemas.errors import UserError
from uwm.data.mixture import Member
from uwm.eval.offline import evaluate
from uwm.eval.options import EvalOptions
from uwm.eval.result import Evaluation, Score
from uwm.eval.setup import full_windows
from uwm.events import Evaluated
from uwm.train.setup import Run

FOLDER = "evaluations"
EXAMPLES = 2


class PeriodicEvaluation:
    """Measures checkpoints of a run on the held-out episodes of its datasets.

    Args:
        run: that is trained.

    Raises:
        UserError: when no dataset has a held-out episode that is long enough, or the run trains no policy.
    """

    def __init__(self, run: Run) -> None:
        if run.config.stage == "tokenizer":
            raise UserError("a tokenizer can't be evaluated while it is trained: set train.eval_every=0")
        self._run = run
        self._members = tuple(member for member in run.members if _has_windows(run, member))
        if not self._members:
            raise UserError("train.eval_every needs held-out episodes of a full window: there are none; set it to 0")

    def measure(self, checkpoint: Path) -> Iterator[Evaluated]:
        """Measure a checkpoint on every dataset with held-out episodes."""
        run = self._run
        for index, member in enumerate(self._members):
            folder = run.folder / FOLDER / f"step-{run.step:08d}-{index}"
            with torch.random.fork_rng(devices=[]):
                options = EvalOptions(
                    collections=member.ref.collections, samples=run.config.train.eval_samples, device=str(run.device)
                )
                evaluation = evaluate(str(checkpoint), member.dataset, options, examples=EXAMPLES, out=str(folder))
            yield _event(evaluation, run.step, str(folder))


def _has_windows(run: Run, member: Member) -> bool:
    episodes = member.dataset.episodes
    rows = np.asarray(episodes.select(split="val", collections=member.ref.collections), np.int64)
    lengths = np.asarray(episodes.lengths, np.int64)[rows]
    return bool(full_windows(rows, lengths, replace(run.config.data.segment_spec, stride=member.ref.stride).last, 1))


def _event(evaluation: Evaluation, step: int, folder: str) -> Evaluated:
    first: dict[str, Score] = {}
    for score in evaluation.scores:
        first.setdefault(f"{score.mode}/{score.metric}", score)
    return Evaluated(
        step=step,
        dataset=evaluation.settings.dataset_uri,
        folder=folder,
        metrics={name: score.model.mean for name, score in first.items()},
        gains={name: score.gain.mean for name, score in first.items()},
    )
