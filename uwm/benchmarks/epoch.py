"""What a loader's process costs over a whole epoch: CPU time per sample, and whether its memory grows."""

import multiprocessing
import os
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

from uwm.config import DataConfig
from uwm.data.loader import SegmentReader, batches
from uwm.data.mixture import mixture_sampler, open_mixture


@dataclass(frozen=True, kw_only=True)
class EpochResult:
    """A worker that hands its batches to a trainer, from the first to the last segment of a dataset."""

    samples: int
    worker_cpu_ms_per_sample: float
    """Decoding, collating and handing over; its start and first quarter left out."""
    resident_mb: tuple[float, float, float, float]
    """Median memory of the worker in every quarter of the epoch."""
    growth_mb: float
    """Memory of the last quarter over the second's."""


def bench_epoch(config: DataConfig, *, batch: int) -> EpochResult:
    """Read every segment once with one worker.

    Args:
        config: names the dataset.
        batch: samples of a batch; an incomplete last one is left out.

    Raises:
        ValueError: when there are fewer than 8 batches.
    """
    members = open_mixture(config)
    count = sum(int(member.dataset.episodes.lengths[member.rows].sum()) for member in members) // batch
    if count < 8:
        raise ValueError(f"{count} batches: too few for quarters")
    reader = SegmentReader([member.dataset for member in members], config)
    source = batches(reader, mixture_sampler(members, 0), start=0, stop=count * batch, batch_size=batch, workers=1)
    seen = []
    for batch_read in source:
        assert batch_read.frames.dtype == torch.uint8
        seen.append(_usage(multiprocessing.active_children()[0].pid))
    quarters = [seen[i * count // 4 : (i + 1) * count // 4] for i in range(4)]
    resident = [round(median(memory for _, memory in quarter), 1) for quarter in quarters]
    steady = seen[count // 4 :]
    return EpochResult(
        samples=count * batch,
        worker_cpu_ms_per_sample=round((steady[-1][0] - steady[0][0]) * 1000 / ((len(steady) - 1) * batch), 3),
        resident_mb=(resident[0], resident[1], resident[2], resident[3]),
        growth_mb=round(resident[3] - resident[1], 1),
    )


def _usage(pid: int | None) -> tuple[float, float]:
    """CPU seconds of a process, and its memory in MB, its share of shared memory included."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    ticks = int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK"), int(fields[21]) * os.sysconf("SC_PAGE_SIZE") / 2**20
