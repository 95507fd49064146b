"""Losses by dataset and mode, FLOPs, parameter norm: against sums made by hand."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from uwm.config import RunConfig
from uwm.events import Evaluated, TrainEvent, TrainProgress
from uwm.policy import LossOutput, SampleLosses
from uwm.train.diagnostics import Buckets, _labels, flop_counter, peak_flops
from uwm.train.distributed import World
from uwm.train.trainer import train


def losses(error: list[float], noise: list[float], known: list[bool] | None = None) -> SampleLosses:
    return SampleLosses(
        error=torch.tensor(error), known=torch.tensor(known or [True] * len(error)), noise=torch.tensor(noise)
    )


class TwoProcesses(World):
    """The other one has seen one sample with an error of 5."""

    def sum(self, record: Any) -> Any:
        return replace(record, errors=(record.errors[0] + 5.0,), samples=(record.samples[0] + 1.0,))


def output(action: SampleLosses | None, next_obs: SampleLosses | None) -> LossOutput:
    return LossOutput(loss=torch.zeros(()), logs={}, action=action, next_obs=next_obs)


def test_losses_by_dataset_count_what_is_known() -> None:
    buckets = Buckets(["robot", "video"])
    action = losses([1.0, 3.0, 9.0], [0.5] * 3, [True, True, False])
    next_obs = losses([2.0, 4.0, 6.0], [0.5] * 3)
    buckets.add(output(action, next_obs), torch.tensor([0, 0, 1]))
    buckets.add(output(losses([5.0], [0.5]), losses([0.0], [0.5])), torch.tensor([0]))
    found = buckets.read(World())
    assert found["dataset/robot/action_loss"] == pytest.approx(3.0)
    assert found["dataset/robot/next_obs_loss"] == pytest.approx(2.0)
    assert found["dataset/video/next_obs_loss"] == pytest.approx(6.0)
    assert "dataset/video/action_loss" not in found, "video has no actions"
    assert buckets.read(World()) == {}


def test_losses_by_mode_follow_the_noise_of_the_other_modality() -> None:
    buckets = Buckets(["robot"])
    action = losses([1.0, 2.0, 3.0, 4.0], [0.0, 1.0, 0.5, 0.5])
    next_obs = losses([10.0, 20.0, 30.0, 40.0], [0.5, 0.4, 0.0, 1.0])
    buckets.add(output(action, next_obs), torch.zeros(4, dtype=torch.int64))
    found = {name: value for name, value in buckets.read(World()).items() if name.startswith("mode/")}
    assert found == {
        "mode/policy/action_loss": 4.0,
        "mode/inverse/action_loss": 3.0,
        "mode/forward/next_obs_loss": 10.0,
        "mode/video/next_obs_loss": 20.0,
    }


def test_processes_are_summed() -> None:
    buckets = Buckets(["robot"])
    buckets.add(output(losses([1.0], [0.5]), None), torch.tensor([0]))
    found = buckets.read(TwoProcesses(size=2))
    assert found == {"dataset/robot/action_loss": 3.0}


def test_datasets_of_one_name_are_numbered() -> None:
    assert _labels(["s3://a/droid", "b/droid/", "b/video"]) == ["droid-0", "droid-1", "video"]


def test_flops_of_a_linear_layer_forward_and_backward() -> None:
    layer = nn.Linear(8, 16, bias=False)
    inputs = torch.randn(4, 8, requires_grad=True)
    with flop_counter() as counter:
        layer(inputs).sum().backward()
    assert counter.get_total_flops() == 3 * 2 * 4 * 8 * 16


def test_a_cpu_has_no_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    assert peak_flops(torch.device("cpu")) is None
    for name, peak in (("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H100 PCIe", 756e12), ("Some GPU", None)):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, name=name: name)
        assert peak_flops(torch.device("cuda")) == peak


def test_a_policys_losses_by_sample_make_up_its_loss(
    make_store: Callable[..., str], debug_run: Callable[..., RunConfig]
) -> None:
    events: list[TrainEvent] = []
    uri = make_store(lengths=(12, 9))
    train(debug_run(uri, "train.steps=2", "train.batch_size=4"), on_event=events.append)
    progress = [event for event in events if isinstance(event, TrainProgress)]
    assert len(progress) == 2
    for event in progress:
        assert event.detail["dataset/store/next_obs_loss"] > 0
        assert event.detail["parameter_norm"] > 0
        assert "mfu" not in event.detail


def test_evaluation_does_not_touch_the_run(
    make_store: Callable[..., str], debug_run: Callable[..., RunConfig], tmp_path: Path
) -> None:
    from uwm.checkpoint import load_checkpoint

    uri = make_store(lengths=(12,) * 8, val=40)
    runs = {}
    for name, pairs in (("plain", ()), ("watched", ("train.eval_every=1", "train.eval_samples=2"))):
        events: list[TrainEvent] = []
        path = train(debug_run(uri, *pairs, "train.steps=3", output=name), on_event=events.append)
        runs[name] = load_checkpoint(path), [event for event in events if isinstance(event, Evaluated)]
    (plain, none), (watched, found) = runs["plain"], runs["watched"]
    assert not none
    assert [event.step for event in found] == [1, 2, 3]
    assert found[0].metrics["policy/action_mse"] > 0
    assert set(found[0].gains) == set(found[0].metrics)
    assert (Path(found[0].folder) / "examples.npz").is_file()
    for kind in ("model", "ema", "optim"):
        same: dict[str, Tensor] = watched.tensors(kind)
        assert all(torch.equal(value, same[name]) for name, value in plain.tensors(kind).items())


def test_evaluation_needs_held_out_episodes(
    make_store: Callable[..., str], debug_run: Callable[..., RunConfig]
) -> None:
    from storage_schemas.errors import UserError

    with pytest.raises(UserError, match="needs held-out episodes"):
        train(debug_run(make_store(), "train.eval_every=1"))
