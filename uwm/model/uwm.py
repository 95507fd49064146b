"""The Unified World Model as a policy (Zhu et al. 2025, arXiv 2504.02792).

Dimension letters: B batch, S action steps, A action dimensions, V views, O observation frames, N next frames,
H and W image height and width, C latent channels, h and w latent height and width, G condition features.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from uwm.config import DataConfig
from uwm.data.batch import Batch
from uwm.diffusion.modes import MODES, Denoiser, Modality, Role, run_modes, timestep_pairs
from uwm.diffusion.rng import randn_rows
from uwm.diffusion.schedule import alphas_cumprod
from uwm.diffusion.training import Noised, masked_mse, noise_modality, sample_losses
from uwm.model.attention import attention_report, key_mask
from uwm.model.condition import ConditionEncoder
from uwm.model.obs_encoder import ObsEncoder
from uwm.model.robots import RobotActions
from uwm.model.tokenized import TokenizedPolicy, latent_reference, latent_size, same_frames
from uwm.model.tokenizer import load_tokenizer
from uwm.model.transformer import DiffusionTransformer, PrecomputedModulation
from uwm.policies import UwmConfig
from uwm.policy import LossOutput, Mode, Sample, SampleLosses


@dataclass(frozen=True, kw_only=True)
class UwmObs:
    """A batch as the transformer sees it; all modes of an evaluation can share one.

    Attributes:
        cond: (B, G) features of the current observation: of its images, of states and of the instruction.
        latents: (B, V, C, N, h, w) of the next observation; zero where unknown.
        current: (B, V, C, O, h, w) of the current observation, for models that look at them; zero where unknown.
        views: (B, V) bool: some frame is known.
        next_mask: (B, V, N) bool.
        action: (B, S, A) normalized; zero where unknown.
        action_mask: (B, S, A) bool.
        lacking: (B, 1, A) bool: numbers of an action that the robot does not have; None when all have all.
    """

    cond: Tensor
    latents: Tensor
    current: Tensor
    views: Tensor
    next_mask: Tensor
    action: Tensor
    action_mask: Tensor
    lacking: Tensor | None = None


class UWMPolicy(TokenizedPolicy):
    """Observation encoder and diffusion transformer; the tokenizer is held, but is not part of the state.

    Args:
        config: sizes, tokenizer and diffusion conventions.
        data: what a sample holds.

    Raises:
        UserError: when the tokenizer can't be loaded, image, tokenizer and patch sizes don't divide, or frames
            can't be joined because their numbers differ.
    """

    modes: frozenset[Mode] = frozenset(Mode)
    _alphas_cumprod: Tensor  # (T,)

    def __init__(self, config: UwmConfig, data: DataConfig) -> None:
        super().__init__(load_tokenizer(config.tokenizer))
        tokenizer = self.tokenizer
        if config.current_latents:
            same_frames(data, "policy.current_latents joins frame to frame")
        self._config = config
        self.diffusion = config.diffusion
        self._relative = config.diffusion.latent_target == "change"
        self._joined = config.current_latents
        self._token_dropout = config.token_dropout
        image_shape = latent_size(data, config.patch, tokenizer.downsample)
        self.latent_shape = (len(data.cameras), tokenizer.channels, *image_shape)
        self.obs_encoder = ObsEncoder(
            config.obs_encoder, views=len(data.cameras), frames=data.obs_frames, image_size=data.crop
        )
        self.condition = ConditionEncoder(data, config.obs_encoder.embed_dim)
        self.transformer = DiffusionTransformer(
            config,
            global_cond_dim=self.obs_encoder.out_dim + self.condition.out_dim,
            image_shape=image_shape,
            num_chans=tokenizer.channels,
            num_views=len(data.cameras),
            action_len=data.action_horizon,
            action_dim=data.action_dim,
        )
        self.robot_actions = RobotActions(data)
        self.register_buffer("_alphas_cumprod", alphas_cumprod(config.diffusion), persistent=False)

    def compile_network(self, mode: str) -> None:
        """See `Learner`."""
        self.transformer.compile(mode=mode)

    def attention_report(self) -> str:
        """See `Learner`."""
        network, masked = self.transformer, self._token_dropout > 0
        return attention_report(self._config, network.pos_embed, tokens=network.num_tokens, masked=masked)

    def encode_batch(self, batch: Batch, *, next_obs: bool = True) -> UwmObs:
        """Encode what is known of a batch.

        Args:
            batch: see `Batch`.
            next_obs: whether the next observation is needed; if not, it counts as unknown.
        """
        mask = batch.next_mask if next_obs else torch.zeros_like(batch.next_mask)
        seen, following = batch.known_places()
        looks_back = self._joined or self._relative
        current = self.encode_known(batch.obs, batch.obs_mask, seen if looks_back else None, batch.obs_latents)
        images = self.obs_encoder(batch.obs, batch.obs_mask, seen)
        return UwmObs(
            cond=torch.cat([images, self.condition(batch).to(images)], dim=1),
            latents=self.encode_known(batch.next_obs, mask, following if next_obs else None, batch.next_latents),
            current=current,
            views=batch.obs_mask.any(2) | batch.next_mask.any(2),
            next_mask=mask,
            action=batch.action,
            action_mask=batch.action_mask,
            lacking=self.robot_actions(batch.embodiment),
        )

    def loss(self, batch: Batch, generator: torch.Generator) -> LossOutput:
        """Mean squared error of both predictions at independent timesteps, over what is known.

        Args:
            batch: see `Batch`.
            generator: source of timesteps and noise.
        """
        encoded = self.encode_batch(batch)
        known_action, known_next = _known(encoded)
        marked = self.diffusion.marked_share if self.diffusion.absent_embedding else 0.0
        noised = partial(
            noise_modality,
            generator=generator,
            config=self.diffusion,
            alphas_cumprod=self._alphas_cumprod,
            micro_batch=batch.micro_batch,
        )
        action = noised(encoded.action, known_action, dropped=marked, given=marked)
        latents = encoded.latents - latent_reference(encoded.current, self.diffusion)
        next_obs = noised(latents, known_next, dropped=max(marked, self._token_dropout), given=marked)
        action_out, next_out = self.transformer(
            encoded.cond,
            action.noisy,
            next_obs.noisy,
            action.timestep,
            next_obs.timestep,
            self._context(encoded),
            self._keys(encoded.views, action.present, next_obs.present),
        )
        if self.diffusion.action_loss == "all":
            whole = torch.ones_like(known_action)
            action_loss = masked_mse(action_out, action.target, whole, whole.numel())
        else:
            count = action.count(batch.micro_batch.known_actions)
            action_loss = masked_mse(action_out, action.target, action.counted, count)
        count = next_obs.count(batch.micro_batch.known_frames)
        next_loss = masked_mse(next_out, next_obs.target, next_obs.counted, count)
        logs = {"action_loss": action_loss.detach(), "next_obs_loss": next_loss.detach()}
        return LossOutput(
            loss=action_loss + next_loss,
            logs=logs,
            action=self._by_sample(action_out, action),
            next_obs=self._by_sample(next_out, next_obs),
        )

    def _by_sample(self, output: Tensor, noised: Noised) -> SampleLosses:
        noise = (noised.timestep / (self.diffusion.train_timesteps - 1)).clamp(0, 1)  # markers lie outside
        return sample_losses(output, noised.target, noised.counted, noise)

    def sample_encoded(self, encoded: UwmObs, mode: Mode, generator: torch.Generator) -> Sample:
        """`sample` of a batch that is already encoded, with its next observation when the mode takes it clean."""
        return self.sample_modes(encoded, (mode,), generator)[mode]

    @torch.no_grad()
    def sample_modes(self, encoded: UwmObs, modes: Sequence[Mode], generator: torch.Generator) -> Mapping[Mode, Sample]:
        """Several modes in one batch, each as `sample_encoded` gives it with a generator in the same state."""
        known_action, known_next = _known(encoded)
        action = _modality(encoded.action, known_action, generator, self.diffusion.clip_action)
        action = replace(action, lacking=encoded.lacking)
        reference = latent_reference(encoded.current, self.diffusion)
        next_obs = _modality(encoded.latents - reference, known_next, generator, self.diffusion.clip_latent)
        cond: Tensor | PrecomputedModulation = encoded.cond
        if self.diffusion.precompute_modulation:
            times = timestep_pairs(modes, self.diffusion).to(encoded.cond.device)
            cond = self.transformer.precompute(encoded.cond, times)
        # the network has learned to do without next-observation tokens: the policy runs on a sequence that has none
        alone = [mode for mode in modes if self._token_dropout and mode is Mode.POLICY]
        samples: dict[Mode, Sample] = {}
        for group in (alone, [mode for mode in modes if mode not in alone]):
            if group:
                denoiser = self._denoiser(encoded, cond, group, action.known, next_obs.known)
                samples |= run_modes(denoiser, group, action, next_obs, self.diffusion)
        return {mode: _shifted(samples[mode], reference) for mode in modes}

    def _denoiser(
        self,
        encoded: UwmObs,
        cond: Tensor | PrecomputedModulation,
        modes: Sequence[Mode],
        known_action: Tensor,
        known_next: Tensor,
    ) -> Denoiser:
        """The network as the sampling loop calls it: with all modes in one batch."""
        count = len(modes)
        conds = cond.repeat(count) if isinstance(cond, PrecomputedModulation) else cond.repeat(count, 1)
        if self._token_dropout and modes == [Mode.POLICY]:

            def policy(a: Tensor, o: Tensor, a_t: Tensor, o_t: Tensor) -> tuple[Tensor, Tensor]:
                return self.transformer(conds, a, None, a_t, o_t)[0], o

            return policy
        current = self._context(encoded)
        context = None if current is None else current.repeat(count, *[1] * (current.dim() - 1))
        keys = self._keys(
            encoded.views.repeat(count, 1),
            torch.cat([_present(MODES[mode].action, known_action) for mode in modes]),
            torch.cat([_present(MODES[mode].next_obs, known_next) for mode in modes]),
        )

        def denoiser(a: Tensor, o: Tensor, a_t: Tensor, o_t: Tensor) -> tuple[Tensor, Tensor]:
            predicted: tuple[Tensor, Tensor] = self.transformer(conds, a, o, a_t, o_t, context, keys)
            return predicted

        return denoiser

    def _keys(self, views: Tensor, action: Tensor, next_obs: Tensor) -> Tensor | None:
        """(B, L) bool: tokens of what is present, by views (B, V) and modalities (B,); None when all are looked at."""
        if not self._token_dropout:
            return None
        patches, registers = self.transformer.obs_patchifier, self.transformer.registers
        keys = key_mask(
            (action[:, None], self.transformer.action_len),
            (views & next_obs[:, None], patches.num_patches // views.shape[1]),
            (torch.ones_like(action)[:, None], registers.shape[1]),
        )
        return keys | ~keys.any(dim=1, keepdim=True)  # a sample that would see nothing sees everything

    def _context(self, encoded: UwmObs) -> Tensor | None:
        return encoded.current if self._joined else None


def _known(encoded: UwmObs) -> tuple[Tensor, Tensor]:
    """Masks of actions (B, S, A), and that broadcast over latents (B, V, 1, N, 1, 1)."""
    return encoded.action_mask, encoded.next_mask[:, :, None, :, None, None]


def _modality(clean: Tensor, known: Tensor, generator: torch.Generator, clip: float | None) -> Modality:
    noise = randn_rows(clean, generator)
    return Modality(noise=noise, clean=torch.where(known, clean, noise), known=known.flatten(1).any(1), clip=clip)


def _present(role: Role, known: Tensor) -> Tensor:
    """(B,) bool: the network gets to see the modality in this role; `known` (B,) is what it could be given."""
    if role is Role.CLEAN:
        return known
    return torch.full_like(known, role is Role.DENOISE)


def _shifted(sample: Sample, reference: Tensor) -> Sample:
    return sample if sample.next_obs is None else replace(sample, next_obs=sample.next_obs + reference)
