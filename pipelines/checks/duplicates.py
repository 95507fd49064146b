"""Find episodes that look like one seen before: copies in another codec, size or container.

A perceptual hash (the signs of brightness differences between neighbouring blocks, "dHash") of some frames finds the
candidates; the blocks themselves decide, for episodes recorded in one scene differ only where the arm is. Clips that
overlap, or begin at another moment, are not found. Letters: E episodes, N sampled frames, R rows, C columns of blocks.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

SAMPLES = 8
"""Frames of an episode that are compared, evenly from the first to the last."""

_HAMMING = 0.25
"""Largest share of hash bits that differ: flat regions flip them at random."""
_MEAN, _WORST = 4.0, 24.0
"""Largest mean and single difference of blocks, of 255."""


class Seen:
    """Episodes by their looks: about 200 bytes of hash and 1.5 kB of blocks for every camera of an episode."""

    def __init__(self) -> None:
        self._kinds: dict[tuple[str, ...], _Kind] = {}

    def add(self, name: str, sketches: Mapping[str, NDArray[np.float32]]) -> str | None:
        """Take an episode, by camera (N, R, C); returns the name of an earlier one that looks the same."""
        kind = self._kinds.setdefault(tuple(sorted(sketches)), _Kind())
        return kind.add(name, np.stack([sketches[camera] for camera in sorted(sketches)]))


class _Kind:
    """Episodes with the same cameras."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._hashes = np.empty((0, 0), np.uint8)
        self._blocks = np.empty((0, 0), np.uint8)

    def add(self, name: str, blocks: NDArray[np.float32]) -> str | None:
        bits = np.packbits(np.diff(blocks, axis=-1) > 0)
        flat = blocks.round().clip(0, 255).astype(np.uint8).reshape(-1)
        like = self._find(bits, flat)
        self._grow(len(bits), len(flat))
        self._hashes[len(self._names)], self._blocks[len(self._names)] = bits, flat
        self._names.append(name)
        return None if like is None else self._names[like]

    def _find(self, bits: NDArray[np.uint8], flat: NDArray[np.uint8]) -> int | None:
        count = len(self._names)
        if not count:
            return None
        differing = np.bitwise_count(self._hashes[:count] ^ bits).sum(axis=1, dtype=np.int64)
        for candidate in np.flatnonzero(differing <= _HAMMING * 8 * len(bits)).tolist():
            distance = np.abs(self._blocks[candidate].astype(np.int16) - flat)
            if distance.mean() <= _MEAN and distance.max() <= _WORST:
                return int(candidate)
        return None

    def _grow(self, bits: int, blocks: int) -> None:
        count = len(self._names)
        if count == len(self._hashes):
            room = max(64, count)
            self._hashes = np.concatenate([self._hashes.reshape(count, bits), np.zeros((room, bits), np.uint8)])
            self._blocks = np.concatenate([self._blocks.reshape(count, blocks), np.zeros((room, blocks), np.uint8)])
