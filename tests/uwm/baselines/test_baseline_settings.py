"""What the baselines make of settings: refused in one line where they can't follow, followed where they can."""

from collections.abc import Callable

import pytest
import torch
from batches import image_batch

from storage_schemas.errors import UserError
from uwm.baselines.pad_network import PadTransformer
from uwm.config import RunConfig
from uwm.data.batch import Batch
from uwm.events import TrainProgress
from uwm.latents.encode import encode_run
from uwm.overrides import apply_overrides
from uwm.policies import build
from uwm.policy import Mode, Policy
from uwm.recipes import get_recipe
from uwm.train.trainer import train

GR1 = ("policy=gr1", "policy.obs_encoder.kind=vit_small", "policy.decoder.heads=2", "policy.decoder.patch=8")
MakeRun = Callable[..., RunConfig]
MakeStore = Callable[..., str]


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_batch(config: RunConfig, size: int = 3) -> Batch:
    data, noise = config.data, draws()
    views, image = len(data.cameras), (3, *data.crop)

    def known(*shape: int) -> torch.Tensor:
        return torch.ones(size, *shape, dtype=torch.bool)

    return image_batch(
        obs=torch.rand(size, views, data.obs_frames, *image, generator=noise),
        obs_mask=known(views, data.obs_frames),
        next_obs=torch.rand(size, views, data.next_frames, *image, generator=noise),
        next_mask=known(views, data.next_frames),
        action=torch.rand(size, data.action_horizon, data.action_dim, generator=noise) * 2 - 1,
        action_mask=known(data.action_horizon, data.action_dim),
    )


@pytest.mark.parametrize("name", ["pad", "gr1"])
def test_masking_is_not_a_choice_where_it_is_published(name: str) -> None:
    with pytest.raises(UserError, match="action_loss"):
        apply_overrides(get_recipe("debug"), [f"policy={name}", "policy.diffusion.action_loss=all"])


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (("policy=dp_unet", "data.action_horizon=5"), "5 can't be halved 2 times"),
        (("policy=gr1",), "policy.obs_encoder.kind: Input should be 'vit_b_32' or 'vit_small'"),
        ((*GR1, "data.next_frames=1"), "obs_frames 2 must equal"),
        ((*GR1, "policy.decoder.patch=5"), "not divisible by policy.decoder.patch"),
        ((*GR1, "policy.decoder.heads=5"), "not divisible by decoder.heads 5"),
        ((*GR1, "policy.obs_encoder.kind=vit_b_32"), "not divisible by vit_b_32's patch 32"),
        (("policy=pad", "data.next_frames=1"), "obs_frames 2 must equal"),
        (("policy=pad", "policy.patch=2,5,8"), "not divisible by policy.patch"),
    ],
)
def test_sizes_that_do_not_fit_end_in_one_line(pairs: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(apply_overrides(get_recipe("debug"), pairs))


@pytest.mark.parametrize("widths", ["16", "16,20"])
def test_a_unet_that_can_not_be_built_is_refused(widths: str) -> None:
    with pytest.raises(UserError, match=r"widths|groups"):
        apply_overrides(get_recipe("debug_dp_unet"), [f"policy.widths={widths}"])


def test_published_diffusion_policy_counts_all_actions() -> None:
    config = apply_overrides(get_recipe("debug"), ["policy=dp", "policy.diffusion.action_loss=all"])
    batch = random_batch(config)
    batch.action_mask[:] = False
    assert build(config).loss(batch, draws()).logs["action_loss"] > 0


def test_pad_can_predict_the_change() -> None:
    """An untrained decoder predicts a change of zero, which is a copy of the current frame."""
    settings = ("policy=pad", "policy.diffusion.latent_target=change", "policy.diffusion.prediction=sample")
    policy = build(apply_overrides(get_recipe("debug"), [*settings, "policy.diffusion.sample_steps=1"]))
    for parameter in policy.transformer.obs_patchifier.patch_decoder.parameters():
        torch.nn.init.zeros_(parameter)
    batch = random_batch(apply_overrides(get_recipe("debug"), settings))
    predicted = policy.sample(batch, Mode.VIDEO, draws()).next_obs
    assert predicted is not None
    torch.testing.assert_close(predicted, policy.encode(batch.obs)[:, :, :, -1:].expand_as(predicted))


def test_pad_policy_and_joint_mode_are_one_process() -> None:
    config = apply_overrides(get_recipe("debug"), ["policy=pad"])
    policy, batch = build(config), random_batch(config)
    alone, joint = (policy.sample(batch, mode, draws()).action for mode in (Mode.POLICY, Mode.JOINT))
    assert alone is not None
    assert joint is not None
    assert torch.equal(alone, joint)


def test_pad_trains_on_cached_latents_as_on_images(make_store: MakeStore, debug_run: MakeRun) -> None:
    """The latents were made with crops and colours of their own, so only runs without augmentation compare."""
    losses = []
    uri = make_store(lengths=(12, 9))
    for latents in ("", "k"):
        pairs = ("policy=pad", "data.augmentation=none", f"data.latents={latents}", "train.steps=2")
        config = debug_run(uri, *pairs, output=f"run{latents}")
        if latents:
            encode_run(config)
        events: list[object] = []
        train(config, on_event=events.append)
        losses.append([event.loss for event in events if isinstance(event, TrainProgress)])
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)


@pytest.mark.parametrize("name", ["dp", "dp_unet", "gr1"])
def test_policies_of_pixels_take_no_cached_latents(make_store: MakeStore, debug_run: MakeRun, name: str) -> None:
    kind = GR1 if name == "gr1" else (f"policy={name}",)
    with pytest.raises(UserError, match="takes no cached latents"):
        train(debug_run(make_store(), *kind, "data.latents=k"))


@pytest.mark.parametrize(
    ("name", "millions"),
    [("dp", {"transformer": 367.4}), ("dp_unet", {"unet": 131.3}), ("gr1", {"network": 108.0})],
)
def test_recipes_are_of_published_scale(name: str, millions: dict[str, float]) -> None:
    """Built without memory; decision 0007 names the figures."""
    with torch.device("meta"):
        policy = build(get_recipe(name))
    for part, expected in millions.items():
        found = sum(parameter.numel() for parameter in policy.get_submodule(part).parameters())
        assert found == pytest.approx(1e6 * expected, rel=1e-3)


def test_pad_recipe_is_of_published_scale() -> None:
    config = get_recipe("pad")
    data = config.data
    with torch.device("meta"):
        network = PadTransformer(
            config.policy,
            image_shape=(data.next_frames, *(side // 8 for side in data.crop)),
            num_chans=4,
            num_views=len(data.cameras),
            action_len=data.action_horizon,
            action_dim=data.action_dim,
        )
    assert sum(parameter.numel() for parameter in network.parameters()) == pytest.approx(122.1e6, rel=1e-3)


def test_diffusion_policy_on_a_demo_recipe_asks_for_no_tokenizer() -> None:
    config = apply_overrides(get_recipe("demo_pretrain"), ["policy=dp"])
    assert (config.policy.tokenizer, config.policy.embed_dim, config.policy.diffusion.sample_steps) == (None, 128, 2)
    build(config)


@pytest.mark.parametrize(("kind", "frames"), [("uwm", 2), ("dp", 0), ("dp_unet", 0), ("gr1", 2)])
def test_next_frames_that_nobody_looks_at_are_not_decoded(
    make_store: MakeStore, debug_run: MakeRun, kind: str, frames: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, seen = debug_run(make_store(), "train.steps=1", policy=kind), list[Batch]()

    def watched(config: RunConfig) -> Policy:
        policy = build(config)
        loss = policy.loss
        monkeypatch.setattr(policy, "loss", lambda batch, generator: (seen.append(batch), loss(batch, generator))[1])
        return policy

    train(config, build=watched)
    assert [batch.next_obs.shape[2] for batch in seen] == [frames]
    assert seen[0].next_mask.shape[2] == 2
