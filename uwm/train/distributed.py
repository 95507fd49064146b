"""The processes of a run: who this one is, what they agree on, how they begin and end together.

torchrun starts the processes and tells each its place through the environment. What passes between them here are a
few numbers and texts, over gloo on the CPU, so nothing waits for a device; gradients and weights are the business of
`uwm.train.parallel`. One process alone joins nothing, and every method answers at once.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from itertools import islice
from typing import TYPE_CHECKING, TypeVar, cast

import torch
import torch.distributed as dist

from storage_schemas.errors import UserError
from uwm.device import resolve_device

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T")
R = TypeVar("R", bound="DataclassInstance")


@dataclass(frozen=True, kw_only=True)
class World:
    """This process among those that train a run together."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Number of this process on its machine, which is also its GPU's."""

    @property
    def main(self) -> bool:
        """Whether this process speaks and writes for all."""
        return self.rank == 0

    def device(self, name: str) -> torch.device:
        """The device of this process: of several processes each has a GPU of its own.

        Raises:
            UserError: when the machine has no such device.
        """
        device = resolve_device(name)
        if device.type == "cuda" and self.size > 1:
            device = resolve_device(f"cuda:{self.local_rank}")
            torch.cuda.set_device(device)
        return device

    def sum(self, record: R) -> R:
        """A record whose numbers are the sums over all processes; waits for the other processes, not for the device.

        Args:
            record: a dataclass whose fields are numbers, or tuples of as many numbers in every process.
        """
        if self.size == 1:
            return record
        values = {field.name: getattr(record, field.name) for field in fields(record)}
        flat = [number for value in values.values() for number in (value if isinstance(value, tuple) else (value,))]
        # counts of elements stay exact in it, however large a step is
        total = torch.tensor(flat, dtype=torch.float64)
        dist.all_reduce(total)
        numbers = iter(total.tolist())
        sums = {
            name: tuple(islice(numbers, len(value))) if isinstance(value, tuple) else next(numbers)
            for name, value in values.items()
        }
        return replace(record, **sums)

    def together(self, work: Callable[[], T]) -> T:
        """Do `work` in every process.

        Raises:
            UserError: the first of any process, in all of them; so they end together and nobody waits for the dead.
        """
        if self.size == 1:
            return work()
        results, failure = [], ""
        try:
            results.append(work())
        except UserError as error:
            failure = str(error) or type(error).__name__
        failures = [text for text in self._gather(failure) if text]
        if failures:
            raise UserError(failures[0])
        return results[0]

    def from_main(self, work: Callable[[], T]) -> T:
        """What `work` returns in the main process, told to all. Raises UserError in all when it does there."""
        result = self.together(lambda: work() if self.main else None)
        return cast(T, self._gather(result)[0])

    def _gather(self, value: T) -> list[T]:
        """What every process gives, in their order; every process calls this equally often."""
        if self.size == 1:
            return [value]
        values = [value] * self.size
        dist.all_gather_object(values, value)
        return values


@contextmanager
def join_world(device: str) -> Iterator[World]:
    """Join the processes that torchrun started, until the end of the block.

    A process group that is there already is used and left as it is.

    Args:
        device: that the run asks for: decides what gradients travel over, NCCL between GPUs and gloo between CPUs.

    Raises:
        UserError: when this machine has no such device.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield World()
        return
    rank, size, local_rank = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    world = World(rank=rank, size=size, local_rank=local_rank)
    if dist.is_initialized():
        yield world
        return
    dist.init_process_group("cpu:gloo,cuda:nccl" if world.device(device).type == "cuda" else "gloo")
    try:
        yield world
    except UserError:  # the same in all processes, see `World.together`
        dist.destroy_process_group()
        raise
    # After a crash nothing is put in order: the others may be gone, and waiting for them would never end.
    dist.destroy_process_group()
