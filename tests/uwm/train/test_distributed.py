"""Two processes on one machine give what one gives: weights, order of samples, checkpoints."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from uwm.config import RunConfig
from uwm.train.checkpoint import latest_checkpoint, load_checkpoint
from uwm.train.trainer import train

MakeRun = Callable[..., RunConfig]
MakeStore = Callable[..., str]

SCRIPT = Path(__file__).resolve().parents[2] / "support" / "train_together.py"
TOLERANCE = 1e-6
"""Of weights after four steps of at most 1e-3 each: what the order of float32 sums leaves."""


def train_together(configs: list[RunConfig], folder: Path) -> None:
    """Train some runs, each in the same two processes."""
    paths = []
    for number, config in enumerate(configs):
        paths.append(folder / f"config-{number}.json")
        paths[-1].write_text(config.model_dump_json())
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(SCRIPT)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(
        [*command, *map(str, paths)], env=environment, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]


def distance(one: str | Path, two: str | Path) -> float:
    """The largest difference of any weight or average of two runs."""
    first, second = load_checkpoint(one), load_checkpoint(two)
    assert first.state.position == second.state.position
    found = 0.0
    for kind in ("model", "ema"):
        a, b = first.tensors(kind), second.tensors(kind)
        assert a.keys() == b.keys()
        found = max(found, *(float((a[name] - b[name]).abs().max()) for name in a))
    return found


@pytest.fixture
def mixed(make_store: MakeStore, debug_run: MakeRun) -> Callable[..., RunConfig]:
    """Makes runs whose action-free samples lie unevenly: one of the four of each step."""
    robot, video = make_store("robot"), make_store("video", (8,), known=False)

    def make(*pairs: str, output: str) -> RunConfig:
        mixture = ("data.datasets.0.weight=3", f"data.datasets.1.uri={video}")
        return debug_run(robot, *mixture, *pairs, output=output)

    return make


def test_two_processes_give_the_weights_of_one_with_the_doubled_batch(
    tmp_path: Path, mixed: Callable[..., RunConfig]
) -> None:
    half = "train.batch_size=2"
    ways = {
        "ddp": mixed(half, output="ddp"),
        "fsdp": mixed(half, "train.parallel=fsdp", output="fsdp"),
        "hsdp": mixed(half, "train.parallel=fsdp", "train.replicas=2", output="hsdp"),
        "ddp-accumulated": mixed("train.batch_size=1", "train.accumulate=2", output="ddp-accumulated"),
        "fsdp-accumulated": mixed(
            "train.batch_size=1",
            "train.accumulate=2",
            "train.parallel=fsdp",
            "train.checkpoint_activations=true",
            output="fsdp-accumulated",
        ),
    }
    alone = train(mixed(output="alone"))
    train_together(list(ways.values()), tmp_path)
    for name, config in ways.items():
        assert distance(alone, config.folder) < TOLERANCE, name
