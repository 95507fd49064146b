"""PAD, Prediction with Action (Guo et al. 2024, arXiv 2411.18179), as UWM's implementation has it.

That gives it neither states nor language; with them the condition stands before the timestep's embedding.

Dimension letters: B batch, S action steps, A action dimensions, V views, N frames, C latent channels, h and w latent
height and width.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from uwm.baselines.pad_network import PadTransformer
from uwm.config import DataConfig
from uwm.data.batch import Batch
from uwm.diffusion.modes import Modality, run
from uwm.diffusion.rng import randint_rows, randn_rows
from uwm.diffusion.schedule import alphas_cumprod
from uwm.diffusion.training import masked_mse, noise_at, sample_losses
from uwm.model.attention import attention_report
from uwm.model.condition import ConditionEncoder
from uwm.model.robots import RobotActions
from uwm.model.tokenized import TokenizedPolicy, latent_reference, latent_size, same_frames
from uwm.model.tokenizer import load_tokenizer
from uwm.policies import PadConfig
from uwm.policy import LossOutput, Mode, Sample


@dataclass(frozen=True, kw_only=True)
class PadObs:
    """A batch as PAD sees it."""

    current: Tensor  # (B, V, C, N, h, w) of the current observation; zero where unknown
    latents: Tensor  # (B, V, C, N, h, w) of the next observation; zero where unknown
    condition: Tensor  # (B, G) features of states and instruction
    next_mask: Tensor  # (B, V, N) bool
    action: Tensor  # (B, S, A) normalized; zero where unknown
    action_mask: Tensor  # (B, S, A) bool
    lacking: Tensor | None = None  # (B, 1, A) bool: what the robot does not have; None when all have all


class PADPolicy(TokenizedPolicy):
    """One diffusion over actions and next latents at a shared timestep, conditioned on the current latents.

    Unknown action steps are padding that no token attends to, and are left out of the loss; so is what is unknown of
    the next observation. Policy and joint mode sample both, as published; video mode pads the actions.

    Args:
        config: sizes, tokenizer and diffusion conventions.
        data: what a sample holds.

    Raises:
        UserError: when the tokenizer can't be loaded, sizes don't divide, or numbers of frames differ.
    """

    modes = frozenset({Mode.POLICY, Mode.VIDEO, Mode.JOINT})
    _alphas_cumprod: Tensor  # (T,)

    def __init__(self, config: PadConfig, data: DataConfig) -> None:
        super().__init__(load_tokenizer(config.tokenizer))
        tokenizer = self.tokenizer
        same_frames(data, "PAD joins current and next frames")
        self.diffusion = config.diffusion
        image_shape = latent_size(data, config.patch, tokenizer.downsample)
        self.latent_shape = (len(data.cameras), tokenizer.channels, *image_shape)
        self._config = config
        self.condition = ConditionEncoder(data, config.embed_dim)
        self.transformer = PadTransformer(
            config,
            image_shape=image_shape,
            num_chans=tokenizer.channels,
            num_views=len(data.cameras),
            action_len=data.action_horizon,
            action_dim=data.action_dim,
            global_cond_dim=self.condition.out_dim,
        )
        self.robot_actions = RobotActions(data)
        self.register_buffer("_alphas_cumprod", alphas_cumprod(config.diffusion), persistent=False)

    def compile_network(self, mode: str) -> None:
        """See `Learner`."""
        self.transformer.compile(mode=mode)

    def attention_report(self) -> str:
        """See `Learner`."""
        places = self.transformer.pos_embed  # (1, L, D)
        return attention_report(self._config, places, tokens=places.shape[1], masked=True)

    def encode_batch(self, batch: Batch, *, next_obs: bool = True) -> PadObs:
        """Encode what is known of a batch; without `next_obs` the next observation counts as unknown."""
        mask = batch.next_mask if next_obs else torch.zeros_like(batch.next_mask)
        seen, following = batch.known_places()
        return PadObs(
            current=self.encode_known(batch.obs, batch.obs_mask, seen, batch.obs_latents),
            latents=self.encode_known(batch.next_obs, mask, following if next_obs else None, batch.next_latents),
            condition=self.condition(batch),
            next_mask=mask,
            action=batch.action,
            action_mask=batch.action_mask,
            lacking=self.robot_actions(batch.embodiment),
        )

    def loss(self, batch: Batch, generator: torch.Generator) -> LossOutput:
        """Mean squared error of both predictions at one timestep per sample, over what is known.

        Args:
            batch: see `Batch`.
            generator: source of timesteps and noise.
        """
        encoded, prediction = self.encode_batch(batch), self.diffusion.prediction
        known_action, known_next = encoded.action_mask, encoded.next_mask[:, :, None, :, None, None]
        micro_batch = batch.micro_batch
        drawn = randint_rows(self.diffusion.train_timesteps, len(batch), generator, micro_batch)
        timestep = drawn.to(batch.action.device)
        alpha = self._alphas_cumprod[timestep]
        action, action_target = noise_at(encoded.action, known_action, alpha, prediction, generator, micro_batch)
        clean = encoded.latents - latent_reference(encoded.current, self.diffusion)
        next_obs, next_target = noise_at(clean, known_next, alpha, prediction, generator, micro_batch)
        action_out, next_out = self.transformer(
            encoded.current, action, next_obs, timestep, encoded.action_mask.any(2), encoded.condition
        )
        action_loss = masked_mse(action_out, action_target, known_action, micro_batch.known_actions)
        next_loss = masked_mse(next_out, next_target, known_next, micro_batch.known_frames)
        logs = {"action_loss": action_loss.detach(), "next_obs_loss": next_loss.detach()}
        return LossOutput(
            loss=action_loss + next_loss,
            logs=logs,
            action=sample_losses(action_out, action_target, known_action, None),
            next_obs=sample_losses(next_out, next_target, known_next, None),
        )

    @torch.no_grad()
    def sample_encoded(self, encoded: PadObs, mode: Mode, generator: torch.Generator) -> Sample:
        """`sample` of a batch that is already encoded. Raises UserError when PAD has no such mode."""
        self.require(mode)
        action = _from_noise(encoded.action, generator, self.diffusion.clip_action)
        action = replace(action, lacking=encoded.lacking)
        next_obs = _from_noise(encoded.latents, generator, self.diffusion.clip_latent)
        pad = torch.zeros_like(encoded.action_mask[..., 0]) if mode is Mode.VIDEO else None

        def denoiser(a: Tensor, o: Tensor, _: Tensor, timestep: Tensor) -> tuple[Tensor, Tensor]:
            predicted: tuple[Tensor, Tensor] = self.transformer(encoded.current, a, o, timestep, pad, encoded.condition)
            return predicted

        sampled = run(denoiser, Mode.VIDEO if mode is Mode.VIDEO else Mode.JOINT, action, next_obs, self.diffusion)
        if mode is Mode.POLICY or sampled.next_obs is None:
            return replace(sampled, next_obs=None)
        return replace(sampled, next_obs=sampled.next_obs + latent_reference(encoded.current, self.diffusion))


def _from_noise(like: Tensor, generator: torch.Generator, clip: float | None) -> Modality:
    """A modality that is sampled or absent, never a condition."""
    noise = randn_rows(like, generator)
    nothing = torch.zeros(len(noise), dtype=torch.bool, device=noise.device)
    return Modality(noise=noise, clean=noise, known=nothing, clip=clip)
