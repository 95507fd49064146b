"""What a process reads for a step, and what all processes agree on before it."""

import time
from collections.abc import Callable, Iterator

from storage_schemas.errors import UserError
from uwm.data.actions import share_actions
from uwm.data.batch import RawBatch, StepShare
from uwm.data.loader import SegmentReader, Shard, batches
from uwm.data.mixture import mixture_sampler
from uwm.train.setup import Run

Share = tuple[RawBatch, StepShare | None]


class ShareReader:
    """Reads this process's shares of the steps that a run has left, in order.

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

    def read(self) -> list[Share]:
        """The shares of the next step; none when any process was asked to stop.

        The processes meet here once in a step, on the CPU: while they do, devices work on the step before.

        Raises:
            UserError: when any process can't read its samples.
        """
        world = self._run.world
        if world.size == 1 and self._stop():
            return []
        read, failure = self._next()
        actions, frames = (sum(count) for count in zip((0, 0), *map(self._known, read), strict=True))
        stopping = world.size > 1 and self._stop()
        stops, failures, actions, frames = world.sum([stopping, failure is not None, actions, frames])
        if failures:
            world.together(lambda: _reraise(failure))
        return [] if stops else self._divide(read, actions, frames)

    def _open(self, steps: int) -> Iterator[RawBatch]:
        run = self._run
        return batches(
            SegmentReader(
                [member.dataset for member in run.members],
                run.config.data,
                run.latents,
                [share_actions(member.dataset, member.rows) for member in run.members],
                next_images=run.config.reads_next_obs,
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

    def _known(self, raw: RawBatch) -> tuple[int, int]:
        """How many actions and next-observation frames of a batch are known."""
        return int(raw.action_mask.sum()), int(raw.view_mask[:, :, self._run.config.data.obs_frames :].sum())

    def _divide(self, read: list[RawBatch], actions: float, frames: float) -> list[Share]:
        world, size = self._run.world, self._run.config.train.batch_size
        parts = len(read) * world.size
        if parts == 1:
            return [(read[0], None)]
        return [
            (
                raw,
                StepShare(
                    first=(number * world.size + world.rank) * size,
                    samples=self._run.samples,
                    known_actions=actions / parts,
                    known_frames=frames / parts,
                ),
            )
            for number, raw in enumerate(read)
        ]


def _reraise(failure: UserError | None) -> None:
    if failure:
        raise failure
