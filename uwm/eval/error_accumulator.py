"""What an evaluation collects batch by batch: one number per segment, and a few segments to look at.

Dimension letters: B batch, n segments so far, E kept examples, V views, N next frames, A action
dimensions, H and W image size.
"""

from collections import defaultdict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from uwm.eval.files import ExampleArrays
from uwm.eval.result import ActionProfile, Estimate, Metric, ModeName, Score, compare, estimate


class ErrorAccumulator:
    """One number per segment for the model and for a baseline, by what is measured."""

    def __init__(self) -> None:
        self._pairs: dict[tuple[ModeName, Metric, str], list[NDArray[np.float64]]] = defaultdict(list)
        self._profiles: dict[ModeName, list[tuple[NDArray[np.float64], NDArray[np.bool_]]]] = defaultdict(list)
        self._ceiling: list[NDArray[np.float64]] = []

    def add(
        self,
        key: tuple[ModeName, Metric, str],
        model: Tensor,
        reference: Tensor,
        *,
        known: Tensor,
        episodes: NDArray[np.int64],
    ) -> None:
        """Add what the model and the named baseline reach (B,), where `known` (B,) is true."""
        self._pairs[key].append(_rows(known, episodes, model, reference))

    def add_profile(self, mode: ModeName, model: Tensor, reference: Tensor, known: Tensor) -> None:
        """Add errors by action dimension (B, A), where `known` (B, A) is true."""
        both = torch.stack([model, reference], dim=1)
        self._profiles[mode].append((both.double().cpu().numpy(), known.cpu().numpy()))

    def add_ceiling(self, values: Tensor, *, known: Tensor, episodes: NDArray[np.int64]) -> None:
        """Add the tokenizer's own PSNR (B,)."""
        self._ceiling.append(_rows(known, episodes, values))

    def scores(self) -> tuple[Score, ...]:
        """One score per mode, metric and baseline, in the order in which they were first added."""
        scores = []
        for (mode, metric, baseline), parts in self._pairs.items():
            groups, model, reference = np.concatenate(parts).T
            if len(groups):
                scores.append(compare(mode, metric, baseline, model, reference, groups.astype(np.int64)))
        return tuple(scores)

    def profiles(self) -> tuple[ActionProfile, ...]:
        """Mean errors by action dimension, of those that are known anywhere."""
        profiles = []
        for mode, parts in self._profiles.items():
            errors, known = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))  # (n, 2, A), (n, A)
            counts = known.sum(axis=0)
            if counts.any():
                means = np.where(known[:, None], errors, 0.0).sum(axis=0) / np.maximum(counts, 1)
                model, reference = (
                    tuple(float(mean) if count else None for mean, count in zip(row, counts, strict=True))
                    for row in means
                )
                profiles.append(ActionProfile(mode=mode, model=model, mean_action=reference))
        return tuple(profiles)

    def ceiling(self) -> Estimate | None:
        """The tokenizer's own PSNR, if any frame was known."""
        rows = np.concatenate(self._ceiling) if self._ceiling else np.zeros((0, 2))
        return estimate(rows[:, 1], rows[:, 0].astype(np.int64)) if len(rows) else None


def _rows(known: Tensor, episodes: NDArray[np.int64], *values: Tensor) -> NDArray[np.float64]:
    """(n, 1 + values): the episode and the values of the known samples."""
    columns = [episodes.astype(np.float64), *(value.double().cpu().numpy() for value in values)]
    kept: NDArray[np.float64] = np.stack(columns, axis=1)[known.cpu().numpy()]
    return kept


class ExampleCollector:
    """Collects what a few segments look like.

    Args:
        places: (E,) where they stand among all segments, ascending.
    """

    def __init__(self, places: NDArray[np.int64]) -> None:
        self.places = places
        self._arrays: dict[str, NDArray[np.generic]] = {}

    def add(self, name: str, values: Tensor, places: NDArray[np.int64]) -> None:
        """Keep the rows of `values` (B, ...), at `places` (B,), that belong to kept segments."""
        rows = np.flatnonzero(np.isin(places, self.places))
        if not len(rows):
            return
        kept = values[torch.from_numpy(rows).to(values.device)].cpu().numpy()
        if name not in self._arrays:
            self._arrays[name] = np.zeros((len(self.places), *kept.shape[1:]), kept.dtype)
        self._arrays[name][np.searchsorted(self.places, places[rows])] = kept

    def add_frames(self, name: str, images: Tensor, places: NDArray[np.int64]) -> None:
        """Keep the last of the frames (B, V, N, 3, H, W) in [0, 1] as bytes, channels last."""
        last = images[:, :, -1].clamp(0, 1).mul(255).round().byte()
        self.add(name, last.permute(0, 1, 3, 4, 2), places)

    def arrays(self, mean_action: Tensor) -> ExampleArrays | None:
        """All that was kept, with the mean action (A,) beside it; None when nothing was."""
        if not self._arrays:
            return None
        return ExampleArrays.from_arrays(self._arrays | {"mean_action": mean_action.cpu().numpy()})
