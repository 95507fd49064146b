"""Diffusion Policy (Chi et al. 2023, arXiv 2303.04137): actions only, as a transformer or as a 1-D U-Net.

Dimension letters: B batch, S action steps, A action dimensions, G condition features.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from storage_schemas.errors import UserError
from uwm.baselines.dp_network import DpTransformer
from uwm.baselines.unet1d import ConditionalUnet1d
from uwm.config import DataConfig, DiffusionConfig
from uwm.data.batch import Batch
from uwm.diffusion.modes import Modality, run
from uwm.diffusion.rng import randint_rows, randn_rows
from uwm.diffusion.schedule import alphas_cumprod
from uwm.diffusion.training import masked_mse, noise_at, sample_losses
from uwm.model.attention import attention_report
from uwm.model.condition import ConditionEncoder
from uwm.model.obs_encoder import ObsEncoder
from uwm.model.robots import RobotActions
from uwm.model.tokenized import TokenizedPolicy
from uwm.model.tokenizer import IdentityTokenizer
from uwm.policies import DpConfig, DpUnetConfig
from uwm.policy import LossOutput, Mode, Sample


@dataclass(frozen=True, kw_only=True)
class DpObs:
    """A batch as Diffusion Policy sees it."""

    cond: Tensor  # (B, G) features of the current observation: of its images, of states and of the instruction
    action: Tensor  # (B, S, A) normalized; zero where unknown
    action_mask: Tensor  # (B, S, A) bool
    lacking: Tensor | None = None  # (B, 1, A) bool: what the robot does not have; None when all have all
    latents: None = None  # it knows no next observation


class DiffusionPolicy(TokenizedPolicy, ABC):
    """Observation encoder and a denoiser of action chunks; it neither sees nor predicts the next observation.

    Args:
        config: of the observation encoder, and diffusion conventions.
        data: what a sample holds.
    """

    modes = frozenset({Mode.POLICY})
    _alphas_cumprod: Tensor  # (T,)

    def __init__(self, config: DpConfig | DpUnetConfig, data: DataConfig) -> None:
        super().__init__(IdentityTokenizer())
        self.diffusion = config.diffusion
        self.obs_encoder = ObsEncoder(
            config.obs_encoder, views=len(data.cameras), frames=data.obs_frames, image_size=data.crop
        )
        self.condition = ConditionEncoder(data, config.obs_encoder.embed_dim)
        self._sizes = {
            "input_len": data.action_horizon,
            "input_dim": data.action_dim,
            "global_cond_dim": self.obs_encoder.out_dim + self.condition.out_dim,
        }
        self.robot_actions = RobotActions(data)
        self.register_buffer("_alphas_cumprod", alphas_cumprod(config.diffusion), persistent=False)

    @property
    @abstractmethod
    def denoiser(self) -> nn.Module:
        """The network under the condition, which has its own name in the state dict."""

    def encode_batch(self, batch: Batch, *, next_obs: bool = True) -> DpObs:
        """Encode the current observation; the next one is never looked at."""
        images = self.obs_encoder(batch.obs, batch.obs_mask, batch.known_places()[0])
        cond = torch.cat([images, self.condition(batch).to(images)], dim=1)
        lacking = self.robot_actions(batch.embodiment)
        return DpObs(cond=cond, action=batch.action, action_mask=batch.action_mask, lacking=lacking)

    def loss(self, batch: Batch, generator: torch.Generator) -> LossOutput:
        """Mean squared error of the predicted noise (or clean actions).

        Args:
            batch: see `Batch`.
            generator: source of timesteps and noise.
        """
        encoded, known, micro_batch = self.encode_batch(batch), batch.action_mask, batch.micro_batch
        drawn = randint_rows(self.diffusion.train_timesteps, len(batch), generator, micro_batch)
        timestep = drawn.to(batch.action.device)
        alpha = self._alphas_cumprod[timestep]
        action, target = noise_at(encoded.action, known, alpha, self.diffusion.prediction, generator, micro_batch)
        predicted = self.denoiser(action, timestep, encoded.cond)
        if self.diffusion.action_loss == "all":
            loss = masked_mse(predicted, target, torch.ones_like(known), known.numel())
        else:
            loss = masked_mse(predicted, target, known, micro_batch.known_actions)
        by_sample = sample_losses(predicted, target, known, None)
        return LossOutput(loss=loss, logs={"action_loss": loss.detach()}, action=by_sample)

    @torch.no_grad()
    def sample_encoded(self, encoded: DpObs, mode: Mode, generator: torch.Generator) -> Sample:
        """`sample` of a batch that is already encoded. Raises UserError for any mode but policy."""
        self.require(mode)
        noise = randn_rows(encoded.action, generator)
        return sample_actions(self.denoiser, noise, encoded.cond, self.diffusion, encoded.lacking)


class TransformerPolicy(DiffusionPolicy):
    """Diffusion Policy with a transformer.

    Args:
        config: sizes and diffusion conventions.
        data: what a sample holds.
    """

    def __init__(self, config: DpConfig, data: DataConfig) -> None:
        super().__init__(config, data)
        self._config = config
        self.transformer = DpTransformer(config, **self._sizes)

    @property
    def denoiser(self) -> nn.Module:
        """The transformer."""
        return self.transformer

    def compile_network(self, mode: str) -> None:
        """See `Learner`."""
        self.transformer.compile(mode=mode)

    def attention_report(self) -> str:
        """See `Learner`."""
        places = self.transformer.pos_embed  # (1, S, D)
        return attention_report(self._config, places, tokens=places.shape[1])


class UnetPolicy(DiffusionPolicy):
    """Diffusion Policy with a 1-D U-Net.

    Args:
        config: sizes and diffusion conventions.
        data: what a sample holds.

    Raises:
        UserError: when the action chunk can't be halved once for every width but the first.
    """

    def __init__(self, config: DpUnetConfig, data: DataConfig) -> None:
        super().__init__(config, data)
        halvings = len(config.widths) - 1
        if data.action_horizon % 2**halvings:
            raise UserError(
                f"data.action_horizon {data.action_horizon} can't be halved {halvings} times (policy.widths)"
            )
        self.unet = ConditionalUnet1d(config, **self._sizes)

    @property
    def denoiser(self) -> nn.Module:
        """The U-Net."""
        return self.unet


def sample_actions(
    denoiser: nn.Module, noise: Tensor, cond: Tensor, config: DiffusionConfig, lacking: Tensor | None = None
) -> Sample:
    """Denoise actions.

    Args:
        denoiser: (noisy actions, timesteps, condition) -> prediction.
        noise: (B, S, A) where denoising starts.
        cond: (B, G).
        config: grid, conventions and bound.
        lacking: (B, 1, A) bool, see `Modality`.
    """
    unknown = torch.zeros(len(noise), dtype=torch.bool, device=noise.device)
    nothing = noise.new_zeros(len(noise), 0)  # stands for the loop's other modality
    action, other = (
        Modality(noise=values, clean=values, known=unknown, clip=clip, lacking=held)
        for values, clip, held in ((noise, config.clip_action, lacking), (nothing, None, None))
    )
    return run(lambda a, o, t, _: (denoiser(a, t, cond), o), Mode.POLICY, action, other, config)
