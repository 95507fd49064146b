"""Two processes on one machine give what one gives: weights, order of samples, checkpoints."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from batches import image_batch

from storage_schemas.errors import UserError
from uwm.checkpoint import load_checkpoint
from uwm.config import RunConfig
from uwm.data.batch import Batch, MicroBatch
from uwm.events import load_metrics
from uwm.model.blocks import AdaLNBlock
from uwm.policies import build
from uwm.train.distributed import World
from uwm.train.optim import trained_parameters
from uwm.train.parallel import parallelize
from uwm.train.setup import prepare
from uwm.train.trainer import train

MakeRun = Callable[..., RunConfig]
MakeStore = Callable[..., str]

SCRIPT = Path(__file__).resolve().parents[2] / "support" / "train_together.py"
TOLERANCE = 1e-6
"""Of weights after four steps of at most 1e-3 each: what the order of float32 sums leaves."""


LEARNERS: dict[str, tuple[str, ...]] = {
    "uwm": (),
    "uwm-all-actions": ("policy.diffusion.action_loss=all",),
    "uwm-token-dropout": ("policy.token_dropout=0.4", "policy.diffusion.prediction=v"),
    "uwm-marked": ("policy.diffusion.absent_embedding=true", "policy.diffusion.marked_share=0.3"),
    "uwm-low-rank": ("policy.adaln=low_rank", "policy.adaln_rank=4"),
    "uwm-shared": ("policy.adaln=shared", "policy.token_dropout=0.4"),
    "uwm-seeing": ("policy.current_latents=true", "policy.diffusion.latent_target=change"),
    "pad": ("policy=pad",),
    "dp": ("policy=dp",),
    "dp_unet": ("policy=dp_unet", "policy.widths=16,32"),
    "gr1": ("policy=gr1", "policy.obs_encoder.kind=vit_small", "policy.decoder.patch=8", "policy.decoder.heads=2"),
}
"""What the trainer trains: every policy, and UWM with every setting that changes what its loss counts or reaches."""


def train_together(configs: list[RunConfig], folder: Path) -> None:
    """Train some runs, each in the same two processes."""
    paths = []
    for number, config in enumerate(configs):
        paths.append(folder / f"config-{number}.json")
        paths[-1].write_text(config.model_dump_json())
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(SCRIPT)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(
        [*command, *map(str, paths)], env=environment, capture_output=True, text=True, timeout=300, check=False
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


@pytest.mark.slow
def test_two_processes_give_the_weights_of_one_with_the_doubled_batch(
    tmp_path: Path, mixed: Callable[..., RunConfig]
) -> None:
    half, quarter = "train.batch_size=2", ("train.batch_size=1", "train.accumulate=2")
    fsdp = "train.parallel=fsdp"
    ways = {
        "ddp": (half,),
        "fsdp": (half, fsdp),
        "hsdp": (half, fsdp, "train.replicas=2"),
        "ddp-accumulated": quarter,
        "fsdp-accumulated": (*quarter, fsdp, "train.checkpoint_activations=true"),
    }
    configs = {name: mixed(*pairs, output=name) for name, pairs in ways.items()}
    alone = train(mixed(output="alone"))
    train_together(list(configs.values()), tmp_path)
    expected = load_metrics(alone.parents[1])[-1]
    for name, config in configs.items():
        assert distance(alone, config.folder) < TOLERANCE, name
        found = load_metrics(config.folder)[-1]
        assert found.detail == pytest.approx(expected.detail, rel=1e-4), name
        assert (found.loss, found.grad_norm) == pytest.approx((expected.loss, expected.grad_norm), rel=1e-4), name


@pytest.mark.slow
@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_every_learner_trains_together_as_alone(
    way: str, tmp_path: Path, mixed: Callable[..., RunConfig], make_store: MakeStore
) -> None:
    """Each process has one sample of a step; some have no action, others neither action nor image.

    Some gradients are nothing but rounding, 1e-8 and less, and Adam's usual `eps` would make whole steps of them, in
    either direction: with a larger one a step differs by no more than its gradient does.
    """
    blind = make_store("blind", (8,), known=False, cameras=())
    settings = (f"data.datasets.2.uri={blind}", "train.steps=3", "optim.lr=1e-3", "optim.eps=1e-4")
    two = (*settings, "train.batch_size=1", f"train.parallel={way}")
    together = {name: mixed(*pairs, *two, output=f"{name}-{way}") for name, pairs in LEARNERS.items()}
    train_together(list(together.values()), tmp_path)
    for name, config in together.items():
        alone = train(mixed(*LEARNERS[name], *settings, "train.batch_size=2", output=name))
        assert distance(alone, config.folder) < 1e-5, name


@pytest.mark.slow
@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_every_policy_trains_together_in_bf16(way: str, tmp_path: Path, mixed: Callable[..., RunConfig]) -> None:
    names = ("uwm", "pad", "dp", "dp_unet", "gr1")
    settings = ("train.precision=bf16", "train.steps=2", "train.checkpoint_activations=true")
    two = (*settings, "train.batch_size=2", f"train.parallel={way}")
    together = {name: mixed(*LEARNERS[name], *two, output=f"{name}-{way}") for name in names}
    train_together(list(together.values()), tmp_path)
    for name, config in together.items():
        alone = load_checkpoint(train(mixed(*LEARNERS[name], *settings, output=name))).state.metrics
        assert load_checkpoint(config.folder).state.metrics == pytest.approx(dict(alone), rel=0.02), name


@pytest.mark.slow
def test_checkpoints_load_on_any_number_of_processes_and_bf16_trains(
    tmp_path: Path, mixed: Callable[..., RunConfig]
) -> None:
    half, fsdp, two = "train.batch_size=2", "train.parallel=fsdp", "train.steps=2"
    alone = train(mixed(output="alone"))
    train(mixed(two, output="one-then-two"))
    rounded = train(mixed("train.precision=bf16", output="bf16"))
    bf16 = {way: mixed(half, f"train.parallel={way}", "train.precision=bf16", output=way) for way in ("ddp", "fsdp")}
    train_together(
        [
            mixed(half, fsdp, output="one-then-two"),
            mixed(half, fsdp, two, output="two-then-one"),
            *bf16.values(),
        ],
        tmp_path,
    )
    resumed = train(mixed(output="two-then-one"))
    assert distance(alone, resumed) < TOLERANCE
    assert distance(alone, mixed(output="one-then-two").folder) < TOLERANCE
    first, second = load_checkpoint(alone), load_checkpoint(resumed)
    kept = second.tensors("optim")
    assert all(torch.allclose(value, kept[name], atol=1e-5) for name, value in first.tensors("optim").items())
    expected = load_checkpoint(rounded).state.metrics["loss"]
    for way, config in bf16.items():
        assert load_checkpoint(config.folder).state.metrics["loss"] == pytest.approx(expected, rel=0.01), way


def test_accumulated_batches_give_the_weights_of_one_batch(mixed: Callable[..., RunConfig]) -> None:
    alone = train(mixed(output="alone"))
    parts = train(mixed("train.batch_size=1", "train.accumulate=4", output="parts"))
    assert distance(alone, parts) < TOLERANCE
    one, four = load_checkpoint(alone).state, load_checkpoint(parts).state
    assert four.metrics == pytest.approx(dict(one.metrics), rel=1e-4)
    assert four.batch == one.batch == 4


def test_a_run_goes_on_with_other_batches_of_the_same_steps(
    make_store: MakeStore, debug_run: MakeRun, make_builder: Callable[[], Any]
) -> None:
    uri, whole, parts = make_store(), make_builder(), make_builder()
    train(debug_run(uri, output="whole"), build=whole)
    train(debug_run(uri, "train.steps=2", output="parts"), build=parts)
    halves = ("train.batch_size=2", "train.accumulate=2")
    train(debug_run(uri, *halves, output="parts"), build=parts)
    expected = [batch.action for learner in whole.built for batch in learner.seen]
    seen = [batch.action for learner in parts.built for batch in learner.seen]
    assert [len(action) for action in seen] == [4, 4, 2, 2, 2, 2]
    assert torch.equal(torch.cat(seen), torch.cat(expected)), "the same samples in the same order"
    with pytest.raises(UserError, match=r"samples of a step .*: 4 -> 2"):
        train(debug_run(uri, "train.batch_size=2", "train.steps=6", output="parts"), build=parts)


def test_checkpointed_activations_are_computed_twice_and_give_the_same_weights(
    make_store: MakeStore, debug_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, calls, forward = make_store(), [], AdaLNBlock.forward

    def counted(block: AdaLNBlock, *args: torch.Tensor) -> torch.Tensor:
        calls.append(block)
        return forward(block, *args)

    monkeypatch.setattr(AdaLNBlock, "forward", counted)
    kept = load_checkpoint(train(debug_run(uri, output="kept")))
    once = len(calls)
    again = load_checkpoint(train(debug_run(uri, "train.checkpoint_activations=true", output="again")))
    assert len(calls) - once == 2 * once == 16
    assert kept.state.files["model.safetensors"] == again.state.files["model.safetensors"]


@pytest.mark.parametrize("name", LEARNERS)
def test_shares_of_a_step_add_up_to_its_loss_and_gradient(name: str, mixed: Callable[..., RunConfig]) -> None:
    """Known actions lie in one half, one sample knows nothing at all: the mean is over the step's known elements."""
    policy, batch = _awake(mixed(*LEARNERS[name], output="none")), _uneven_batch()
    trained = list(trained_parameters(policy).values())
    whole = policy.loss(batch, torch.Generator().manual_seed(1))
    expected = torch.autograd.grad(whole.loss, trained)
    for parts in (2, 4):
        losses, gradients = [], [torch.zeros_like(gradient) for gradient in expected]
        for part in _micro_batches(batch, parts):
            output = policy.loss(_rows(batch, part, 4 // parts), torch.Generator().manual_seed(1))
            losses.append(output.loss.detach())
            found = torch.autograd.grad(output.loss / parts, trained)  # every part reaches every parameter
            gradients = [one + other for one, other in zip(gradients, found, strict=True)]
        torch.testing.assert_close(sum(losses) / parts, whole.loss.detach())
        assert max(losses) - min(losses) > 0.01, "the parts_of_it are not alike"
        torch.testing.assert_close(gradients, list(expected), atol=1e-5, rtol=1e-3)


def _awake(config: RunConfig) -> Any:
    """A policy with no weight at zero, where fresh modulations are."""
    torch.manual_seed(0)
    policy, draws = build(config), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=draws))
    return policy


def _uneven_batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    obs, next_obs = (torch.rand(4, 2, 2, 3, 16, 24, generator=generator) for _ in range(2))
    obs_mask, next_mask = torch.ones(2, 4, 2, 2, dtype=torch.bool).unbind()
    obs_mask[3] = next_mask[3] = False
    steps = torch.tensor([[True] * 4, [True, True, False, False], [False] * 4, [False] * 4])
    action_mask = steps[..., None] & torch.tensor([[True] * 3, [True, False, True], [True] * 3, [True] * 3])[:, None]
    return image_batch(
        obs=obs * obs_mask[..., None, None, None],
        obs_mask=obs_mask,
        next_obs=next_obs * next_mask[..., None, None, None],
        next_mask=next_mask,
        action=torch.rand(4, 4, 3, generator=generator) * action_mask,
        action_mask=action_mask,
    )


def _micro_batches(batch: Batch, parts: int) -> list[MicroBatch]:
    known = {"known_actions": batch.action_mask, "known_frames": batch.next_mask}
    counts = {name: float(mask.sum()) / parts for name, mask in known.items()}
    return [
        MicroBatch(first=place, samples=len(batch), **counts) for place in range(0, len(batch), len(batch) // parts)
    ]


def _rows(batch: Batch, part: MicroBatch, count: int) -> Batch:
    held = {f.name: getattr(batch, f.name) for f in fields(batch)}
    tensors = {name: value for name, value in held.items() if isinstance(value, torch.Tensor)}
    return replace(batch, micro_batch=part, **{name: value[part.first :][:count] for name, value in tensors.items()})


def test_processes_must_divide_into_replicas_and_tokenizers_train_alone(
    make_store: MakeStore, debug_run: MakeRun
) -> None:
    config, two = debug_run(make_store(), "train.parallel=fsdp", "train.replicas=3"), World(size=2)
    with pytest.raises(UserError, match=r"2 processes are not divisible by train\.replicas=3"):
        parallelize(torch.nn.Linear(2, 2), config.train, two, torch.device("cpu"), torch.float32)
    for pairs, world in (((), two), (("train.accumulate=2",), World())):
        with pytest.raises(UserError, match=r"set train\.processes=1 and train\.accumulate=1"):
            prepare(debug_run("store", "stage=tokenizer", *pairs), None, build, world)


def test_several_machines_need_a_place_to_meet(debug_run: MakeRun) -> None:
    with pytest.raises(UserError, match=r"train\.rendezvous=host:port"):
        debug_run("store", "train.machines=2")
