"""A published checkpoint becomes a checkpoint of this house, and its network gives the published numbers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from storage_schemas.errors import UserError
from storage_schemas.store.dataset import open_dataset
from uwm.checkpoint import latest_checkpoint, load_checkpoint, load_policy
from uwm.diffusion.modes import Modality, run
from uwm.eval.offline import evaluate
from uwm.eval.options import EvalOptions, SampleOptions
from uwm.eval.sample import sample
from uwm.overrides import apply_overrides
from uwm.policy import Mode
from uwm.recipes import get_recipe
from uwm.reference.importer import import_reference
from uwm.reference.published import LAYOUTS, VAE, Layout, ordered, renamed, take_apart
from uwm.settings import replace
from uwm.train.trainer import train

pytestmark = pytest.mark.golden
TOLERANCE = 1e-5

Write = Callable[..., Path]
Content = dict[str, Any]
Golden = Callable[[str], dict[str, Tensor]]

BASELINE_SETTINGS = ("policy.num_heads=4", "data.cameras=left,wrist", "data.crop=64,64")


@pytest.mark.parametrize("legacy", [False, True])
def test_the_imported_network_is_the_published_one(
    content: Content, write: Write, settings: tuple[str, ...], tmp_path: Path, golden_root: Path, legacy: bool
) -> None:
    made = import_reference(write(content, legacy=legacy), tmp_path / "run", settings)
    policy, config, normalizer = load_policy(tmp_path / "run", "cpu")
    golden = load_file(golden_root / "uwm.safetensors")
    known = torch.ones(len(golden["io_cond"]), dtype=torch.bool)
    action, next_obs = (
        Modality(noise=golden[f"io_init_{name}"], clean=golden[f"io_clean_{name}"], known=known, clip=1.0)
        for name in ("action", "next_obs")
    )
    with torch.no_grad():
        for mode in Mode:
            sample = run(
                lambda a, o, ta, to: policy.transformer(golden["io_cond"], a, o, ta, to),  # type: ignore[operator]
                mode,
                action,
                next_obs,
                config.policy.diffusion,
            )
            for name, value in (("action", sample.action), ("next_obs", sample.next_obs)):
                if value is not None:
                    torch.testing.assert_close(value, golden[f"mode_{mode}_{name}"], atol=TOLERANCE, rtol=0)
    assert (made.policy, made.step) == ("uwm", 12)
    assert made.assumed["policy.num_heads"] == 4
    assert (config.data.crop, config.data.action_dim, config.policy.depth) == ((64, 64), 5, 2)
    torch.testing.assert_close(
        normalizer.denormalize(torch.ones(5)), torch.tensor([0.6, 1.0, 1.0, 4.0, 0.25]), msg=str(normalizer)
    )
    assert normalizer.normalize(torch.tensor([0.1, 0.0, -1.0, 3.0, 0.0])).abs().max() == 0, "a zero range is no NaN"


def test_the_files_own_vae_becomes_the_tokenizer(
    content: Content, write: Write, settings: tuple[str, ...], tmp_path: Path, vae: nn.Module
) -> None:
    import_reference(write(content), tmp_path / "run", settings)
    policy = load_policy(tmp_path / "run", "cpu").policy
    images = torch.rand(1, 2, 2, 3, 64, 64)
    with torch.no_grad():
        mean = vae.encode(images.flatten(0, 2) * 2 - 1).latent_dist.mean  # type: ignore[operator]
    expected = (mean * 0.13025 / 3).view(1, 2, 2, 4, 8, 8).transpose(2, 3)
    torch.testing.assert_close(policy.encode(images), expected)  # type: ignore[operator]
    checkpoint = load_checkpoint(tmp_path / "run")
    assert not any("vae" in name for name in checkpoint.tensors("model"))
    assert checkpoint.state.source is not None
    assert checkpoint.state.source.path.endswith("models.pt")


def test_wrappers_averages_and_bare_state_dicts(
    content: Content, write: Write, settings: tuple[str, ...], tmp_path: Path, state: dict[str, Tensor]
) -> None:
    content["model"] = {f"module._orig_mod.{name}": value for name, value in state.items()}
    content["ema"] = {name: value + 1 if name.endswith("registers") else value for name, value in state.items()}
    import_reference(write(content), tmp_path / "wrapped", settings)
    checkpoint = load_checkpoint(tmp_path / "wrapped")
    difference = (
        checkpoint.tensors("ema")["transformer.registers"] - checkpoint.tensors("model")["transformer.registers"]
    )
    torch.testing.assert_close(difference, torch.ones_like(difference))
    import_reference(write(state), tmp_path / "bare", settings)
    bare = load_checkpoint(tmp_path / "bare")
    assert bare.normalizer.normalize(torch.full((5,), 0.25)).tolist() == [0.25] * 5
    assert bare.normalizer.count, "finetuning keeps the bounds"


def test_an_imported_run_is_not_overwritten(
    content: Content, write: Write, settings: tuple[str, ...], tmp_path: Path
) -> None:
    file = write(content)
    import_reference(file, tmp_path / "run", settings)
    with pytest.raises(UserError, match="already holds checkpoints"):
        import_reference(file, tmp_path / "run", settings)


@pytest.mark.parametrize(
    ("change", "pairs", "message"),
    [
        ({"action_normalizer": {"scale": 1.0}}, (), "holds no array 'scale'"),
        ({"noise_pred_net.registers": None}, (), "no published network"),
        ({"noise_pred_net.pos_embed": None}, (), "its weights lack 'pos_embed'"),
        ({"noise_pred_net.head.linear.bias": torch.zeros(7)}, (), r"head.linear.bias \(7,\) instead of \(48,\)"),
        ({"noise_pred_net.head.linear.bias": torch.full((48,), torch.nan)}, (), "not finite: transformer.head.linear"),
        ({"obs_encoder.text_encoder.a": torch.zeros(1)}, (), r"does not have \(1\): obs_encoder.text_encoder.a"),
        ({"obs_encoder.vae.shift": torch.ones(1, 4, 1, 1)}, (), "latents are shifted"),
        ({"obs_encoder.vae.vae.decoder.conv_in.weight": None}, (), "no AutoencoderKL"),
        ({}, ("data.cameras=one",), "Set data.obs_frames and data.cameras"),
        ({}, ("data.action_horizon=5",), "make no square image"),
        ({}, ("policy.num_heads=5",), "not divisible by num_heads"),
        ({}, ("policy.heads=5",), "no setting|policy"),
    ],
)
def test_what_does_not_fit_is_one_clear_line(
    content: Content,
    write: Write,
    settings: tuple[str, ...],
    tmp_path: Path,
    change: Content,
    pairs: tuple[str, ...],
    message: str,
) -> None:
    for name, value in change.items():
        target = content["model"] if "." in name else content
        target.pop(name, None)
        if value is not None:
            target[name] = value
    with pytest.raises(UserError, match=message) as caught:
        import_reference(write(content), tmp_path / "run", [*settings, *pairs])
    assert "\n" not in str(caught.value)
    assert latest_checkpoint(tmp_path / "run") is None


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.policy)
def test_the_mapping_covers_exactly_the_published_names(
    layout: Layout, golden_params: Callable[[str], dict[str, Tensor]]
) -> None:
    params = golden_params(layout.policy)
    assert layout.mark in params
    assert {layout.action_in, layout.timestep_out} <= {*params}
    published = {f"noise_pred_net.{name}": value for name, value in params.items()}
    encoders = [prefix for prefix in layout.prefixes if prefix.startswith("obs_encoder.")]
    published |= {f"{prefix}x": torch.zeros(1) for prefix in encoders}
    published[f"{VAE}vae.x"] = torch.zeros(1)
    names = {*renamed(layout, published)}
    assert names == {f"transformer.{name}" for name in params} | {layout.prefixes[prefix] + "x" for prefix in encoders}
    assert take_apart({"model": published}).layout is layout


@pytest.mark.parametrize("name", ["pad", "dp"])
def test_baselines_are_imported(
    name: str, baseline: Callable[[str], Content], write: Write, golden_params: Golden, tmp_path: Path
) -> None:
    made = import_reference(write(baseline(name)), tmp_path / "run", BASELINE_SETTINGS)
    config = load_checkpoint(tmp_path / "run").config
    assert (made.policy, config.policy.kind, config.data.action_horizon) == (name, name, 4)
    loaded = load_policy(tmp_path / "run", "cpu").policy.state_dict()
    expected = {key: value for key, value in golden_params(name).items() if name == "pad" or "adaLN" not in key}
    assert len(expected) > 10  # DP's modulations are sorted, see below
    assert all(torch.equal(loaded[f"transformer.{key}"], value) for key, value in expected.items())


def test_columns_of_dp_are_sorted_by_view(settings: tuple[str, ...]) -> None:
    layout = next(layout for layout in LAYOUTS if layout.frame_major)
    config = apply_overrides(get_recipe("uwm_paper"), [*settings, "policy=dp", "policy.obs_encoder.embed_dim=6"])
    features = torch.arange(24.0).view(2, 2, 6)  # (frame, view, feature)
    weight = torch.randn(3, 32)
    condition = torch.cat([features.flatten(), torch.ones(8)])
    ours = torch.cat([features.transpose(0, 1).flatten(), torch.ones(8)])
    sorted_weight = ordered(layout, {"blocks.0.adaLN_modulation.1.weight": weight}, config)
    torch.testing.assert_close(sorted_weight["blocks.0.adaLN_modulation.1.weight"] @ ours, weight @ condition)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["uwm", "pad", "dp"])
def test_an_import_is_finetuned_evaluated_and_sampled(
    name: str,
    content: Content,
    baseline: Callable[[str], Content],
    write: Write,
    settings: tuple[str, ...],
    tmp_path: Path,
    make_store: Callable[..., str],
) -> None:
    file = write(content if name == "uwm" else {**content, **baseline(name)})
    import_reference(file, tmp_path / "run", settings if name == "uwm" else BASELINE_SETTINGS)
    imported = load_checkpoint(tmp_path / "run")
    data, uri = imported.config.data, make_store("store", (24, 21), action_dim=5)
    policy = imported.config.policy
    unbounded = replace(policy.diffusion, clip_action=None)  # the store's actions leave the file's range
    config = replace(
        imported.config,
        policy=replace(policy, diffusion=unbounded),
        name="tuned",
        stage="finetune",
        init_from=str(tmp_path / "run"),
        init_changes=("data.next_start",),
        output=str(tmp_path / "tuned"),
        data=replace(data, datasets=[{"uri": uri}], resize=data.crop, next_start=3, workers=0),
        train=replace(imported.config.train, steps=1, batch_size=1, device="cpu", threads=1, track=()),
    )
    tuned = load_checkpoint(train(config))
    assert tuned.normalizer == imported.normalizer
    assert tuned.state.parent is not None
    assert tuned.state.parent.identity == imported.identity
    modes = {"uwm": len(Mode), "pad": 3, "dp": 1}[name]
    for number, run_folder in enumerate(("run", "tuned")):
        found = evaluate(str(tmp_path / run_folder), open_dataset(uri), EvalOptions(samples=2, split="train"))
        assert len({score.mode for score in found.scores}) == modes
        out = str(tmp_path / f"samples-{number}")
        options = SampleOptions(samples=1, split="train")
        assert Path(sample(str(tmp_path / run_folder), open_dataset(uri), "policy", out, options).actions).is_file()


@pytest.mark.slow
def test_an_import_can_be_exported(content: Content, write: Write, settings: tuple[str, ...], tmp_path: Path) -> None:
    from uwm.auto import AutoPolicy
    from uwm.bundle import export

    import_reference(write(content), tmp_path / "run", settings)
    frames = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    actions = AutoPolicy.load(tmp_path / "run", device="cpu").act({"left": frames})
    export(tmp_path / "run", tmp_path / "bundle")
    assert "Trained elsewhere, to step 12" in (tmp_path / "bundle" / "README.md").read_text()
    (tmp_path / "run").rename(tmp_path / "gone")
    np.testing.assert_array_equal(AutoPolicy.load(tmp_path / "bundle", device="cpu").act({"left": frames}), actions)
