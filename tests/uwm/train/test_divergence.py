"""The divergence guard: what counts as wrong, and what it leaves behind."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from storage_schemas.errors import UserError
from storage_schemas.store.dataset import open_dataset
from uwm.checkpoint import load_checkpoint
from uwm.config import RunConfig
from uwm.data.mixture import mixture_sampler, open_mixture
from uwm.policy import LossOutput
from uwm.train.divergence import DIVERGED_FILE, DivergenceCheck
from uwm.train.trainer import train


def calm(count: int) -> list[float]:
    return [1 + 0.1 * math.sin(number) for number in range(count)]


@pytest.mark.parametrize(
    ("losses", "norms", "step", "reason"),
    [
        ([1.0, math.nan, math.nan], [1.0] * 3, 8, "the loss is nan"),
        ([1.0, 1.0], [1.0, math.inf], 8, "norm is inf"),
        ([*calm(40), 30.0, 1.0], [1.0] * 42, 47, "the loss is 30 after a median of"),
    ],
)
def test_the_first_wrong_step_is_found(losses: list[float], norms: list[float], step: int, reason: str) -> None:
    found = DivergenceCheck(window=50, limit=20).check(7, losses, norms)
    assert found is not None
    assert found.step == step
    assert reason in found.reason


def test_noise_a_slow_rise_and_the_first_steps_pass() -> None:
    assert DivergenceCheck(50, 20).check(1, [5.0, 100.0, 3.0, *calm(30)], [1.0] * 33) is None, "too few to compare with"
    assert DivergenceCheck(50, 20).check(1, [1.01**step for step in range(500)], [1.0] * 500) is None
    assert DivergenceCheck(50, 20).check(1, [*[1.0] * 40, 2.5], [1.0] * 41) is None, "equal losses have some spread"
    assert DivergenceCheck(50, 0).check(1, [*calm(40), 1e9], [1.0] * 41) is None, "off"


def test_the_window_reaches_over_checks() -> None:
    guard = DivergenceCheck(50, 20)
    assert guard.check(1, calm(40), [1.0] * 40) is None
    found = guard.check(41, [30.0], [1.0])
    assert found is not None
    assert found.step == 41


def test_a_spike_stops_the_run_and_names_its_samples(
    make_store: Callable[..., str], debug_run: Callable[..., RunConfig], builder: Any
) -> None:
    def build(config: RunConfig) -> torch.nn.Module:
        learner = builder(config)
        real = learner.loss

        def loss(batch: Any, generator: torch.Generator) -> LossOutput:
            output = real(batch, generator)
            return LossOutput(loss=output.loss * (1e3 if learner.calls == 26 else 1), logs=output.logs)

        learner.loss = loss
        return learner

    uri = make_store()
    config = debug_run(uri, "train.steps=40", "train.log_every=10", "train.save_every=10")
    with pytest.raises(UserError, match=r"diverged at step 26: the loss is .* names its samples") as caught:
        train(config, build=build)
    assert "\n" not in str(caught.value)
    last = load_checkpoint(config.folder)
    assert last.state.step == 20, "the last good one remains"
    found = json.loads((Path(config.folder) / DIVERGED_FILE).read_text())
    assert found["step"] == 26
    assert [item["step"] for item in found["samples"]] == [25] * 4 + [26] * 4
    sampler = mixture_sampler(open_mixture(last.config.data), 0)
    ids = open_dataset(uri).episodes.episode_ids
    for item in found["samples"]:
        pick = sampler.pick(item["position"])
        assert 4 * (item["step"] - 1) <= item["position"] < 4 * item["step"]
        assert (item["episode"], item["start"]) == (ids[pick.segment.episode], pick.segment.step)
        assert (item["dataset"], item["version"]) == (uri, last.state.datasets[0].version)
