"""Actions, and other numbers, of a remote dataset in memory that all loader processes share.

On a local disk the operating system's cache is that memory already, and actions are read from the files. On an
object store a read per sample would double the requests.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from storage_schemas.errors import DamagedError, UserError
from storage_schemas.store.dataset import Dataset

_READERS = 32


class ActionTable:
    """All actions of some episodes; pickling it to a worker shares the memory.

    Args:
        dataset: a dataset version.
        rows: the episodes.

    Raises:
        DamagedError: when an array is shorter than the episodes say.
    """

    def __init__(self, dataset: Dataset, rows: Sequence[int] | NDArray[np.int64]) -> None:
        episodes = dataset.episodes
        used = np.asarray(rows, np.int64)
        used = used[episodes.action_steps[used] > 0]
        lengths = episodes.lengths[used]
        self._starts = starts_of(dataset, used)
        self._lengths = episodes.lengths
        self._action = torch.zeros(int(lengths.sum()), dataset.spec.action_dim)
        self._mask = torch.zeros(int(lengths.sum()), dtype=torch.bool)
        read_whole(dataset, used, self._starts, {"action": self._action, "mask/action": self._mask})
        for table in (self._action, self._mask):
            table.share_memory_()  # type: ignore[no-untyped-call]

    def actions(self, episode: int, step: int, count: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """See `Dataset.actions`."""
        action = np.zeros((count, self._action.shape[1]), np.float32)
        mask = np.zeros(count, np.bool_)
        first = int(self._starts[episode])
        if first >= 0:
            inside = min(count, int(self._lengths[episode]) - step)
            action[:inside] = self._action[first + step : first + step + inside]
            mask[:inside] = self._mask[first + step : first + step + inside]
        return action, mask


def starts_of(dataset: Dataset, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """For every episode the place of its first step among the steps of `rows`, one after the other; -1 for others."""
    lengths = dataset.episodes.lengths[rows]
    starts = np.full(len(dataset.episodes), -1, np.int64)
    starts[rows] = np.cumsum(lengths) - lengths
    return starts


def read_whole(
    dataset: Dataset, rows: NDArray[np.int64], starts: NDArray[np.int64], targets: Mapping[str, Tensor]
) -> None:
    """Fill tensors with all steps of some episodes, in one request per array and part.

    Args:
        dataset: a dataset version.
        rows: the episodes, all of which have the arrays.
        starts: for every episode of the dataset, where its steps begin in the targets.
        targets: name of an array -> (steps, ...) what to fill.

    Raises:
        DamagedError: when an array is shorter than the episodes say.
        UserError: when it is wider or narrower than its target.
    """
    by_part: dict[str, list[int]] = {}
    for row in rows.tolist():
        by_part.setdefault(dataset.episodes.parts[row], []).append(row)
    with ThreadPoolExecutor(_READERS) as pool:
        list(pool.map(lambda members: _read_part(dataset, members, starts, targets), by_part.values()))


def _read_part(dataset: Dataset, rows: Sequence[int], starts: NDArray[np.int64], targets: Mapping[str, Tensor]) -> None:
    part, arrays = dataset.episodes.parts[rows[0]], dataset.schema(rows[0]).numbers
    for name, target in targets.items():
        array = arrays[name]
        if array.shape(0)[1:] != tuple(target.shape[1:]):
            raise UserError(f"{part}/{name} has {array.width} numbers, not {tuple(target.shape[1:])}")
        data = dataset.reader().whole(f"{part}/{array.key}")
        for row in rows:
            length, first = int(dataset.episodes.lengths[row]), int(starts[row])
            begin = int(dataset.episodes.starts[row]) * array.row_bytes
            values = data[begin : begin + length * array.row_bytes]
            if len(values) != length * array.row_bytes:
                raise DamagedError(f"{part}/{name} is cut short")
            target[first : first + length] = torch.from_numpy(array.parse(values).copy())


def share_actions(dataset: Dataset, rows: NDArray[np.int64]) -> ActionTable | None:
    """The table of a remote dataset; None for a local one, whose files the system's cache shares."""
    return None if dataset.is_local else ActionTable(dataset, rows)
