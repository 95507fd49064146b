"""Actions and states between the store's units and the network's [-1, 1].

The bounds come from the per-episode statistics of training episodes, those of percentiles from the
actions themselves, so no image is decoded and no validation episode counts. One normalizer serves all
datasets of one robot: the same physical action is the same number, whichever dataset it comes from. Where several
robots train together each has its own.

Dimension letters: B batch, S action steps, A action dimensions, R robots, O observation frames, D numbers of all
states.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor

from uwm.settings import Config

ZERO_RANGE = 1e-6
"""A dimension whose half range is smaller, relative to its centre or 1, is constant up to rounding."""


Scale = Literal["min_max", "quantile", "z_score"]
PERCENTILES = (1.0, 99.0)
"""Which percentiles `quantile` brings to -1 and 1."""


class NormalizerSource(Config):
    """A dataset version whose episodes of one split the bounds cover."""

    uri: str
    version: int
    collections: tuple[str, ...] = ()
    split: str | None = Field("train", description="None is all episodes")


class StateRange(Config):
    """What becomes [-1, 1] of one field of the state: all that training holds of it."""

    name: str
    low: tuple[float, ...] = Field(description="what becomes -1, by dimension, in the store's units")
    high: tuple[float, ...] = Field(description="what becomes 1")

    @model_validator(mode="after")
    def _bounds_agree(self) -> Self:
        check_bounds(self.low, self.high)
        return self

    @classmethod
    def identity(cls, name: str, dim: int) -> Self:
        """Leaves the numbers as they are; of a field that no training episode has."""
        return cls(name=name, low=(-1.0,) * dim, high=(1.0,) * dim)


class ActionNormalizer(Config):
    """Maps a range of every action dimension to [-1, 1] and back, and those of the states that a run observes.

    The range is all that training holds (`min_max`), its 1st to 99th percentile (`quantile`), or its mean
    plus and minus its standard deviation (`z_score`). A dimension of zero range is only shifted: its
    constant becomes 0, and the inverse stays exact.
    """

    scale: Scale = "min_max"
    low: tuple[float, ...] = Field(description="what becomes -1, by dimension, in the store's units")
    high: tuple[float, ...] = Field(description="what becomes 1")
    mean: tuple[float, ...] = Field(description="mean training action")
    count: int = Field(ge=0, description="training steps with a known action; 0 leaves actions unchanged")
    sources: tuple[NormalizerSource, ...] = ()
    states: tuple[StateRange, ...] = Field((), description="of the observed states, in the run's order")
    robots: Mapping[str, "ActionNormalizer"] = Field(
        {}, description="where several robots train together: that of each; the bounds above are those of all"
    )

    @model_validator(mode="after")
    def _bounds_agree(self) -> Self:
        if not len(self.low) == len(self.high) == len(self.mean) > 0:
            raise ValueError("low, high and mean have the same positive number of dimensions")
        check_bounds(self.low, self.high, self.mean)
        if any(own.action_dim != self.action_dim or own.robots for own in self.robots.values()):
            raise ValueError("the normalizers of all robots have the same dimensions, and no robots of their own")
        return self

    @classmethod
    def identity(cls, action_dim: int) -> Self:
        """Leaves actions as they are; what a run without any known action gets."""
        return cls(low=(-1.0,) * action_dim, high=(1.0,) * action_dim, mean=(0.0,) * action_dim, count=0)

    @property
    def action_dim(self) -> int:
        """A."""
        return len(self.low)

    def of(self, robot: str) -> "ActionNormalizer":
        """That of one robot; the one of all where it has none of its own."""
        return self.robots.get(robot, self)

    def normalize(self, action: Tensor, robot: Tensor | None = None, names: Sequence[str] = ()) -> Tensor:
        """Physical actions -> actions with the training range in [-1, 1].

        Args:
            action: (..., A) in the store's units; (B, S, A) where robots are given.
            robot: (B,) ids of the robots, from 1 on; 0 is none.
            names: (R,) of the robots, in the order of their ids.
        """
        if not self.robots or robot is None:
            centre, scale = self._affine(action)
            return (action - centre) / scale
        each = [own._affine(action) for own in (self, *map(self.of, names))]
        centres, scales = (torch.stack(values)[robot][:, None] for values in zip(*each, strict=True))  # (B, 1, A)
        return (action - centres) / scales

    def denormalize(self, action: Tensor) -> Tensor:
        """(..., A) normalized -> (..., A) in the store's units; the inverse of `normalize`."""
        centre, scale = self._affine(action)
        return action * scale + centre

    def normalize_states(self, states: Tensor, robot: Tensor, names: Sequence[str] = ()) -> Tensor:
        """States in the store's units -> states with the training range in [-1, 1].

        Args:
            states: (B, O, D); D is 0 without states.
            robot: (B,) ids of the robots, from 1 on; 0 is none.
            names: (R,) of the robots, in the order of their ids.
        """
        each = [own._states_affine(states) for own in (self, *map(self.of, names))]
        centres, scales = (torch.stack(values)[robot][:, None] for values in zip(*each, strict=True))  # (B, 1, D)
        return (states - centres) / scales

    def normalized_mean(self) -> Tensor:
        """(A,) float32: the mean training action as the network sees it."""
        return self.normalize(torch.tensor(self.mean, dtype=torch.float64)).float()

    def _states_affine(self, like: Tensor) -> tuple[Tensor, Tensor]:
        low = np.array([bound for part in self.states for bound in part.low])
        high = np.array([bound for part in self.states for bound in part.high])
        if len(low) != like.shape[-1]:
            raise ValueError(f"bounds of {len(low)} numbers do not fit states of {like.shape[-1]}")
        centre, scale = _centre_and_scale(low, high)
        return like.new_tensor(centre), like.new_tensor(scale)

    def _affine(self, like: Tensor) -> tuple[Tensor, Tensor]:
        centre, scale = _centre_and_scale(np.asarray(self.low), np.asarray(self.high))
        return like.new_tensor(centre), like.new_tensor(scale)


def check_bounds(low: Sequence[float], high: Sequence[float], mean: Sequence[float] = ()) -> None:
    """Raises ValueError when bounds are not finite, differ in number or are exchanged."""
    if not np.isfinite([*low, *high, *mean]).all():
        raise ValueError("bounds and mean are finite")
    if len(low) != len(high) or any(least > most for least, most in zip(low, high, strict=True)):
        raise ValueError("low is not above high")


def _centre_and_scale(
    low: NDArray[np.float64], high: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    centre = (low + high) / 2
    half = (high - low) / 2
    constant = half <= ZERO_RANGE * np.maximum(1.0, np.abs(centre))
    return centre, np.where(constant, 1.0, half)


class ActionRange(Config):
    """Reductions of the known actions of some episodes."""

    count: int = Field(ge=0)
    low: tuple[float, ...]
    high: tuple[float, ...]
    total: tuple[float, ...] = Field(description="sum over the steps")
    squares: tuple[float, ...] = Field((), description="sum of the squares; `z_score` needs it")
    known: tuple[bool, ...] = Field((), description="dimensions that it is about; empty is all")
    source: NormalizerSource


def fit_normalizer(
    ranges: Sequence[ActionRange],
    action_dim: int,
    scale: Scale = "min_max",
    actions: Sequence[NDArray[np.float32]] = (),
) -> ActionNormalizer:
    """The normalizer of all given actions together; the identity when no action is known.

    Args:
        ranges: one per dataset; those without known actions are left out.
        action_dim: A.
        scale: what becomes [-1, 1].
        actions: (n, A) known actions of each dataset with any, for `quantile`, NaN in dimensions that it lacks; every
            range weighs as many steps as it counts, however few of them are given here.

    Raises:
        ValueError: when a range has another number of dimensions.
    """
    known = [part for part in ranges if part.count]
    if not known:
        return ActionNormalizer.identity(action_dim)
    if any(len(part.low) != action_dim for part in known):
        raise ValueError(f"an action range does not have {action_dim} dimensions")
    count = sum(part.count for part in known)
    about = np.array([part.known or (True,) * action_dim for part in known])  # (ranges, A)
    counts = np.maximum(np.sum([part.count * mask for part, mask in zip(known, about, strict=True)], axis=0), 1)
    mean = np.sum([part.total for part in known], axis=0) / counts
    if scale == "min_max":
        low = np.min(np.where(about, [part.low for part in known], np.inf), axis=0)
        high = np.max(np.where(about, [part.high for part in known], -np.inf), axis=0)
    elif scale == "z_score":
        std = np.sqrt(np.maximum(np.sum([part.squares for part in known], axis=0) / counts - mean**2, 0.0))
        low, high = mean - std, mean + std
    else:
        low, high = _percentiles(known, actions)
    low, high = (np.where(about.any(axis=0), bound, side) for bound, side in ((low, -1.0), (high, 1.0)))
    return ActionNormalizer(
        scale=scale,
        low=tuple(low.tolist()),
        high=tuple(high.tolist()),
        mean=tuple(mean.tolist()),
        count=count,
        sources=tuple(part.source for part in known),
    )


def _percentiles(
    ranges: Sequence[ActionRange], actions: Sequence[NDArray[np.float32]]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The two percentiles of every dimension, over all steps of all ranges."""
    values = np.concatenate(actions).astype(np.float64)
    shares = [np.full(len(known), r.count / len(known)) for r, known in zip(ranges, actions, strict=True)]
    weights = np.concatenate(shares)
    bounds = [_weighted(column[known], weights[known]) for column in values.T for known in (~np.isnan(column),)]
    low, high = np.array(bounds).T
    return low, high


def _weighted(column: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    if not len(column):
        return np.array([-1.0, 1.0])
    return np.quantile(column, np.array(PERCENTILES) / 100, weights=weights, method="inverted_cdf")
