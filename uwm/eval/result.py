"""What an evaluation says: plain numbers with their uncertainty, JSON in and out, no torch."""

import math
from collections.abc import Mapping
from enum import StrEnum
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

ModeName = Literal["policy", "forward", "inverse", "video", "joint"]

PSNR_FLOOR = 1 / (12 * 255**2)
"""Mean squared error of rounding to 8 bits; a smaller one can't be told from equal images."""


class Result(BaseModel):
    """Base of all results: immutable, every number finite, an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Metric(StrEnum):
    """What is measured; each metric is a mean over segments."""

    ACTION_MSE = "action_mse"
    ACTION_L1 = "action_l1"
    LATENT_MSE = "latent_mse"
    PIXEL_MSE = "pixel_mse"
    PSNR = "psnr"

    @property
    def higher_is_better(self) -> bool:
        """Whether a larger number is the better one."""
        return self is Metric.PSNR

    @property
    def unit(self) -> str:
        """The unit, as text; empty for pure numbers."""
        return "dB" if self is Metric.PSNR else ""


ACTION_METRICS = (Metric.ACTION_MSE, Metric.ACTION_L1)
NEXT_METRICS = (Metric.LATENT_MSE, Metric.PIXEL_MSE, Metric.PSNR)
METRICS_OF: Mapping[ModeName, tuple[Metric, ...]] = {
    "forward": NEXT_METRICS,
    "inverse": ACTION_METRICS,
    "policy": ACTION_METRICS,
    "video": NEXT_METRICS,
    "joint": (*ACTION_METRICS, *NEXT_METRICS),
}
"""What is measured of a mode: what it predicts."""


class Verdict(StrEnum):
    """How a model compares with a baseline on the same segments."""

    BETTER = "better"
    WORSE = "worse"
    UNRESOLVED = "unresolved"


class Estimate(Result):
    """A mean over segments."""

    mean: float
    error: float = Field(ge=0, description="standard error of the mean")
    count: int = Field(gt=0, description="segments")


class Score(Result):
    """One metric of one mode, beside one trivial baseline on exactly the same segments."""

    mode: ModeName
    metric: Metric
    model: Estimate
    baseline: str
    reference: Estimate = Field(description="what the baseline reaches")
    gain: Estimate = Field(
        description="share of the baseline's error that the model removes, or dB gained; positive is good"
    )

    @property
    def verdict(self) -> Verdict:
        """Better or worse only where the gain exceeds two standard errors of several segments."""
        if self.gain.count < 2 or abs(self.gain.mean) <= 2 * self.gain.error:
            return Verdict.UNRESOLVED
        return Verdict.BETTER if self.gain.mean > 0 else Verdict.WORSE


class ActionProfile(Result):
    """Mean absolute error of every action dimension, in the store's units; None of one that the data does not have."""

    mode: ModeName
    model: tuple[float | None, ...]
    mean_action: tuple[float | None, ...]


class Example(Result):
    """One segment whose predictions are kept in `examples.npz`, at this position of every array."""

    episode_id: str
    source_uri: str
    collection: str
    step: int = Field(ge=0)
    language: str = ""


class Settings(Result):
    """What was evaluated, on what, and how; enough to repeat it."""

    checkpoint: str
    checkpoint_identity: str = Field(description="digest of the checkpoint")
    run: str
    stage: str
    step: int = Field(ge=0)
    weights: Literal["ema", "raw"]
    parameters: int = Field(gt=0)
    tokenizer: str = Field("", description="fingerprint of the latent tokenizer")
    dataset_uri: str
    dataset_version: int = Field(ge=0)
    dataset_id: str = Field(description="identity of the dataset's log")
    split: str
    collections: tuple[str, ...] = ()
    cameras: tuple[str, ...]
    action_names: tuple[str, ...]
    image_size: tuple[int, int]
    next_start: int = Field(ge=0, description="steps from the current frame to the first predicted one")
    next_frames: int = Field(gt=0)
    fps: float = Field(gt=0)
    seed: int
    batch_size: int = Field(gt=0)
    sample_steps: int = Field(gt=0)
    requested: int = Field(gt=0, description="segments asked for")
    normalizer: str = Field("", description="checkpoint in whose units action errors are told; empty is its own")


class Evaluation(Result):
    """The result of one checkpoint on one dataset version."""

    format: Literal[1] = 1
    settings: Settings
    segments: int = Field(gt=0)
    episodes: int = Field(gt=0)
    short_episodes: int = Field(ge=0, description="episodes of the split too short for one full window")
    scores: tuple[Score, ...]
    actions: tuple[ActionProfile, ...] = ()
    ceiling: Estimate | None = Field(None, description="PSNR of the tokenizer's own reconstruction, in dB")
    examples: tuple[Example, ...] = ()
    examples_sha256: str = ""
    seconds: float = Field(ge=0)

    def score(self, mode: str, metric: Metric, baseline: str | None = None) -> Score | None:
        """The score of a mode and metric (beside a named baseline, or the first), if it was measured."""
        scores = (s for s in self.scores if s.mode == mode and s.metric == metric and baseline in (None, s.baseline))
        return next(scores, None)

    def to_json(self) -> str:
        """Indented JSON text."""
        return self.model_dump_json(indent=1) + "\n"


def estimate(values: NDArray[np.float64], groups: NDArray[np.int64]) -> Estimate:
    """Mean of per-segment values, with an error that respects that segments of an episode are alike.

    The error is the larger of the usual standard error and the one clustered by episode, so a few
    long episodes never look like many independent samples.

    Args:
        values: (n,) one number per segment.
        groups: (n,) the segment's episode.

    Raises:
        ValueError: when there is no value, or one is not finite.
    """
    if not len(values) or not np.isfinite(values).all():
        raise ValueError("an estimate needs finite values")
    count = len(values)
    residual = values - values.mean()
    plain = math.sqrt(float((residual**2).sum()) / (count * (count - 1))) if count > 1 else 0.0
    sums = np.bincount(np.unique(groups, return_inverse=True)[1], weights=residual)
    clusters = len(sums)
    clustered = math.sqrt(float((sums**2).sum()) * clusters / (clusters - 1)) / count if clusters > 1 else 0.0
    return Estimate(mean=float(values.mean()), error=max(plain, clustered), count=count)


def compare(
    mode: ModeName,
    metric: Metric,
    baseline: str,
    model: NDArray[np.float64],
    reference: NDArray[np.float64],
    groups: NDArray[np.int64],
) -> Score:
    """Pair the per-segment numbers (n,) of a model and a baseline; `groups` (n,) are the segments' episodes."""
    return Score(
        mode=mode,
        metric=metric,
        model=estimate(model, groups),
        baseline=baseline,
        reference=estimate(reference, groups),
        gain=estimate(_gains(metric, model, reference), groups),
    )


def _gains(metric: Metric, model: NDArray[np.float64], reference: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n,) numbers whose mean is the gain and whose spread is that of the gain.

    For errors that is one minus the ratio of the means, linearized (the delta method): a model that
    removes the same share everywhere is no less certain where some episodes are harder than others.
    """
    if metric.higher_is_better:
        return model - reference
    scale = reference.mean()
    if scale == 0:  # nothing to remove: a baseline without error can only be met
        return np.where(model > 0, -1.0, 0.0)
    ratio = float(model.mean() / scale)
    gains: NDArray[np.float64] = 1 - ratio + (ratio * reference - model) / scale
    return gains
