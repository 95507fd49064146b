"""The Unified World Model as a policy (Zhu et al. 2025, arXiv 2504.02792).

Dimension letters: B batch, S action steps, A action dimensions, V views, O observation frames, N next frames,
H and W image height and width, C latent channels, h and w latent height and width, G condition features.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from storage_schemas.errors import UserError
from uwm.config import RunConfig
from uwm.data.batch import Batch
from uwm.diffusion.modes import MODES, Modality, Role, run
from uwm.diffusion.schedule import add_noise, signal_table
from uwm.model.attention import attention_op
from uwm.model.obs_encoder import ObsEncoder
from uwm.model.tokenizer import Tokenizer, load_tokenizer
from uwm.model.transformer import DiffusionTransformer
from uwm.policy import LossOutput, Mode, Sample, SampleLosses


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """A batch as the transformer sees it; all modes of an evaluation can share one.

    Attributes:
        cond: (B, G) features of the current observation.
        latents: (B, V, C, N, h, w) of the next observation; zero where unknown.
        current: (B, V, C, O, h, w) of the current observation, for models that look at them; zero where unknown.
        next_mask: (B, V, N) bool.
        action: (B, S, A) normalized; zero where unknown.
        action_mask: (B, S) bool.
    """

    cond: Tensor
    latents: Tensor
    current: Tensor
    next_mask: Tensor
    action: Tensor
    action_mask: Tensor


@dataclass(frozen=True, kw_only=True)
class _Noised:
    """One modality of a training step."""

    noisy: Tensor
    target: Tensor
    timestep: Tensor  # (B,)


class _Frozen:
    """Keeps a network out of its owner's parameters and state; copies of the owner share it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self


class UWMPolicy(nn.Module):
    """Observation encoder and diffusion transformer; the tokenizer is held, but is not part of the state.

    Args:
        config: sizes, tokenizer and diffusion conventions.

    Raises:
        UserError: when the tokenizer can't be loaded, image, tokenizer and patch sizes don't divide, or frames
            can't be joined because their numbers differ.
    """

    modes: frozenset[Mode] = frozenset(Mode)
    _signals: Tensor  # (T,)

    def __init__(self, config: RunConfig) -> None:
        super().__init__()
        tokenizer = load_tokenizer(config.tokenizer)
        data, model = config.data, config.model
        if model.current_latents and data.obs_frames != data.next_frames:
            raise UserError(
                f"model.current_latents joins frame to frame: data.obs_frames {data.obs_frames} must equal "
                f"data.next_frames {data.next_frames}"
            )
        self._frozen = _Frozen(tokenizer)
        self.diffusion = config.diffusion
        self._relative = config.diffusion.latent_target == "change"
        self._joined = model.current_latents
        self.latent_shape = (len(data.cameras), tokenizer.channels, *_latent_size(config, tokenizer.downsample))
        self.obs_encoder = ObsEncoder(
            model.obs_encoder, views=len(data.cameras), frames=data.obs_frames, image_size=data.crop
        )
        self.transformer = DiffusionTransformer(
            global_cond_dim=self.obs_encoder.out_dim,
            image_shape=self.latent_shape[2:],
            patch_shape=model.patch,
            num_chans=tokenizer.channels,
            num_views=len(data.cameras),
            action_len=data.action_steps,
            action_dim=data.action_dim,
            embed_dim=model.embed_dim,
            timestep_embed_dim=model.timestep_embed_dim,
            depth=model.depth,
            num_heads=model.num_heads,
            mlp_ratio=model.mlp_ratio,
            qkv_bias=model.qkv_bias,
            num_registers=model.num_registers,
            context_chans=tokenizer.channels if model.current_latents else 0,
        )
        self.register_buffer("_signals", signal_table(config.diffusion), persistent=False)

    @property
    def tokenizer(self) -> Tokenizer:
        """The frozen tokenizer."""
        return self._frozen.tokenizer

    @property
    def tokenizer_fingerprint(self) -> str:
        """Identity of the tokenizer; weights trained on other latents do not fit."""
        return self.tokenizer.fingerprint

    def attention_report(self) -> str:
        """The operator that attention runs at the model's sizes, with device and type, for the run log."""
        weight = self.transformer.pos_embed
        kind = weight.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
        heads = self.transformer.num_heads
        op = attention_op(
            weight.device,
            dtype,
            num_heads=heads,
            head_dim=weight.shape[-1] // heads,
            tokens=self.transformer.num_tokens,
        )
        return f"{op} on {weight.device}, {str(dtype).removeprefix('torch.')}"

    def encode(self, images: Tensor) -> Tensor:
        """Images (B, V, N, 3, H, W) in [0, 1] -> latents (B, V, C, N, h, w)."""
        latents = self.tokenizer.encode(images.flatten(0, 2)).float()  # (B V N, C, h, w)
        return latents.view(*images.shape[:3], *latents.shape[1:]).transpose(2, 3)  # (B, V, C, N, h, w)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, V, C, N, h, w) -> images (B, V, N, 3, H, W) in [0, 1]."""
        by_frame = latents.transpose(2, 3)  # (B, V, N, C, h, w)
        images = self.tokenizer.decode(by_frame.flatten(0, 2)).float()  # (B V N, 3, H, W)
        return images.view(*by_frame.shape[:3], *images.shape[1:])  # (B, V, N, 3, H, W)

    def encode_batch(self, batch: Batch, *, next_obs: bool = True) -> Encoded:
        """Encode what is known of a batch.

        Args:
            batch: see `Batch`.
            next_obs: whether the next observation is needed; if not, it counts as unknown.
        """
        mask = batch.next_mask if next_obs else torch.zeros_like(batch.next_mask)
        current_mask = batch.obs_mask & (self._joined or self._relative)
        return Encoded(
            cond=self.obs_encoder(batch.obs, batch.obs_mask),
            latents=self._encode_known(batch.next_obs, mask, batch.next_latents),
            current=self._encode_known(batch.obs, current_mask, batch.obs_latents),
            next_mask=mask,
            action=batch.action,
            action_mask=batch.action_mask,
        )

    def loss(self, batch: Batch, generator: torch.Generator) -> LossOutput:
        """Mean squared error of both predictions at independent timesteps, over what is known.

        Args:
            batch: see `Batch`.
            generator: source of timesteps and noise.
        """
        encoded = self.encode_batch(batch)
        known_action, known_next = _known(encoded)
        action = self._noised(encoded.action, known_action, generator)
        next_obs = self._noised(encoded.latents - self._reference(encoded), known_next, generator)
        action_out, next_out = self.transformer(
            encoded.cond, action.noisy, next_obs.noisy, action.timestep, next_obs.timestep, self._context(encoded)
        )
        counted = torch.ones_like(known_action) if self.diffusion.action_loss == "all" else known_action
        action_loss = _masked_mse(action_out, action.target, counted)
        next_loss = _masked_mse(next_out, next_obs.target, known_next)
        logs = {"action_loss": action_loss.detach(), "next_obs_loss": next_loss.detach()}
        return LossOutput(
            loss=action_loss + next_loss,
            logs=logs,
            action=self._by_sample(action_out, action, known_action),
            next_obs=self._by_sample(next_out, next_obs, known_next),
        )

    @torch.no_grad()
    def _by_sample(self, output: Tensor, noised: _Noised, known: Tensor) -> SampleLosses:
        """A modality's loss sample by sample, for the log."""
        weight = known.expand_as(output).flatten(1)
        error = (output.float() - noised.target).flatten(1).square()
        return SampleLosses(
            error=torch.where(weight, error, 0.0).sum(1) / weight.sum(1).clamp(min=1),
            known=weight.any(1),
            noise=noised.timestep / (self.diffusion.train_timesteps - 1),
        )

    def sample(self, batch: Batch, mode: Mode, generator: torch.Generator) -> Sample:
        """Predict what `mode` asks for, from noise drawn from `generator`."""
        with torch.no_grad():
            encoded = self.encode_batch(batch, next_obs=MODES[mode].next_obs is Role.CLEAN)
        return self.sample_encoded(encoded, mode, generator)

    @torch.no_grad()
    def sample_encoded(self, encoded: Encoded, mode: Mode, generator: torch.Generator) -> Sample:
        """`sample` of a batch that is already encoded, with its next observation when the mode takes it clean."""
        known_action, known_next = _known(encoded)
        action = _modality(encoded.action, known_action, generator, self.diffusion.clip_action)
        reference = self._reference(encoded)
        next_obs = _modality(encoded.latents - reference, known_next, generator, self.diffusion.clip_latent)
        context = self._context(encoded)

        def denoiser(a: Tensor, o: Tensor, a_t: Tensor, o_t: Tensor) -> tuple[Tensor, Tensor]:
            predicted: tuple[Tensor, Tensor] = self.transformer(encoded.cond, a, o, a_t, o_t, context)
            return predicted

        sample = run(denoiser, mode, action, next_obs, self.diffusion)
        return sample if sample.next_obs is None else replace(sample, next_obs=sample.next_obs + reference)

    def _reference(self, encoded: Encoded) -> Tensor:
        """(B, V, C, 1, h, w): what the diffused latents are relative to, the last current frame's or zero."""
        last = encoded.current[:, :, :, -1:]
        return last if self._relative else torch.zeros_like(last)

    def _context(self, encoded: Encoded) -> Tensor | None:
        return encoded.current if self._joined else None

    def _encode_known(self, images: Tensor, mask: Tensor, cached: Tensor | None) -> Tensor:
        """Images (B, V, N, 3, H, W), mask (B, V, N) -> latents (B, V, C, N, h, w), zero where unknown.

        With `cached` latents (B, V, N, C, h, w) the images are not looked at.
        """
        if cached is not None:
            return torch.where(mask[..., None, None, None], cached, 0.0).transpose(2, 3)
        by_frame = images.new_zeros(*mask.shape, self.latent_shape[1], *self.latent_shape[3:])  # (B, V, N, C, h, w)
        known = images[mask]  # waits for the device once; absent views then cost nothing
        if len(known):
            by_frame[mask] = self.tokenizer.encode(known).float()
        return by_frame.transpose(2, 3)

    def _noised(self, clean: Tensor, known: Tensor, generator: torch.Generator) -> _Noised:
        """Noise a modality; what is unknown becomes pure noise, and a sample that knows nothing is marked absent."""
        last = self.diffusion.train_timesteps - 1
        drawn = torch.randint(last + 1, (len(clean),), generator=generator, device=generator.device)
        timestep = torch.where(known.flatten(1).any(1), drawn.to(clean.device), last)
        noise = _randn_like(clean, generator)
        noisy = torch.where(known, add_noise(clean, noise, self._signals[timestep]), noise)
        target = noise if self.diffusion.prediction == "epsilon" else clean
        return _Noised(noisy=noisy, target=target, timestep=timestep)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Take the tokenizer along to another device or type."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.tokenizer._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self


def _latent_size(config: RunConfig, downsample: int) -> tuple[int, int, int]:
    """(N, h, w) of the latents, checked against tokenizer and patch."""
    height, width = config.data.crop
    patch = config.model.patch
    frames = config.data.next_frames
    size = (frames, height // downsample, width // downsample)
    if height % downsample or width % downsample:
        raise UserError(f"data.crop {height}x{width} is not divisible by the tokenizer's downsampling of {downsample}")
    if any(latent % p for latent, p in zip(size, patch, strict=True)):
        raise UserError(
            f"latents of {size[0]} frames x {size[1]} x {size[2]} (data.next_frames {frames}, data.crop "
            f"{height}x{width}, downsampling {downsample}) are not divisible by model.patch {patch}"
        )
    return size


def _known(encoded: Encoded) -> tuple[Tensor, Tensor]:
    """Masks that broadcast over actions (B, S, 1) and latents (B, V, 1, N, 1, 1)."""
    return encoded.action_mask[:, :, None], encoded.next_mask[:, :, None, :, None, None]


def _modality(clean: Tensor, known: Tensor, generator: torch.Generator, clip: float | None) -> Modality:
    noise = _randn_like(clean, generator)
    return Modality(noise=noise, clean=torch.where(known, clean, noise), known=known.flatten(1).any(1), clip=clip)


def _randn_like(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, device=generator.device).to(like)


def _masked_mse(output: Tensor, target: Tensor, known: Tensor) -> Tensor:
    """Mean over the known elements; 0 when there is none. `known` broadcasts over the target."""
    weight = known.expand_as(target)
    error = torch.where(weight, output.float() - target, 0.0).square()
    return error.sum() / weight.sum().clamp(min=1)
