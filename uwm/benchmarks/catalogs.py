"""`uwm bench catalog`: versions and commits of episode rows, in the Delta table that stores have and in Icechunk.

Both sides hold the same rows, take 64 a commit, and hold every episode once, whoever commits at the same time. Icechunk
gets what suits it: numbers and texts in two growing Zarr arrays, a column in chunks of 1024 rows of its own, so that a
commit rewrites the last chunk of each column and a column is read alone. Two sizes are at most 150 commits apart.
"""

import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal, Self

import numpy as np
import pyarrow as pa

from storage_schemas.catalog.commits import Committer
from storage_schemas.catalog.delta import open_table
from storage_schemas.catalog.rows import ROW_SCHEMA, EpisodeRow, rows_to_arrow
from storage_schemas.catalog.table import create_dataset
from storage_schemas.errors import UserError
from storage_schemas.location import locate
from storage_schemas.store.dataset import open_dataset
from uwm.benchmarks.s3 import emulator
from uwm.benchmarks.store import BATCH, PART, SPEC, synthetic_rows

CHUNK = 1024
WRITERS, COMMITS = 4, 10
_LEFT_OUT = "statistics"
"""The column that opening does not read."""
_NUMBERS = tuple(field.name for field in ROW_SCHEMA if pa.types.is_integer(field.type) or field.type == pa.float64())
_TEXTS = tuple(name for name in ROW_SCHEMA.names if name not in _NUMBERS)
_ID = _TEXTS.index("episode_id")


class Delta:
    """Episode rows in the Delta table that a dataset has."""

    def __init__(self, uri: str) -> None:
        self._uri, self._committer = uri, Committer(uri)

    @classmethod
    def create(cls, uri: str) -> Self:
        """Make an empty catalog."""
        create_dataset(uri, SPEC)
        (locate(uri) / "parts" / PART / "zarr.json").write_bytes(b"")
        return cls(uri)

    def commit(self, rows: Sequence[EpisodeRow]) -> None:
        """Add those of the rows that are not there, as one version, also while others commit."""
        self._committer.commit(rows)

    def open(self) -> int:
        """Read the newest version's rows without their statistics; returns how many they are."""
        return len(open_dataset(self._uri))

    def row(self, episode_id: str) -> str:
        """Open the newest version and look one episode up; returns where it came from."""
        table = open_table(locate(self._uri) / "episodes").to_pyarrow_table(
            columns=["source_uri"], filters=[("episode_id", "=", episode_id)]
        )
        return str(table.column(0)[0])


class Icechunk:
    """The same in an Icechunk repository; knows the ids that it has seen, as `Committer` does."""

    def __init__(self, uri: str) -> None:
        import icechunk

        self._repository = icechunk.Repository.open(_storage(uri))
        self._seen = set[str]()

    @classmethod
    def create(cls, uri: str) -> Self:
        """Make an empty catalog."""
        import icechunk
        import zarr

        session = icechunk.Repository.create(_storage(uri)).writable_session("main")
        group = zarr.create_group(session.store)
        for name, names, dtype in (("numbers", _NUMBERS, "float64"), ("texts", _TEXTS, "str")):
            group.create_array(name, shape=(0, len(names)), chunks=(CHUNK, 1), dtype=dtype)
        session.commit("an empty table")
        return cls(uri)

    def commit(self, rows: Sequence[EpisodeRow]) -> None:
        """Add those of the rows that are not there, as one version, also while others commit."""
        import icechunk

        table = rows_to_arrow(rows)
        numbers = np.stack([table.column(name).to_numpy() for name in _NUMBERS], axis=1).astype(np.float64)
        texts = np.array([[_text(value) for value in table.column(name).to_pylist()] for name in _TEXTS], object).T
        while True:
            session = self._repository.writable_session("main")
            group = _group(session, "a")
            self._seen.update(group["texts"][len(self._seen) :, _ID])
            new = [index for index, row in enumerate(rows) if row.episode_id not in self._seen]
            group["numbers"].append(numbers[new])
            group["texts"].append(texts[new])
            try:
                session.commit(f"{len(new)} episodes")
                return
            except icechunk.ConflictError:  # both appended to the same chunks, which no rebase can settle
                continue

    def open(self) -> int:
        """Read the newest version's rows without their statistics; returns how many they are."""
        group = _group(self._repository.readonly_session("main"))
        columns = [group["texts"][:, index] for index, name in enumerate(_TEXTS) if name != _LEFT_OUT]
        return len(columns[0]) if group["numbers"][:].size else 0

    def row(self, episode_id: str) -> str:
        """Open the newest version and look one episode up; returns where it came from."""
        texts = _group(self._repository.readonly_session("main"))["texts"]
        return str(texts[int(np.flatnonzero(texts[:, _ID] == episode_id)[0]), _TEXTS.index("source_uri")])


def _group(session: Any, mode: Literal["r", "a"] = "r") -> Any:
    import zarr

    return zarr.open_group(session.store, mode=mode)


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _storage(uri: str) -> Any:
    import icechunk

    icechunk.set_logs_filter("error")  # it warns that local commits of several processes are not safe
    if not uri.startswith("s3://"):
        return icechunk.local_filesystem_storage(uri)
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    return icechunk.s3_storage(
        bucket=bucket, prefix=prefix, region=os.environ["AWS_REGION"], endpoint_url=os.environ["AWS_ENDPOINT_URL"],
        allow_http=True, force_path_style=True, from_env=True,
    )  # fmt: skip


KINDS: Mapping[str, type[Delta | Icechunk]] = {"delta": Delta, "icechunk": Icechunk}


@dataclass(frozen=True, kw_only=True)
class CatalogCost:
    """Medians of wall time at one size."""

    location: str
    """`local`, or `s3`: an emulator on this machine, whose own time is in the figures of both."""
    kind: str
    episodes: int
    commit_warm_ms: float
    """A commit of 64 rows by a process that has committed before."""
    commit_cold_ms: float
    """A commit of 64 rows by one that first opens the catalog and learns its ids."""
    open_ms: float
    row_ms: float
    files: int
    megabytes: float


@dataclass(frozen=True, kw_only=True)
class WritersCost:
    """Several processes that commit at once, each its own rows."""

    location: str
    kind: str
    seconds: float
    episodes: int
    """All that are there afterwards; less than they wrote would be a loss."""


def bench_catalogs(
    sizes: Sequence[int] = (100, 1_000, 10_000), repeats: int = 5, *, s3: bool = True
) -> tuple[list[CatalogCost], list[WritersCost]]:
    """Grow both catalogs side by side and measure them in turn. Needs `icechunk`, and moto for S3."""
    from importlib.util import find_spec

    if find_spec("icechunk") is None:
        raise UserError("icechunk is not installed: `pip install icechunk`")
    with tempfile.TemporaryDirectory() as folder:
        costs, writers = _measure("local", folder, sizes, repeats)
        if s3:
            with emulator():
                remote = _measure("s3", "s3://bench", [size for size in sizes if size <= 1000], repeats)
            costs, writers = costs + remote[0], writers + remote[1]
    return costs, writers


def _measure(
    location: str, root: str, sizes: Sequence[int], repeats: int
) -> tuple[list[CatalogCost], list[WritersCost]]:
    catalogs = {name: kind.create(f"{root}/{name}") for name, kind in KINDS.items()}
    costs, count = list[CatalogCost](), 0
    for size in sizes:
        step = max(BATCH, (size - count) // 150 + 1)
        while count < size:
            batch = synthetic_rows(count, min(step, size - count))
            for catalog in catalogs.values():
                catalog.commit(batch)
            count += len(batch)
        times: dict[str, list[tuple[float, ...]]] = {name: [] for name in KINDS}
        for _ in range(repeats):
            for name, catalog in catalogs.items():
                times[name].append(tuple(_times(name, f"{root}/{name}", catalog, count)))
            count += 2 * BATCH
        for name in KINDS:
            warm, cold, opened, looked_up = (round(median(column), 1) for column in zip(*times[name], strict=True))
            content = [item for item in Path(root, name).rglob("*") if item.is_file()] if location == "local" else []
            megabytes = round(sum(item.stat().st_size for item in content) / 1e6, 2)
            costs.append(
                CatalogCost(
                    location=location, kind=name, episodes=size, commit_warm_ms=warm, commit_cold_ms=cold,
                    open_ms=opened, row_ms=looked_up, files=len(content), megabytes=megabytes,
                )
            )  # fmt: skip
    return costs, [_write_at_once(location, name, f"{root}/{name}-writers") for name in KINDS]


def _times(name: str, uri: str, warm: Delta | Icechunk, first: int) -> Iterator[float]:
    """Milliseconds of a warm and a cold commit, of opening, and of looking an episode up."""
    batches = synthetic_rows(first, BATCH), synthetic_rows(first + BATCH, BATCH)
    yield _ms(lambda: warm.commit(batches[0]))
    yield _ms(lambda: KINDS[name](uri).commit(batches[1]))
    yield _ms(lambda: KINDS[name](uri).open())
    yield _ms(lambda: KINDS[name](uri).row(batches[0][7].episode_id))


def _ms(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return (time.perf_counter() - began) * 1000


def _write_at_once(location: str, name: str, uri: str) -> WritersCost:
    catalog = KINDS[name].create(uri)
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(WRITERS + 1)
    processes = [context.Process(target=_write, args=(name, uri, number, start)) for number in range(WRITERS)]
    for process in processes:
        process.start()
    start.wait()
    began = time.perf_counter()
    for process in processes:
        process.join()
    seconds = round(time.perf_counter() - began, 2)
    return WritersCost(location=location, kind=name, seconds=seconds, episodes=catalog.open())


def _write(name: str, uri: str, number: int, start: Any) -> None:
    catalog = KINDS[name](uri)
    catalog.open()
    start.wait()
    for turn in range(COMMITS):
        catalog.commit(synthetic_rows((number * COMMITS + turn) * BATCH, BATCH))
