"""`uwm bench store`: what opening, committing and sampling cost as a dataset grows; synthetic rows, no frames.

A dataset grows as ingestion makes it grow, 64 episodes a commit. At each size a fresh process opens the newest
version, and commits of one batch are timed in the process that has committed before (warm) and in a committer that
has not (cold: it first reads the ids).
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

from storage_schemas.catalog.commits import Committer, commit
from storage_schemas.catalog.rows import EpisodeRow, split_of
from storage_schemas.catalog.table import create_dataset
from storage_schemas.schema import DatasetSpec

SPEC = DatasetSpec(cameras=("exterior_image_1_left", "exterior_image_2_left", "wrist_image_left"), action_dim=10)
BATCH = 64
PART = "synthetic"


@dataclass(frozen=True, kw_only=True)
class OpenCost:
    """What a process that does nothing else spends on opening the newest version and on the shuffle of its steps."""

    commits: int
    open_seconds: float
    """Wall time of opening."""
    open_cpu_seconds: float
    open_peak_mb: float
    """Peak resident memory of the process, with all that it imports."""
    sampler_mb: float
    """Memory that the process grew by for the global shuffle of all steps."""


@dataclass(frozen=True, kw_only=True)
class StoreCost:
    """Costs at one size; commits are medians of wall time and include the disk."""

    episodes: int
    opening: OpenCost
    commit_warm_ms: float
    commit_cold_ms: float

    def row(self) -> dict[str, float]:
        """All figures by name."""
        own = {name: value for name, value in asdict(self).items() if name != "opening"}
        return own | asdict(self.opening)


def bench_store(sizes: Sequence[int] = (100, 1_000, 10_000, 100_000), repeats: int = 7) -> list[StoreCost]:
    """Grow a new dataset and measure it at each size, in ascending order."""
    with tempfile.TemporaryDirectory() as folder:
        uri = str(Path(folder) / "bench-store")
        create_dataset(uri, SPEC)
        part = Path(uri, "parts", PART)
        part.mkdir(parents=True)
        (part / "zarr.json").touch()
        committer, rows, costs = Committer(uri), 0, []
        for size in sizes:
            while rows < size:
                count = min(BATCH, size - rows)
                commit(committer, synthetic_rows(rows, count))
                rows += count
            opening = _open_in_a_new_process(uri)
            warm, cold = _commit_times(uri, committer, rows, repeats)
            rows += 2 * repeats * BATCH
            cost = StoreCost(episodes=size, opening=opening, commit_warm_ms=warm, commit_cold_ms=cold)
            costs.append(cost)
        return costs


def _commit_times(uri: str, committer: Committer, rows: int, repeats: int) -> tuple[float, float]:
    """Median milliseconds of a warm and of a cold commit, taken in turn."""
    warm: list[float] = []
    cold: list[float] = []
    for _ in range(repeats):
        for target, times in ((committer, warm), (uri, cold)):
            batch = synthetic_rows(rows, BATCH)
            began = time.perf_counter()
            commit(target, batch)
            times.append((time.perf_counter() - began) * 1e3)
            rows += BATCH
    return round(median(warm), 1), round(median(cold), 1)


def synthetic_rows(first: int, count: int) -> list[EpisodeRow]:
    """Rows as DROID's look: ids and fingerprints of their length, statistics of 10 dimensions twice."""
    numbers = {name: [0.123456789 * i for i in range(10)] for name in ("min", "max", "sum", "sumsq")}
    statistics = json.dumps({name: {"count": 280, **numbers} for name in ("action", "state/cartesian_position")})
    return [
        EpisodeRow(
            episode_id=f"LAB/success/2023-04-{i % 28 + 1:02}/Fri_Apr_21_10:42:{i % 60:02}_{i:08}",
            part=PART, start=i * 280, length=280, fps=15.0,
            source_uri=f"/data/droid/1.0.0/r2d2_faceblur-train.tfrecord-{i // 46:05}-of-02048#record={i % 46}",
            source_format="droid-rlds", source_fingerprint=f"{i:032x}", collection=f"LAB{i % 13}",
            language=["put the marker in the pot", "move the marker to the pot"], success=True,
            cameras=list(SPEC.cameras), frame_sizes=["180x320"] * 3, action_steps=280,
            split=split_of(str(i)), statistics=statistics, run_id="bench",
            ingested_at=datetime(2026, 1, 2, tzinfo=UTC), checksum=i, part_bytes=1 << 28,
        )
        for i in range(first, first + count)
    ]  # fmt: skip


_PROBE = """
import json, sys, time
from pathlib import Path
from storage_schemas.store.dataset import open_dataset

def status(name):  # getrusage would count what the parent had when it forked
    return int(Path("/proc/self/status").read_text().partition(name + ":")[2].split()[0]) / 1024

began, cpu = time.perf_counter(), time.process_time()
dataset = open_dataset(sys.argv[1])
opened = dict(commits=dataset.version, open_seconds=round(time.perf_counter() - began, 3),
              open_cpu_seconds=round(time.process_time() - cpu, 3), open_peak_mb=round(status("VmHWM"), 1))
from uwm.data.sampler import SegmentSampler
rows = dataset.episodes.select(split="train")
before = status("VmRSS")
sampler = SegmentSampler(rows, dataset.episodes.lengths[rows], (0,))
for position in range(1000):
    sampler.draw(position)
print(json.dumps(opened | {"sampler_mb": round(status("VmRSS") - before, 1)}))
"""


def _open_in_a_new_process(uri: str) -> OpenCost:
    done = subprocess.run([sys.executable, "-c", _PROBE, uri], capture_output=True, text=True, check=True)
    return OpenCost(**json.loads(done.stdout))
