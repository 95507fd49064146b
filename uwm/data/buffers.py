"""Memory for frames that loader processes use again and again.

A batch of frames goes from a worker to the trainer in shared memory. The system hands out such memory page by page and
zeroed, which costs about a quarter of what decoding into it does (docs/decisions/0005). So the trainer says when it is
done with a batch, and the worker decodes a later one into the same pages. When none is free a new buffer is made:
nobody ever waits for one, and there are as many as the trainer has held batches at once.
"""

import multiprocessing
import weakref
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from storage_schemas.errors import UserError
from uwm.data.batch import RawBatch


class Ticket(NamedTuple):
    """Which buffer of which worker a batch's frames lie in."""

    worker: int
    buffer: int


class Buffers:
    """Shared buffers of all workers of one loader; pickled into each of them as it is spawned.

    Args:
        workers: loader processes.
    """

    def __init__(self, workers: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._returned = [context.SimpleQueue() for _ in range(workers)]
        # Filled by finalizers, which may run in the middle of any line: appending to a deque takes no lock that this
        # very thread could be holding, as putting into a queue does.
        self._done: deque[Ticket] = deque()
        self._buffers: list[Tensor] = []
        self._free: list[int] = []

    def take(self, shape: Sequence[int]) -> tuple[Tensor, Ticket]:
        """Room for bytes, whatever they were before; called in a worker."""
        info = get_worker_info()
        if info is None:
            raise RuntimeError("only a loader's worker takes buffers")
        returned = self._returned[info.id]
        # no race: this worker alone takes out of its queue
        while not returned.empty():
            self._free.append(returned.get())
        size = torch.Size(shape).numel()
        number = next((i for i in self._free if len(self._buffers[i]) == size), len(self._buffers))
        if number == len(self._buffers):
            self._buffers.append(torch.empty(0, dtype=torch.uint8).set_(_shared(size)))
        else:
            self._free.remove(number)
        return self._buffers[number].view(*shape), Ticket(info.id, number)

    def lend(self, batch: RawBatch, ticket: Ticket) -> RawBatch:
        """The batch, whose buffer goes back when no view of its frames is left; called in the trainer."""
        if batch.frames.is_pinned():  # a copy: the worker's memory is free already
            self._done.append(ticket)
            return batch
        array = batch.frames.permute(0, 1, 2, 4, 5, 3).numpy()
        # PyTorch keeps the array for as long as the storage lives, in whatever tensors that is
        weakref.finalize(array, self._done.append, ticket).atexit = False
        return replace(batch, frames=torch.from_numpy(array).permute(0, 1, 2, 5, 3, 4))

    def give_back(self) -> None:
        """Tell the workers which buffers have become free; called in the trainer, never by a finalizer."""
        while self._done:
            worker, buffer = self._done.popleft()
            self._returned[worker].put(buffer)


def _shared(size: int) -> torch.UntypedStorage:
    """So many bytes of shared memory.

    Raises:
        UserError: when the system has no more of it.
    """
    try:
        storage: torch.UntypedStorage = torch.UntypedStorage._new_shared(size)  # type: ignore[no-untyped-call]
    except (RuntimeError, OSError) as error:
        raise UserError(
            f"no shared memory for {size >> 20} MiB of frames: make /dev/shm larger (docker: --shm-size), "
            "or lower data.workers, data.prefetch or train.batch_size"
        ) from error
    return storage
