"""Diffusion Policy (Chi et al. 2023, arXiv 2303.04137): actions only, as a transformer or as a 1-D U-Net.

Dimension letters: B batch, S action steps, A action dimensions, G condition features.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from storage_schemas.errors import UserError
from uwm.baselines.dp_network import DpTransformer
from uwm.baselines.unet1d import ConditionalUnet1d
from uwm.config import DiffusionConfig, RunConfig
from uwm.data.batch import Batch
from uwm.diffusion.modes import Modality, run
from uwm.diffusion.noise import randint_rows, randn_rows
from uwm.diffusion.noising import masked_mse, noise_at, sample_losses
from uwm.diffusion.schedule import signal_table
from uwm.model.attention import attention_report
from uwm.model.obs_encoder import ObsEncoder
from uwm.model.tokenized import TokenizedPolicy
from uwm.model.tokenizer import IdentityTokenizer
from uwm.policy import LossOutput, Mode, Sample


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """A batch as Diffusion Policy sees it."""

    cond: Tensor  # (B, G) features of the current observation
    action: Tensor  # (B, S, A) normalized; zero where unknown
    action_mask: Tensor  # (B, S) bool
    latents: None = None  # it knows no next observation


class DiffusionPolicy(TokenizedPolicy):
    """Observation encoder and a denoiser of action chunks; it neither sees nor predicts the next observation.

    Args:
        config: sizes, diffusion conventions, and by `policy` which denoiser.

    Raises:
        UserError: when sizes don't divide.
    """

    modes = frozenset({Mode.POLICY})
    _signals: Tensor  # (T,)

    def __init__(self, config: RunConfig) -> None:
        super().__init__(IdentityTokenizer())
        self.diffusion = config.diffusion
        self.num_heads, self.attention = config.model.num_heads, config.model.attention
        data = config.data
        self.obs_encoder = ObsEncoder(
            config.model.obs_encoder, views=len(data.cameras), frames=data.obs_frames, image_size=data.crop
        )
        self._network = "transformer" if config.policy == "dp" else "unet"
        self.add_module(self._network, _denoiser(config, self.obs_encoder.out_dim))
        self.register_buffer("_signals", signal_table(config.diffusion), persistent=False)

    @property
    def denoiser(self) -> nn.Module:
        """The network under the condition, which has its own name in the state dict: `transformer` or `unet`."""
        return self.get_submodule(self._network)

    def attention_report(self) -> str:
        """The operator that attention runs, for the run log; none for the U-Net."""
        network = self.denoiser
        if not isinstance(network, DpTransformer):
            return "none"
        places = network.pos_embed  # (1, S, D)
        return attention_report(places, num_heads=self.num_heads, tokens=places.shape[1], kernel=self.attention)

    def encode_batch(self, batch: Batch, *, next_obs: bool = True) -> Encoded:
        """Encode the current observation; the next one is never looked at."""
        cond = self.obs_encoder(batch.obs, batch.obs_mask, batch.known_places()[0])
        return Encoded(cond=cond, action=batch.action, action_mask=batch.action_mask)

    def loss(self, batch: Batch, generator: torch.Generator) -> LossOutput:
        """Mean squared error of the predicted noise (or clean actions).

        Args:
            batch: see `Batch`.
            generator: source of timesteps and noise.
        """
        encoded, known, micro_batch = self.encode_batch(batch), batch.action_mask[:, :, None], batch.micro_batch
        drawn = randint_rows(self.diffusion.train_timesteps, len(batch), generator, micro_batch)
        timestep = drawn.to(batch.action.device)
        signal = self._signals[timestep]
        action, target = noise_at(encoded.action, known, signal, self.diffusion.prediction, generator, micro_batch)
        predicted = self.denoiser(action, timestep, encoded.cond)
        if self.diffusion.action_loss == "all":
            loss = masked_mse(predicted, target, torch.ones_like(known), known.numel())
        else:
            loss = masked_mse(predicted, target, known, micro_batch.known_actions)
        by_sample = sample_losses(predicted, target, known, None)
        return LossOutput(loss=loss, logs={"action_loss": loss.detach()}, action=by_sample)

    @torch.no_grad()
    def sample_encoded(self, encoded: Encoded, mode: Mode, generator: torch.Generator) -> Sample:
        """`sample` of a batch that is already encoded. Raises UserError for any mode but policy."""
        self.require(mode)
        noise = randn_rows(encoded.action, generator)
        return sample_actions(self.denoiser, noise, encoded.cond, self.diffusion)


def sample_actions(denoiser: nn.Module, noise: Tensor, cond: Tensor, config: DiffusionConfig) -> Sample:
    """Denoise actions.

    Args:
        denoiser: (noisy actions, timesteps, condition) -> prediction.
        noise: (B, S, A) where denoising starts.
        cond: (B, G).
        config: grid, conventions and bound.
    """
    unknown = torch.zeros(len(noise), dtype=torch.bool, device=noise.device)
    nothing = noise.new_zeros(len(noise), 0)  # stands for the loop's other modality
    action, other = (
        Modality(noise=values, clean=values, known=unknown, clip=clip)
        for values, clip in ((noise, config.clip_action), (nothing, None))
    )
    return run(lambda a, o, t, _: (denoiser(a, t, cond), o), Mode.POLICY, action, other, config)


def _denoiser(config: RunConfig, cond_dim: int) -> nn.Module:
    """The network that `config.policy` names, for actions under a condition of `cond_dim` features."""
    model, data = config.model, config.data
    if config.policy == "dp":
        return DpTransformer(
            input_len=data.action_steps,
            input_dim=data.action_dim,
            global_cond_dim=cond_dim,
            timestep_embed_dim=model.timestep_embed_dim,
            embed_dim=model.embed_dim,
            depth=model.depth,
            num_heads=model.num_heads,
            mlp_ratio=model.mlp_ratio,
            qkv_bias=model.qkv_bias,
            attention=model.attention,
        )
    halvings = len(model.unet.widths) - 1
    if data.action_steps % 2**halvings:
        raise UserError(f"data.action_steps {data.action_steps} can't be halved {halvings} times (model.unet.widths)")
    return ConditionalUnet1d(
        input_len=data.action_steps,
        input_dim=data.action_dim,
        global_cond_dim=cond_dim,
        timestep_embed_dim=model.timestep_embed_dim,
        widths=model.unet.widths,
        kernel_size=model.unet.kernel_size,
        groups=model.unet.groups,
    )
