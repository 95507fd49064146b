"""Notices that a run diverges, and says on which samples."""

import math
import statistics
from collections import deque
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from storage_schemas.documents import write_document
from storage_schemas.errors import UserError
from storage_schemas.location import locate
from uwm.data.mixture import mixture_sampler
from uwm.train.setup import Run

DIVERGED_FILE = "diverged.json"

_ENOUGH = 20
"""Losses without which nothing counts as a spike."""
_LEAST_SPREAD = 0.1
"""Of the median: losses that hardly differ shall not make every other loss a spike."""
_SIGMA = 1.4826
"""Standard deviations of a normal distribution per median absolute deviation."""


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """The first step that went wrong."""

    step: int
    """Updates done after it."""
    loss: float
    grad_norm: float
    reason: str


class DivergenceCheck:
    """Judges the loss and the gradient norm of every step, some steps late.

    A loss that is not finite is wrong; so is one that lies further above the median of the last `window` losses than
    `limit` robust standard deviations (from the median absolute deviation). The window starts empty when a run goes on.

    Args:
        window: losses that a loss is compared with.
        limit: standard deviations; 0 leaves spikes alone.
    """

    def __init__(self, window: int, limit: float) -> None:
        self._recent: deque[float] = deque(maxlen=window)
        self._limit = limit

    def check(self, first: int, losses: Iterable[float], norms: Iterable[float]) -> Divergence | None:
        """Judge the steps from `first` on, in order; returns the first that is wrong."""
        for step, (loss, norm) in enumerate(zip(losses, norms, strict=True), first):
            reason = self._judge(loss, norm)
            if reason:
                return Divergence(step=step, loss=loss, grad_norm=norm, reason=reason)
            self._recent.append(loss)
        return None

    def _judge(self, loss: float, norm: float) -> str:
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if not math.isfinite(norm):
            return f"the gradient's norm is {norm}"
        if not self._limit or len(self._recent) < min(_ENOUGH, self._recent.maxlen or 0):
            return ""
        median = statistics.median(self._recent)
        deviation = _SIGMA * statistics.median(abs(value - median) for value in self._recent)
        bound = median + self._limit * max(deviation, _LEAST_SPREAD * abs(median))
        return f"the loss is {loss:.4g} after a median of {median:.4g}" if loss > bound else ""


def write_divergence(divergence: Divergence, run: Run) -> None:
    """Write `diverged.json` into the run's folder: what went wrong, and the samples of that step and the one before.

    The step before counts because its update made the weights that the wrong step saw. Samples follow from the seed
    and their place, so nothing was kept of them.

    Raises:
        UserError: always, saying what happened.
    """
    steps = [step for step in (divergence.step - 1, divergence.step) if step > 0]
    samples = [sample for step in steps for sample in _samples(step, run)]
    record = asdict(divergence) | {"run": run.config.name, "samples": samples}
    path = run.folder / DIVERGED_FILE
    write_document(locate(path), record)
    raise UserError(
        f"{run.config.name} diverged at step {divergence.step}: {divergence.reason}. {path} names its samples; "
        "lower optim.lr or raise optim.warmup_steps (train.spike_limit=0 lets jumps of the loss pass)"
    )


def _samples(step: int, run: Run) -> list[dict[str, object]]:
    sampler = mixture_sampler(run.members, run.config.train.seed)
    end = run.position - (run.step - step) * run.samples
    picks = [sampler.pick(position) for position in range(end - run.samples, end)]
    return [
        {
            "step": step,
            "position": pick.position,
            "dataset": run.members[pick.dataset].ref.uri,
            "version": run.members[pick.dataset].dataset.version,
            "episode": run.members[pick.dataset].dataset.episodes.episode_ids[pick.segment.episode],
            "start": pick.segment.step,
        }
        for pick in picks
    ]
