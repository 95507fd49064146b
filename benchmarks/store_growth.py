"""What opening a dataset version and committing to it cost as the dataset grows; synthetic rows, no frames.

    python -m benchmarks.store_growth --episodes 100 1000 10000 100000 --json

A dataset grows as ingestion makes it grow, 64 episodes a commit. At each size a fresh process opens the newest
version (wall and CPU seconds, peak resident memory of the whole process), and commits of one batch are timed in
the process that has committed before (warm) and in one that has not (cold: it first reads the ids).
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

from storage_schemas.store import Committer, DatasetSpec, EpisodeRow, commit, create_dataset, open_dataset, split_of

SPEC = DatasetSpec(cameras=("exterior_image_1_left", "exterior_image_2_left", "wrist_image_left"), action_dim=10)
BATCH = 64
PART = "synthetic"


@dataclass(frozen=True, kw_only=True)
class StoreFigures:
    """Costs at one size. Milliseconds are medians of wall time; they include the disk."""

    episodes: int
    commits: int
    data_files: int
    open_seconds: float
    open_cpu_seconds: float
    open_peak_megabytes: float
    """Peak resident memory of a process that does nothing else, with all that it imports."""
    commit_warm_ms: float
    commit_cold_ms: float


def synthetic_rows(first: int, count: int) -> list[EpisodeRow]:
    """Rows as DROID's look: ids and fingerprints of their length, statistics of 10 and 7 dimensions."""
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


def measure(folder: str, sizes: list[int], repeats: int = 7) -> list[StoreFigures]:
    """Grow a new dataset in `folder` and measure it at each size."""
    uri = str(Path(folder) / "bench-store")
    create_dataset(uri, SPEC)
    part = Path(uri, "parts", PART)
    part.mkdir(parents=True)
    (part / "zarr.json").touch()
    committer, rows, figures = Committer(uri), 0, []
    for size in sorted(sizes):
        while rows < size:
            count = min(BATCH, size - rows)
            commit(committer, synthetic_rows(rows, count))
            rows += count
        opened = _open_in_a_new_process(uri)
        warm, cold = [], []
        for _ in range(repeats):  # interleaved
            for target, times in ((committer, warm), (uri, cold)):
                batch = synthetic_rows(rows, BATCH)
                began = time.perf_counter()
                commit(target, batch)
                times.append((time.perf_counter() - began) * 1e3)
                rows += BATCH
        figures.append(
            StoreFigures(
                episodes=size, **opened, commit_warm_ms=round(median(warm), 1), commit_cold_ms=round(median(cold), 1)
            )
        )
    return figures


def _open_in_a_new_process(uri: str) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.store_growth", "--open", uri], check=True, capture_output=True, text=True
    )
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def _open(uri: str) -> dict[str, float]:
    from deltalake import DeltaTable

    began, cpu = time.perf_counter(), time.process_time()
    dataset = open_dataset(uri)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    status = Path("/proc/self/status").read_text()  # getrusage would count what the parent had when it forked
    peak = int(status.partition("VmHWM:")[2].split()[0]) / 1024
    return {
        "commits": dataset.version,
        "data_files": len(DeltaTable(f"{uri}/episodes").file_uris()),
        "open_seconds": round(seconds, 3),
        "open_cpu_seconds": round(cpu, 3),
        "open_peak_megabytes": round(peak, 1),
    }


def main() -> None:
    """Print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, nargs="+", default=[100, 1_000, 10_000, 100_000])
    parser.add_argument("--folder", help="where to make the dataset; a temporary folder by default")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--open", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.open:
        print(json.dumps(_open(given.open)))
        return
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        figures = [asdict(each) for each in measure(folder, given.episodes)]
    if given.json:
        print(json.dumps(figures, indent=1))
        return
    print("  ".join(figures[0]))
    for each in figures:
        print("  ".join(f"{value:>{len(name)}}" for name, value in each.items()))


if __name__ == "__main__":
    main()
