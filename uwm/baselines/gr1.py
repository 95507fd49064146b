"""GR-1 (Wu et al. 2023, arXiv 2312.13139) as UWM compares with it: regression, no diffusion.

UWM's comparison gives it neither states nor language. With them it reads one token more, of both together.

Dimension letters: B batch, S action steps, A action dimensions, V views, N frames, H and W image height and width,
O observation tokens, D features.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from storage_schemas.errors import UserError
from uwm.baselines.gr1_encoder import Gr1ImageEncoder
from uwm.baselines.gr1_network import Gr1Network
from uwm.config import DataConfig
from uwm.data.batch import Batch
from uwm.diffusion.training import masked_mse, sample_losses
from uwm.model.attention import attention_report
from uwm.model.condition import ConditionEncoder
from uwm.model.obs_encoder import IMAGENET_MEAN, IMAGENET_STD
from uwm.model.tokenized import TokenizedPolicy, same_frames
from uwm.model.tokenizer import Tokenizer
from uwm.policies import Gr1Config
from uwm.policy import LossOutput, Mode, Sample


class NormalizedPixels(Tokenizer):
    """Pixels normalized with ImageNet's mean and deviation: what GR-1 sees and predicts."""

    channels = 3
    downsample = 1
    fingerprint = "imagenet-pixels"
    _mean: Tensor  # (3, 1, 1)
    _std: Tensor  # (3, 1, 1)

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("_mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1))
        self.register_buffer("_std", torch.tensor(IMAGENET_STD).view(3, 1, 1))

    def encode(self, images: Tensor) -> Tensor:
        """Images (M, 3, H, W) in [0, 1] -> (M, 3, H, W) of about unit scale."""
        return (images - self._mean) / self._std

    def decode(self, latents: Tensor) -> Tensor:
        """Normalized images (M, 3, H, W) -> images (M, 3, H, W) in [0, 1]."""
        return (latents * self._std + self._mean).clamp(0, 1)


@dataclass(frozen=True, kw_only=True)
class Gr1Obs:
    """A batch as GR-1 sees it."""

    tokens: Tensor  # (B, O, D) of the current observation's images, and one more of states and instruction if there are
    token_mask: Tensor  # (B, O) bool: of known images; the one more always is
    latents: Tensor  # (B, V, 3, N, H, W) the next images, normalized; zero where unknown


class GR1Policy(TokenizedPolicy):
    """Action queries and observation queries read the current images; actions and next images by squared error.

    No token attends to the query of an unknown action step or to a token of an unknown image, and neither counts in
    the loss. One pass answers all three modes; video mode hides the action queries, as action-free samples do.

    Args:
        config: sizes.
        data: what a sample holds.

    Raises:
        UserError: when sizes don't divide, or numbers of frames differ.
    """

    modes = frozenset({Mode.POLICY, Mode.VIDEO, Mode.JOINT})

    def __init__(self, config: Gr1Config, data: DataConfig) -> None:
        super().__init__(NormalizedPixels())
        same_frames(data, "GR-1 predicts one frame per current frame")
        if any(side % config.decoder.patch for side in data.crop):
            raise UserError(f"data.crop {data.crop} is not divisible by policy.decoder.patch {config.decoder.patch}")
        self._config = config
        self.obs_encoder = Gr1ImageEncoder(
            config.obs_encoder,
            image_size=data.crop,
            views=len(data.cameras),
            frames=data.obs_frames,
            embed_dim=config.embed_dim,
        )
        self.condition = ConditionEncoder(data, config.embed_dim)
        told = self.condition.out_dim
        self.condition_token = nn.Linear(told, config.embed_dim) if told else None
        self.network = Gr1Network(
            config,
            image_size=data.crop,
            num_views=len(data.cameras),
            num_frames=data.obs_frames,
            action_len=data.action_horizon,
            action_dim=data.action_dim,
        )

    def attention_report(self) -> str:
        """See `Learner`; it is the trunk's."""
        queries = self.network.obs_queries  # (1, O, D)
        tokens = 2 * queries.shape[1] + self.network.action_len + (self.condition_token is not None)
        return attention_report(self._config, queries, tokens=tokens, masked=True)

    def encode_batch(self, batch: Batch, *, next_obs: bool = True) -> Gr1Obs:
        """Encode the current images; without `next_obs` the next ones count as unknown."""
        seen, following = batch.known_places()
        tokens, token_mask = self.obs_encoder(self.tokenizer.encode(batch.obs), batch.obs_mask, seen)
        if self.condition_token is not None:
            token = self.condition_token(self.condition(batch).to(self.condition_token.weight.dtype))[
                :, None
            ]  # (B, 1, D)
            tokens = torch.cat([tokens, token.to(tokens)], dim=1)
            token_mask = torch.cat([token_mask, torch.ones_like(token_mask[:, :1])], dim=1)
        mask = batch.next_mask if next_obs else torch.zeros_like(batch.next_mask)
        latents = self.encode_known(batch.next_obs, mask, following if next_obs else None)
        return Gr1Obs(tokens=tokens, token_mask=token_mask, latents=latents)

    def loss(self, batch: Batch, generator: torch.Generator) -> LossOutput:
        """Mean squared error of actions and next images, over what is known; nothing in it is random.

        Args:
            batch: see `Batch`.
            generator: not used.
        """
        encoded = self.encode_batch(batch)
        action, images = self.network(encoded.tokens, encoded.token_mask, batch.action_mask.any(2))
        known_action, known_next = batch.action_mask, batch.next_mask[:, :, None, :, None, None]
        action_loss = masked_mse(action, batch.action, known_action, batch.micro_batch.known_actions)
        next_loss = masked_mse(images, encoded.latents, known_next, batch.micro_batch.known_frames)
        logs = {"action_loss": action_loss.detach(), "next_obs_loss": next_loss.detach()}
        return LossOutput(
            loss=action_loss + next_loss,
            logs=logs,
            action=sample_losses(action, batch.action, known_action, None),
            next_obs=sample_losses(images, encoded.latents, known_next, None),
        )

    @torch.no_grad()
    def sample_encoded(self, encoded: Gr1Obs, mode: Mode, generator: torch.Generator) -> Sample:
        """`sample` of a batch that is already encoded. Raises UserError when GR-1 has no such mode."""
        self.require(mode)
        hidden = encoded.token_mask.new_zeros(len(encoded.tokens), self.network.action_len)
        action, images = self.network(encoded.tokens, encoded.token_mask, hidden if mode is Mode.VIDEO else None)
        return Sample(
            action=None if mode is Mode.VIDEO else action.float(),
            next_obs=None if mode is Mode.POLICY else images.float(),
        )
