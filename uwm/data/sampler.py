"""Which segment comes at which place, computed from the place alone.

Nothing here has a state: the order of all samples of a run is a function of the seed, so a resumed
run needs one integer, and the number of loader processes does not matter. Memory grows with the
number of episodes, never with the number of steps.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from storage_schemas.episode import SegmentId

_ROUNDS = 4
_MASK64 = (1 << 64) - 1


class Pick(NamedTuple):
    """One sample of a run: its place in the order, the dataset of the mixture, the segment."""

    position: int
    dataset: int
    segment: SegmentId


class Permutation:
    """A seeded bijection of range(size) that is computed, not stored.

    A balanced Feistel network (Luby and Rackoff 1988, four rounds) over the next even number of bits;
    results outside the range are encrypted again until they fall inside (cycle walking, Black and
    Rogaway 2002), which takes fewer than four turns on average.

    Args:
        size: number of elements, at least 1.
        key: seeds the order; equal keys give equal orders.
    """

    def __init__(self, size: int, key: tuple[int, ...]) -> None:
        if size < 1:
            raise ValueError("a permutation has at least one element")
        self.size = size
        self._half = max(1, ((size - 1).bit_length() + 1) // 2)
        self._keys = [int(word) for word in np.random.SeedSequence(key).generate_state(_ROUNDS, np.uint64)]

    def __getitem__(self, index: int) -> int:
        """The element at `index`. Raises IndexError outside range(size)."""
        if not 0 <= index < self.size:
            raise IndexError(index)
        value = self._encrypt(index)
        while value >= self.size:
            value = self._encrypt(value)
        return value

    def _encrypt(self, value: int) -> int:
        mask = (1 << self._half) - 1
        left, right = value >> self._half, value & mask
        for key in self._keys:
            left, right = right, left ^ (_mix(right ^ key) & mask)
        return left << self._half | right


def _mix(value: int) -> int:
    """The finalizer of SplitMix64: every bit of the input reaches every bit of the output."""
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & _MASK64
    value = (value ^ value >> 27) * 0x94D049BB133111EB & _MASK64
    return value ^ value >> 31


def unit_draw(seed: int, position: int, stream: int) -> float:
    """A number in [0, 1) that belongs to a place in a run's order; other streams give independent ones."""
    return _mix(_mix(_mix(seed & _MASK64) + stream & _MASK64) ^ position) / (_MASK64 + 1)


@lru_cache(maxsize=64)
def _permutation(size: int, key: tuple[int, ...]) -> Permutation:
    return Permutation(size, key)


class SegmentSampler:
    """Every segment of one dataset once per epoch, each epoch in another order.

    Segments start at steps 0 .. T-2 of an episode of T steps: the last step has nothing after it to
    learn from. What lies beyond the episode's end is padding that the segment's masks leave out.

    Args:
        rows: (n,) rows of the episodes in the dataset version.
        lengths: (n,) their numbers of steps T.
        key: seeds the order.
    """

    def __init__(self, rows: NDArray[np.int64], lengths: NDArray[np.int64], key: tuple[int, ...]) -> None:
        self._rows = np.asarray(rows, np.int64)
        self._ends = np.cumsum(np.maximum(np.asarray(lengths, np.int64) - 1, 0))
        self._key = key

    def __len__(self) -> int:
        """Segments of one epoch."""
        return int(self._ends[-1]) if len(self._ends) else 0

    def draw(self, index: int) -> SegmentId:
        """The segment of the draw `index` >= 0, counted over all epochs.

        Raises:
            IndexError: when there are no segments, or `index` is negative.
        """
        if not len(self) or index < 0:
            raise IndexError(index)
        epoch, offset = divmod(index, len(self))
        number = _permutation(len(self), (*self._key, epoch))[offset]
        episode = int(np.searchsorted(self._ends, number, side="right"))
        start = int(self._ends[episode - 1]) if episode else 0
        return SegmentId(int(self._rows[episode]), number - start)
