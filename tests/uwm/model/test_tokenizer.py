"""The three tokenizers, and what is said when one can't be loaded."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from storage_schemas.errors import UserError
from uwm.config import RunConfig, TokenizerConfig
from uwm.data.batch import Batch
from uwm.model.autoencoder import Autoencoder
from uwm.model.tokenizer import IdentityTokenizer, SdxlTokenizer, Tokenizer, fingerprint_weights, load_tokenizer
from uwm.model.uwm import UWMPolicy
from uwm.settings import replace


@pytest.fixture
def checkpoint(tiny: RunConfig, tmp_path: Path) -> Path:
    """A tokenizer run's checkpoint, as far as a tokenizer needs it."""
    torch.manual_seed(0)
    config = replace(tiny, stage="tokenizer")
    save_file(Autoencoder(config.autoencoder).state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(config.model_dump_json())
    return tmp_path


def tiny_vae(folder: Path) -> Path:
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        layers_per_block=1,
        scaling_factor=0.13025,
    )
    vae.save_pretrained(folder)
    return folder


def check(tokenizer: Tokenizer) -> None:
    images = torch.rand(3, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    latents = tokenizer.encode(images)
    assert latents.shape == (3, tokenizer.channels, 16 // tokenizer.downsample, 24 // tokenizer.downsample)
    restored = tokenizer.decode(latents)
    assert restored.shape == images.shape
    assert restored.min() >= 0
    assert restored.max() <= 1
    assert not tokenizer.train().training
    assert not any(p.requires_grad for p in tokenizer.parameters())


def test_identity_is_exact() -> None:
    tokenizer = load_tokenizer(TokenizerConfig(kind="identity"))
    assert isinstance(tokenizer, IdentityTokenizer)
    check(tokenizer)
    images = torch.rand(2, 3, 4, 4)
    torch.testing.assert_close(tokenizer.decode(tokenizer.encode(images)), images)


def test_autoencoder_from_a_checkpoint(checkpoint: Path) -> None:
    tokenizer = load_tokenizer(TokenizerConfig(kind="autoencoder", path=str(checkpoint)))
    check(tokenizer)
    again = load_tokenizer(TokenizerConfig(kind="autoencoder", path=str(checkpoint)))
    assert tokenizer.fingerprint == again.fingerprint


def test_the_fingerprint_sees_every_weight_and_statistic(tiny: RunConfig) -> None:
    autoencoder = Autoencoder(tiny.autoencoder)
    before = fingerprint_weights(autoencoder)
    autoencoder.latent_mean[0] += 1e-3
    assert fingerprint_weights(autoencoder) != before


def test_sdxl_from_a_local_folder(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(TokenizerConfig(kind="sdxl", path=str(tiny_vae(tmp_path / "vae"))))
    assert isinstance(tokenizer, SdxlTokenizer)
    assert (tokenizer.channels, tokenizer.downsample) == (4, 2)
    check(tokenizer)
    images = torch.rand(20, 3, 8, 8)
    torch.testing.assert_close(tokenizer.encode(images)[17:18], tokenizer.encode(images[17:18]), atol=1e-5, rtol=1e-4)


def test_a_policy_on_autoencoder_latents(tiny: RunConfig, checkpoint: Path, make_batch: Callable[..., Batch]) -> None:
    tokenizer = TokenizerConfig(kind="autoencoder", path=str(checkpoint))
    policy = UWMPolicy(replace(tiny.policy, tokenizer=tokenizer, patch=(2, 1, 1)), tiny.data)
    assert policy.tokenizer_fingerprint.startswith("autoencoder-")
    assert not any("tokenizer" in key or "autoencoder" in key for key in policy.state_dict())
    batch = make_batch()
    assert policy.encode(batch.next_obs).shape == (4, 2, 4, 2, 2, 3)
    assert policy.decode(policy.encode(batch.next_obs)).shape == batch.next_obs.shape
    policy.loss(batch, torch.Generator().manual_seed(0)).loss.backward()
    policy.double()
    assert next(policy.tokenizer.parameters()).dtype == torch.float64


def _remove(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def _truncate(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])


def _garble(folder: Path) -> None:
    (folder / "config.json").write_text('{"name": ')


def _rename_a_weight(folder: Path) -> None:
    save_file({"other": torch.zeros(1)}, folder / "model.safetensors")


@pytest.mark.parametrize("damage", [_remove, _truncate, _garble, _rename_a_weight])
def test_a_damaged_checkpoint_is_one_clear_line(checkpoint: Path, damage: Callable[[Path], None]) -> None:
    damage(checkpoint)
    with pytest.raises(UserError) as caught:
        load_tokenizer(TokenizerConfig(kind="autoencoder", path=str(checkpoint)))
    assert str(checkpoint) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "config",
    [
        TokenizerConfig(kind="autoencoder"),
        TokenizerConfig(kind="autoencoder", path="/nowhere"),
        TokenizerConfig(kind="sdxl"),
        TokenizerConfig(kind="sdxl", path="/nowhere"),
    ],
)
def test_a_missing_tokenizer_is_one_clear_line(config: TokenizerConfig) -> None:
    with pytest.raises(UserError) as caught:
        load_tokenizer(config)
    assert "\n" not in str(caught.value)
