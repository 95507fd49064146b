"""What LeRobot wants to know of each feature: least, largest, mean, deviation and count, by episode and over all.

Letters: T steps, D numbers of a step, N sampled frames, H, W height and width in pixels.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NAMES = ("min", "max", "mean", "std", "count")


@dataclass(frozen=True, kw_only=True)
class Stats:
    """Of one feature, over the first axis."""

    min: NDArray[np.float64]
    max: NDArray[np.float64]
    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    count: int

    def to_dict(self, shape: tuple[int, ...]) -> Mapping[str, object]:
        """As JSON and Parquet hold it, each in that shape; the count is a list of one."""
        values = {name: getattr(self, name).reshape(shape).tolist() for name in NAMES[:-1]}
        return values | {"count": [self.count]}


def of_numbers(values: NDArray[np.generic]) -> Stats:
    """Statistics of (T, D)."""
    numbers = values.astype(np.float64)
    return Stats(
        min=numbers.min(axis=0),
        max=numbers.max(axis=0),
        mean=numbers.mean(axis=0),
        std=numbers.std(axis=0),
        count=len(numbers),
    )


def of_frames(frames: NDArray[np.uint8]) -> Stats:
    """Statistics of the channels of frames (N, H, W, 3), in [0, 1]; the count is of frames, as LeRobot has it."""
    pixels = of_numbers(frames.reshape(-1, 3))
    return Stats(
        min=pixels.min / 255, max=pixels.max / 255, mean=pixels.mean / 255, std=pixels.std / 255, count=len(frames)
    )


def combined(parts: Iterable[Stats]) -> Stats:
    """Statistics over all parts."""
    all_parts = list(parts)
    counts = np.array([part.count for part in all_parts], np.float64)[:, None]
    means = np.stack([part.mean for part in all_parts])
    squares = np.stack([part.std for part in all_parts]) ** 2 + means**2
    mean = (means * counts).sum(axis=0) / counts.sum()
    variance = (squares * counts).sum(axis=0) / counts.sum() - mean**2
    return Stats(
        min=np.min([part.min for part in all_parts], axis=0),
        max=np.max([part.max for part in all_parts], axis=0),
        mean=mean,
        std=np.sqrt(np.maximum(variance, 0)),
        count=int(counts.sum()),
    )
