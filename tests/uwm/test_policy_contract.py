"""What the trainer and the evaluation rely on, for every policy: a new one is one more name in `POLICIES`."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from batches import image_batch, with_masks
from torch import Tensor

from storage_schemas.errors import UserError
from storage_schemas.store.dataset import open_dataset
from uwm.auto import AutoPolicy
from uwm.bundle import CARD_FILE, export
from uwm.checkpoint import load_checkpoint, load_policy
from uwm.config import RunConfig
from uwm.data.augment import training_batch
from uwm.data.batch import Batch
from uwm.data.loader import SegmentReader, batches
from uwm.data.mixture import mixture_normalizer, mixture_sampler, open_mixture
from uwm.diffusion.modes import MODES, Role
from uwm.eval.offline import evaluate
from uwm.eval.options import EvalOptions
from uwm.events import TrainEvent, TrainProgress
from uwm.policies import build
from uwm.policy import Mode, Policy, Sample
from uwm.report.html import ReportEvaluation, write_report
from uwm.train.trainer import train

MakeStore = Callable[..., str]
MakeRun = Callable[..., RunConfig]

POLICIES: dict[str, frozenset[Mode]] = {
    "uwm": frozenset(Mode),
    "pad": frozenset({Mode.POLICY, Mode.VIDEO, Mode.JOINT}),
    "dp": frozenset({Mode.POLICY}),
    "dp_unet": frozenset({Mode.POLICY}),
    "gr1": frozenset({Mode.POLICY, Mode.VIDEO, Mode.JOINT}),
}

pytestmark = pytest.mark.parametrize("name", POLICIES)


@pytest.fixture
def configure(make_store: MakeStore, debug_run: MakeRun) -> MakeRun:
    """A function that makes a policy's tiny run on robot episodes and action-free video."""
    robot, video = make_store("robot", (12, 9), val=50), make_store("video", (12, 9), known=False)

    def make(name: str, *pairs: str, output: str = "run") -> RunConfig:
        mixture = (f"data.datasets.1.uri={video}", "train.steps=3")
        return debug_run(robot, *mixture, *pairs, output=output, policy=name)

    return make


@pytest.fixture
def awake(name: str, configure: MakeRun) -> Policy:
    """The policy with no weight at zero, where fresh modulations are, so that every input matters."""
    torch.manual_seed(0)
    policy = build(configure(name))
    draws = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=draws))
    assert isinstance(policy, Policy)
    return policy


@pytest.fixture
def batch(name: str, configure: MakeRun) -> Batch:
    """Four samples of the mixture: 0 and 2 with actions, 1 and 3 of action-free video."""
    config = configure(name)
    members = open_mixture(config.data)
    reader = SegmentReader([member.dataset for member in members], config.data)
    source = batches(
        reader,
        mixture_sampler(members, 0),
        start=0,
        stop=16,
        batch_size=16,
        workers=0,
        prefetch=1,
        pin=False,
    )
    normalizer = mixture_normalizer(members, config.data.action_scale)
    drawn = training_batch(next(iter(source)), config.data, normalizer, device=torch.device("cpu"))
    acts = drawn.action_mask.flatten(1).all(1)
    whole = drawn.next_mask.flatten(1).all(1)
    known, free = (torch.nonzero(rows & whole).flatten()[:2] for rows in (acts, ~drawn.action_mask.flatten(1).any(1)))
    order = torch.stack([known, free], dim=1).flatten()
    return take(drawn, order)


def take(batch: Batch, rows: Tensor) -> Batch:
    names = ("obs", "obs_mask", "next_obs", "next_mask", "action", "action_mask")
    return image_batch(**{name: getattr(batch, name)[rows] for name in names})


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def parts(sample: Sample) -> dict[str, Tensor]:
    found = {"action": sample.action, "next_obs": sample.next_obs}
    return {key: value for key, value in found.items() if value is not None}


def gradients(policy: Policy, batch: Batch) -> dict[str, Tensor]:
    policy.zero_grad()
    policy.loss(batch, draws()).loss.backward()
    return {key: p.grad.clone() for key, p in policy.named_parameters() if p.grad is not None}


def test_it_says_what_it_can(name: str, awake: Policy) -> None:
    assert awake.modes == POLICIES[name]


def test_pretraining_cotraining_and_finetuning(name: str, configure: MakeRun) -> None:
    events: list[TrainEvent] = []
    video = configure(name).data.datasets[1]
    alone = configure(name, output="alone")
    alone = alone.model_copy(update={"data": alone.data.model_copy(update={"datasets": alone.data.datasets[:1]})})
    train(alone, on_event=events.append)
    parent = train(configure(name, output="both"), on_event=events.append)
    path = train(
        configure(name, "stage=finetune", f"init_from={parent}", output="task"),
        on_event=events.append,
    )
    steps = [event for event in events if isinstance(event, TrainProgress)]
    assert [event.step for event in steps] == [1, 2, 3] * 3
    assert all("action_loss" in event.logs for event in steps)
    state = load_checkpoint(path).state
    assert state.parent is not None
    assert state.parent.identity == load_checkpoint(parent).identity
    assert video.uri in {use.uri for use in load_checkpoint(parent).state.datasets}


def test_resumed_runs_are_identical_to_the_bit(name: str, configure: MakeRun) -> None:
    straight = load_checkpoint(train(configure(name, output="straight")))
    train(configure(name, "train.steps=2", output="halved"))
    resumed = load_checkpoint(train(configure(name, output="halved")))
    for kind in ("model", "ema", "optim"):
        first, second = straight.tensors(kind), resumed.tensors(kind)
        assert first.keys() == second.keys()
        assert all(torch.equal(value, second[key]) for key, value in first.items())


def test_what_is_saved_samples_the_same(name: str, configure: MakeRun, batch: Batch) -> None:
    path = train(configure(name))
    loaded, again = (load_policy(path, "cpu").policy for _ in range(2))
    assert not any("tokenizer" in key for key in loaded.state_dict())
    for mode in POLICIES[name]:
        one, two = (parts(policy.sample(batch, mode, draws())) for policy in (loaded, again))
        assert one.keys() == two.keys()
        assert all(torch.equal(value, two[key]) for key, value in one.items())


@pytest.mark.parametrize("mode", list(Mode))
def test_every_mode_samples_what_it_asks_for(name: str, awake: Policy, batch: Batch, mode: Mode) -> None:
    if mode not in POLICIES[name]:
        with pytest.raises(UserError, match=f"no mode {mode}"):
            awake.sample(batch, mode, draws())
        return
    found, roles = awake.sample(batch, mode, draws()), MODES[mode]
    assert (found.action is not None) == (roles.action is Role.DENOISE)
    assert (found.next_obs is not None) == (roles.next_obs is Role.DENOISE)
    if found.action is not None:
        assert found.action.shape == batch.action.shape
    if found.next_obs is not None:
        assert found.next_obs.shape == awake.encode(batch.next_obs).shape
        assert awake.decode(found.next_obs).shape == batch.next_obs.shape
    assert all(value.isfinite().all() and value.dtype == torch.float32 for value in parts(found).values())


def test_modes_that_share_an_encoding_sample_the_same(name: str, awake: Policy, batch: Batch) -> None:
    with torch.no_grad():
        encoded = awake.encode_batch(batch)
    together = awake.sample_modes(encoded, sorted(POLICIES[name]), draws())
    assert together.keys() == POLICIES[name]
    for mode, shared in together.items():
        for key, value in parts(awake.sample(batch, mode, draws())).items():
            torch.testing.assert_close(parts(shared)[key], value, atol=1e-5, rtol=0)


def test_samples_follow_what_is_seen(name: str, awake: Policy, batch: Batch) -> None:
    other = replace(batch, obs=batch.obs.roll(1, dims=0))
    for mode in POLICIES[name]:
        one, two = (parts(awake.sample(seen, mode, draws())) for seen in (batch, other))
        assert not any(torch.equal(value, two[key]) for key, value in one.items())


def test_all_randomness_comes_from_the_generator(name: str, awake: Policy, batch: Batch) -> None:
    losses, samples = [], []
    for global_seed, seed in ((1, 5), (2, 5), (2, 6)):
        torch.manual_seed(global_seed)
        losses.append(awake.loss(batch, draws(seed)).loss.detach())
        samples.append(parts(awake.sample(batch, Mode.POLICY, draws(seed)))["action"])
    assert torch.equal(losses[0], losses[1])
    assert torch.equal(samples[0], samples[1])
    diffuses = name != "gr1"
    assert torch.equal(losses[1], losses[2]) != diffuses
    assert torch.equal(samples[1], samples[2]) != diffuses


def test_action_free_samples_change_no_action_loss_and_no_gradient(name: str, awake: Policy, batch: Batch) -> None:
    free = ~batch.action_mask.flatten(1).any(1)
    assert free.tolist() == [False, True, False, True]
    actions_only = with_masks(batch, next_mask=torch.zeros_like(batch.next_mask))
    rows = free[:, None, None, None, None, None]
    other = replace(actions_only, obs=torch.where(rows, 1 - actions_only.obs, actions_only.obs))
    assert awake.loss(actions_only, draws()).logs["action_loss"] > 0
    assert torch.equal(awake.loss(actions_only, draws()).loss, awake.loss(other, draws()).loss)
    one, two = gradients(awake, actions_only), gradients(awake, other)
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, atol=1e-7, rtol=1e-5)
    silent = with_masks(actions_only, action_mask=torch.zeros_like(batch.action_mask))
    assert awake.loss(silent, draws()).loss == 0
    assert not any(value.any() for value in gradients(awake, silent).values())


def test_what_is_unknown_is_never_looked_at(name: str, awake: Policy, batch: Batch) -> None:
    batch.action_mask[0, 2:] = False
    batch.action_mask[2, :, 1] = False
    batch.obs_mask[2, 1] = False
    batch.next_mask[2, 1] = False
    batch.next_mask[3, :, 1] = False
    batch = with_masks(batch)

    def scramble(values: Tensor, mask: Tensor) -> Tensor:
        return torch.where(mask.view(*mask.shape, *[1] * (values.dim() - mask.dim())), values, torch.nan)

    other = replace(
        batch,
        obs=scramble(batch.obs, batch.obs_mask),
        next_obs=scramble(batch.next_obs, batch.next_mask),
        action=scramble(batch.action, batch.action_mask),
    )
    one, two = gradients(awake, batch), gradients(awake, other)
    assert all(torch.equal(value, two[key]) for key, value in one.items())
    for mode in POLICIES[name]:
        first, second = (parts(awake.sample(seen, mode, draws())) for seen in (batch, other))
        assert all(torch.equal(value, second[key]) for key, value in first.items())


def test_every_parameter_is_trained(name: str, awake: Policy, batch: Batch) -> None:
    """One that no loss reaches would stall distributed training."""
    found = gradients(awake, batch)
    assert isinstance(awake, torch.nn.Module)
    assert found.keys() == {key for key, parameter in awake.named_parameters() if parameter.requires_grad}
    assert all(value.any() for value in found.values())
    frozen = {key for key, parameter in awake.named_parameters() if not parameter.requires_grad}
    assert frozen == ({"transformer.pad_tokens"} if name == "pad" else set()), "nothing attends to PAD's padding"


def test_bf16_autocast(name: str, awake: Policy, batch: Batch) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = awake.loss(batch, draws())
        samples = [value for mode in POLICIES[name] for value in parts(awake.sample(batch, mode, draws())).values()]
    output.loss.backward()
    exact = awake.loss(batch, draws()).loss
    torch.testing.assert_close(output.loss, exact, atol=0, rtol=0.05)
    assert all(value.dtype == torch.float32 and value.isfinite().all() for value in samples)


def test_bf16_weights_sample_nearly_the_same(name: str, awake: Policy, batch: Batch) -> None:
    exact = awake.sample(batch, Mode.POLICY, draws()).action
    assert isinstance(awake, torch.nn.Module)
    for part in awake.children():
        part.to(torch.bfloat16)
    for mode in POLICIES[name]:
        found = awake.sample(batch, mode, draws())
        assert all(value.dtype == torch.float32 and value.isfinite().all() for value in parts(found).values())
        if mode is Mode.POLICY:
            assert (found.action - exact).abs().mean() < 0.1


@pytest.mark.slow
def test_it_learns_a_batch(name: str, configure: MakeRun, batch: Batch) -> None:
    """From its own initialization every loss must fall quickly."""
    torch.manual_seed(0)
    policy = build(configure(name, *(("policy.diffusion.prediction=sample",) if name != "gr1" else ())))
    optimizer, noise, losses = torch.optim.AdamW(policy.parameters(), lr=3e-3), draws(), []
    for _ in range(150):
        optimizer.zero_grad()
        output = policy.loss(batch, noise)
        output.loss.backward()
        optimizer.step()
        losses.append(torch.stack(list(output.logs.values())))
    start, end = torch.stack(losses[:10]).mean(0), torch.stack(losses[-10:]).mean(0)
    assert (end < 0.5 * start).all(), f"{start} -> {end}"


def test_it_is_exported_with_a_card_of_its_own(name: str, configure: MakeRun, tmp_path: Path) -> None:
    path, bundle = train(configure(name, "train.steps=1")), tmp_path / "bundle"
    export(path, bundle)
    image = np.full((24, 32, 3), 90, np.uint8)
    one, two = (AutoPolicy.load(place, device="cpu").act({"left": image}) for place in (path, bundle))
    np.testing.assert_array_equal(one, two)
    card = (bundle / CARD_FILE).read_text()
    assert {"uwm": "Unified World Model", "pad": "PAD", "gr1": "GR-1"}.get(name, "Diffusion Policy") in card
    assert ("Unified World Model" in card) == (name == "uwm")
    assert "1 of 1 steps of 4 samples" in card


def test_it_is_evaluated_in_the_modes_it_has(name: str, configure: MakeRun, tmp_path: Path) -> None:
    config = configure(name)
    path = train(config)
    folder, page = str(tmp_path / "evaluation"), tmp_path / "report.html"
    found = evaluate(
        str(path), open_dataset(config.data.datasets[0].uri), EvalOptions(samples=4), examples=2, out=folder
    )
    assert {score.mode for score in found.scores} == {str(mode) for mode in POLICIES[name]}
    predicts = any(MODES[mode].next_obs is Role.DENOISE for mode in POLICIES[name])
    assert (found.ceiling is not None) == predicts
    write_report(str(page), title="", evaluations=[ReportEvaluation(label=name, folder=folder)])
    assert ("tokenizer&#39;s own" in page.read_text()) == predicts
