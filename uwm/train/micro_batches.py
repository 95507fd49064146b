"""The micro-batches that a process reads for a step, and what all processes agree on before it."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from storage_schemas.errors import UserError
from uwm.data.actions import share_actions
from uwm.data.augment import training_batch
from uwm.data.batch import Batch, MicroBatch, RawBatch, known_counts
from uwm.data.condition import condition_table
from uwm.data.loader import SegmentReader, Shard, batches
from uwm.data.mixture import mixture_sampler
from uwm.train.setup import Run


@dataclass(frozen=True, kw_only=True)
class StepCounts:
    """What the processes tell each other before a step; numbers, so that their sums say what all have."""

    stops: int
    failures: int
    known_actions: int
    known_frames: int


class MicroBatchReader:
    """Reads this process's micro-batches of the steps that a run has left, in order.

    Args:
        run: where it stands.
        steps: that the run has in all.
        stop: says whether this process was asked to stop.
    """

    def __init__(self, run: Run, steps: int, stop: Callable[[], bool]) -> None:
        self._run = run
        self._stop = stop
        self._source = self._open(steps)
        self.waited = 0.0
        """Seconds that the last `read` waited for data."""

    def read(self) -> Iterator[Batch] | None:
        """The micro-batches of the next step, each brought to the device when it is asked for.

        The processes meet here once in a step, on the CPU: while they do, devices work on the step before.

        Returns:
            None when any process was asked to stop.

        Raises:
            UserError: when any process can't read its samples.
        """
        world, obs_frames = self._run.world, self._run.config.data.obs_frames
        if world.size == 1 and self._stop():
            return None
        read, failure = self._next()
        counts = [known_counts(raw, obs_frames) for raw in read]
        total = world.sum(
            StepCounts(
                # a process alone was asked before it read anything
                stops=int(world.size > 1 and self._stop()),
                failures=int(failure is not None),
                known_actions=sum(actions for actions, _ in counts),
                known_frames=sum(frames for _, frames in counts),
            )
        )
        if total.failures:
            # the others learn here what the one that failed has to say, and end with the same words
            world.together(lambda: _reraise(failure))
        return None if total.stops else self._batches(read, total)

    def _open(self, steps: int) -> Iterator[RawBatch]:
        run = self._run
        return batches(
            SegmentReader(
                [member.dataset for member in run.members],
                run.config.data,
                run.latents,
                [share_actions(member.dataset, member.rows) for member in run.members],
                run.config.train.seed,
                condition=[condition_table(member, run.config.data, run.config.train.seed) for member in run.members],
                next_images=run.config.reads_next_obs,
                refs=[member.ref for member in run.members],
            ),
            mixture_sampler(run.members, run.config.train.seed),
            start=run.position,
            stop=run.position + (steps - run.step) * run.samples,
            batch_size=run.config.train.batch_size,
            shard=Shard(rank=run.world.rank, world=run.world.size),
            workers=run.config.data.workers,
            prefetch=run.config.data.prefetch,
            pin=run.device.type == "cuda",
        )

    def _next(self) -> tuple[list[RawBatch], UserError | None]:
        asked = time.perf_counter()
        try:
            return [next(self._source) for _ in range(self._run.config.train.accumulate)], None
        except UserError as error:
            return [], error
        finally:
            self.waited = time.perf_counter() - asked

    def _batches(self, read: list[RawBatch], total: StepCounts) -> Iterator[Batch]:
        run, config = self._run, self._run.config
        parts = len(read) * run.world.size
        for number, raw in enumerate(read):
            micro_batch = MicroBatch(
                first=(number * run.world.size + run.world.rank) * config.train.batch_size,
                samples=run.samples,
                known_actions=total.known_actions / parts,
                known_frames=total.known_frames / parts,
            )
            yield training_batch(raw, config.data, run.normalizer, device=run.device, micro_batch=micro_batch)


def _reraise(failure: UserError | None) -> None:
    if failure:
        raise failure
