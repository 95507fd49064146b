"""Many ingestions of one dataset at once, and ingestions that are killed: nothing lost, nothing doubled."""

import hashlib
import multiprocessing
import random
import signal
import time
from collections.abc import Callable, Sequence
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest
from s3_server import FaultProxy

from pipelines.options import IngestOptions
from storage_schemas.maintenance.verify import verify
from storage_schemas.store.dataset import open_dataset

Make = Callable[..., Any]
STEPS = 4
CAMERA = "wrist_image_left"


def run(source: str, store: str, barrier: Any = None) -> None:
    """One ingestion in small commits."""
    from pipelines.ingest import ingest

    if barrier is not None:
        barrier.wait(60)
    ingest(source, store, IngestOptions(batch_episodes=2))


@pytest.fixture(scope="session")
def server() -> ForkServerContext:
    """Starts processes in which everything is imported already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [
            "pipelines.ingest",
            "pipelines.sources.rlds",
            "storage_schemas.store.dataset",
            "deltalake",
            "pyarrow.dataset",
            "scipy.spatial.transform",
        ]
    )
    return context


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory, write_rlds: Make, make_features: Make) -> list[str]:
    """Two sets of episodes that share some."""
    root = tmp_path_factory.mktemp("raw")
    made = {number: make_features(STEPS, path=f"LAB/success/day/{number}/x.h5", seed=number) for number in range(12)}
    return [
        str(write_rlds(root / "a", [made[i] for i in range(8)])),
        str(write_rlds(root / "b", [made[i] for i in range(4, 12)])),
    ]


def content(store: str) -> dict[str, tuple[str, float]]:
    """Every episode by id: a hash of its frames and the sum of its actions."""
    dataset = open_dataset(store)
    ids = dataset.episodes.episode_ids
    assert len(set(ids)) == len(ids)
    return {
        name: (
            hashlib.sha256(b"".join(dataset.encoded(i, CAMERA, range(STEPS)))).hexdigest(),
            float(dataset.array(i, "action").sum()),
        )
        for i, name in enumerate(ids)
    }


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, sources: list[str]) -> dict[str, tuple[str, float]]:
    store = str(tmp_path_factory.mktemp("calm") / "store")
    for source in sources:
        run(source, store)
    found = content(store)
    assert len(found) == 12
    return found


def finish(processes: Sequence[Any]) -> None:
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * len(processes)


def at_once(server: ForkServerContext, sources: Sequence[str], store: str) -> None:
    barrier = server.Barrier(len(sources))
    processes = [server.Process(target=run, args=(source, store, barrier)) for source in sources]
    for process in processes:
        process.start()
    finish(processes)


@pytest.mark.parametrize("which", [(0, 0, 0, 0), (0, 1, 0, 1)], ids=["same", "different"])
def test_four_writers_at_once(
    server: ForkServerContext, sources: list[str], undisturbed: dict[str, Any], tmp_path: Path, which: tuple[int, ...]
) -> None:
    store = str(tmp_path / "store")
    at_once(server, [sources[i] for i in which], store)
    found = content(store)
    assert found == {name: value for name, value in undisturbed.items() if name in found}
    assert len(found) == (12 if 1 in which else 8)
    assert verify(store).ok


def run_on_s3(environment: dict[str, str], source: str, store: str, barrier: Any) -> None:
    import os

    os.environ.update(environment)
    run(source, store, barrier)


@pytest.mark.parametrize("which", [(0, 0, 0, 0), (0, 1, 0, 1)], ids=["same", "different"])
def test_four_writers_at_once_on_s3(
    server: ForkServerContext, sources: list[str], undisturbed: dict[str, Any], s3: FaultProxy, which: tuple[int, ...]
) -> None:
    import os

    environment = {name: value for name, value in os.environ.items() if name.startswith(("AWS_", "UWM_STORAGE"))}
    environment["UWM_STORAGE_TIMEOUT"] = "30"  # the machine may be busy
    barrier = server.Barrier(4)
    store = "s3://bucket/store"
    processes = [server.Process(target=run_on_s3, args=(environment, sources[i], store, barrier)) for i in which]
    for process in processes:
        process.start()
    finish(processes)
    found = content(store)
    assert found == {name: value for name, value in undisturbed.items() if name in found}
    assert len(found) == (12 if 1 in which else 8)
    assert verify(store).ok


def killed(server: ForkServerContext, sources: list[str], store: str, after: float) -> int:
    """Kill two writers at a moment; returns how many were still at work."""
    processes = [server.Process(target=run, args=(source, store)) for source in sources]
    for process in processes:
        process.start()
    time.sleep(after)
    for process in processes:
        process.kill()
    for process in processes:
        process.join(30)
    return sum(process.exitcode == -signal.SIGKILL for process in processes)


@pytest.mark.parametrize("tries", [5, pytest.param(100, marks=pytest.mark.slow)])
def test_killed_at_random_moments(
    server: ForkServerContext, sources: list[str], undisturbed: dict[str, Any], tmp_path: Path, tries: int
) -> None:
    """Two writers killed at any moment of their work; whatever they left, a rerun completes it."""
    at_once(server, sources, str(tmp_path / "first"))  # which starts the server of the processes
    began = time.monotonic()
    at_once(server, sources, str(tmp_path / "calm"))
    duration = time.monotonic() - began
    moments = random.Random(tries)  # noqa: S311
    interrupted = 0
    for i in range(tries):
        store = str(tmp_path / f"store{i}")
        interrupted += killed(server, sources, store, moments.uniform(0.02, duration))
        if (Path(store) / "episodes/_delta_log/00000000000000000000.json").exists():
            assert verify(store).ok  # what is visible is whole
        for source in sources:
            run(source, store)
        assert content(store) == undisturbed
        assert verify(store).ok
    assert interrupted >= tries // 2
