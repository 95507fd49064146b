"""`uwm bench store`: what opening, committing and sampling cost as a dataset grows, on synthetic rows."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from storage_schemas.schema import DatasetSpec
from storage_schemas.store import EpisodeRow, commit, create_dataset

_BATCH = 20_000
_STEPS = 300
_COMMITS = 3


@dataclass(frozen=True, kw_only=True)
class StoreCost:
    """Costs beside some number of episodes."""

    episodes: int
    open_seconds: float
    """Wall time of opening the newest version and its columns, in a process of its own."""
    open_mb: float
    """Memory that the process grew by while opening."""
    commit_ms: float
    """CPU time of committing one batch of 64 new episodes."""
    sampler_mb: float
    """Memory that the process grew by for the global shuffle of all steps."""


def bench_store(sizes: Sequence[int] = (100, 1_000, 10_000, 100_000)) -> list[StoreCost]:
    """Measure at each size, on rows that name no real part: nothing but the log is touched."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        create_dataset(folder, DatasetSpec(cameras=("a", "b", "c"), action_dim=10))
        written = 0
        for size in sizes:
            while written < size:
                count = min(_BATCH, size - written)
                commit(folder, list(_rows(written, count)))
                written += count
            probe = _probe(folder)
            began = time.process_time()
            for _ in range(_COMMITS):
                commit(folder, list(_rows(written, 64)))
                written += 64
            spent = (time.process_time() - began) * 1000 / _COMMITS
            found.append(StoreCost(episodes=size, commit_ms=round(spent, 1), **probe))
    return found


def _rows(first: int, count: int) -> Iterator[EpisodeRow]:
    stats = {"count": _STEPS} | {name: [0.1] * 10 for name in ("min", "max", "sum", "sumsq")}
    for number in range(first, first + count):
        yield EpisodeRow(
            episode_id=f"{number:032x}",
            part=f"{number // 64:032x}",
            start=number % 64 * _STEPS,
            length=_STEPS,
            fps=15.0,
            source_uri=f"gs://bucket/droid/1.0.0/shard-{number // 64}#record={number % 64}",
            source_format="droid-rlds",
            source_fingerprint=f"{number:x}",
            collection=f"LAB{number % 13}",
            language=["pick up the thing"],
            success=True,
            cameras=["a", "b", "c"],
            frame_sizes=["180x320"] * 3,
            action_steps=_STEPS,
            split="val" if number % 10 == 0 else "train",
            statistics=json.dumps({"action": stats}),
            run_id="bench",
            ingested_at=datetime.now(UTC),
            checksum=0,
        )


_PROBE = """
import json, sys, time
from pathlib import Path
import deltalake, pyarrow
from storage_schemas.store import open_dataset
from uwm.data.sampler import SegmentSampler

def resident():
    line = next(l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith("VmRSS"))
    return int(line.split()[1]) / 1024

before, began = resident(), time.perf_counter()
dataset = open_dataset(sys.argv[1])
seconds, opened = time.perf_counter() - began, resident()
rows = dataset.episodes.select(split="train")
sampler = SegmentSampler(rows, dataset.episodes.lengths[rows], (0,))
for place in range(1000):
    sampler.draw(place)
print(json.dumps({"open_seconds": round(seconds, 3), "open_mb": round(opened - before, 1),
                  "sampler_mb": round(resident() - opened, 1)}))
"""


def _probe(folder: str) -> dict[str, float]:
    done = subprocess.run([sys.executable, "-c", _PROBE, folder], capture_output=True, text=True, check=True)
    values: dict[str, float] = json.loads(done.stdout)
    return values


def as_json(costs: Sequence[StoreCost]) -> list[dict[str, float]]:
    """Plain values."""
    return [asdict(cost) for cost in costs]
