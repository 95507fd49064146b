"""The flow that `benchmarks.scaling` measures: scheduling, results and commits of an ingestion, without its decoding.

A program of its own, because Prefect takes its server from the environment when it is imported.
"""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from prefect import flow

from benchmarks.store import PART, SPEC, synthetic_rows
from flows.runners import Runner, Sealed, batch_task, carried_by
from storage_schemas.store import Committer, EpisodeRow, commit, create_dataset


@dataclass(frozen=True)
class Rows:
    """Episodes of one batch."""

    number: int
    first: int
    count: int


@batch_task("convert")
def synthesize(sealed: Sealed[Rows]) -> list[EpisodeRow]:
    """Rows as a converted batch has them."""
    return synthetic_rows(sealed.item.first, sealed.item.count)


@flow(name="simulated ingestion")
def simulate(store: str, episodes: int, batch: int, runner: str, workers: int) -> None:
    """Carry out the batches of an ingestion and commit each."""
    create_dataset(store, SPEC)
    part = Path(store, "parts", PART)
    part.mkdir(parents=True)
    (part / "zarr.json").touch()
    firsts = range(0, episodes, batch)
    items = [Rows(number, first, min(batch, episodes - first)) for number, first in enumerate(firsts)]
    committer = Committer(store)
    began, cpu, committing = time.perf_counter(), time.process_time(), 0.0
    carry: Callable[[Sequence[Rows]], Iterator[list[EpisodeRow]]]
    carry = carried_by(Runner(name=runner, workers=workers), synthesize)
    for rows in carry(items):
        start = time.process_time()
        commit(committer, rows)
        committing += time.process_time() - start
    print(time.perf_counter() - began, time.process_time() - cpu, committing)


if __name__ == "__main__":
    simulate(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], int(sys.argv[5]))
