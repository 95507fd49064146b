"""The policies of this project, each with the settings that its network uses, and what builds a run's network.

Read without torch: a network is imported when it is built.
"""

from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from uwm.config import DiffusionConfig, PolicyConfig, RunConfig, TokenizerConfig
from uwm.registry import register_policy
from uwm.settings import Changeable, Settings

if TYPE_CHECKING:
    from uwm.policy import Learner

Kernel = Literal["auto", "flash", "efficient", "cudnn", "math"]
"""Which of SDPA's kernels attention runs on."""
Patch = tuple[PositiveInt, PositiveInt, PositiveInt]
"""Frames, height, width."""

_DIFFUSION_POLICY = "A Diffusion Policy ([Chi et al. 2023](https://arxiv.org/abs/2303.04137))"


class ObsEncoderConfig(Settings):
    """What turns current images into the conditioning vector."""

    kind: Literal["resnet18gn", "vit_b_32", "small", "vit_small"] = Field(
        "resnet18gn",
        description="published ResNet-18 with GroupNorm or ViT-B/32; a few convolutions or a 2-block ViT for CPUs",
    )
    embed_dim: int = Field(768, gt=0, description="features per view and frame")


class LatentDiffusionConfig(DiffusionConfig):
    """Diffusion over actions and the next observation's latents."""

    latent_target: Literal["absolute", "change"] = Field(
        "absolute", description="diffuse the next latents (published), or their change from the current frame's"
    )
    clip_latent: float | None = Field(None, gt=0, description="bound of the predicted clean latents; published: 1")


class UwmDiffusionConfig(LatentDiffusionConfig):
    """A timestep for each modality; `published()` gives the reference's conventions."""

    absent: Literal["last_trained", "first_sampled"] = Field(
        "last_trained",
        description="timestep that marks an absent modality when sampling: 99 as in training, or the published 90",
    )
    absent_embedding: bool = Field(
        False,
        description="mark absent and clean modalities by learned embeddings, for which a share of the training samples "
        "has either; published: by timesteps",
    )
    marked_share: float = Field(
        0.1,
        gt=0,
        le=0.5,
        description="with absent_embedding: share of the samples that lack a modality, or have it clean",
    )
    precompute_modulation: Changeable[bool] = Field(
        True, description="compute the observation's part of AdaLN once per sampling; published: in every step"
    )
    action_loss: Literal["masked", "all"] = Field(
        "masked", description="leave unknown actions out of the loss, or the published average over all"
    )

    @property
    def absent_timestep(self) -> int:
        """The timestep that marks a modality as absent when sampling; training marks it with T - 1, or as here."""
        if self.absent_embedding:
            return self.train_timesteps
        return self.train_timesteps - 1 if self.absent == "last_trained" else self.sampling_timesteps[0]

    @property
    def clean_timestep(self) -> int:
        """The timestep that marks a modality as clean."""
        return -1 if self.absent_embedding else 0

    @classmethod
    def published(cls) -> Self:
        """The conventions of the published implementation."""
        return cls(
            spacing="leading",
            absent="first_sampled",
            clip_latent=1.0,
            action_loss="all",
            precompute_modulation=False,
        )


class ActionDiffusionConfig(DiffusionConfig):
    """Diffusion over actions alone."""

    action_loss: Literal["masked", "all"] = Field(
        "masked", description="leave unknown actions out of the loss, or the published average over all"
    )


class TransformerConfig(PolicyConfig):
    """A policy whose network is a transformer."""

    embed_dim: int = Field(768, gt=0)
    depth: int = Field(12, gt=0)
    num_heads: int = Field(12, gt=0)
    attention: Changeable[Kernel] = Field("auto", description="force one of SDPA's kernels; auto leaves it to torch")

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.embed_dim % self.num_heads:
            raise ValueError(f"embed_dim {self.embed_dim} is not divisible by num_heads {self.num_heads}")
        return self

    @property
    def size(self) -> str:
        """Width, depth and heads."""
        return f"width {self.embed_dim}, depth {self.depth}, {self.num_heads} heads"


class AdaLNConfig(TransformerConfig):
    """A policy whose transformer's blocks are modulated by diffusion timesteps."""

    timestep_embed_dim: int = Field(512, ge=4, multiple_of=2)
    mlp_ratio: float = Field(4.0, gt=0, description="hidden features of feed-forward networks per feature")
    qkv_bias: bool = Field(True, description="whether the attention projection has a bias")


@register_policy
class UwmConfig(AdaLNConfig):
    """Unified World Model: a timestep for each modality, all five modes."""

    about: ClassVar[str] = (
        "A Unified World Model ([Zhu et al. 2025](https://arxiv.org/abs/2504.02792)): one diffusion transformer "
        "that is a policy, a forward and an inverse dynamics model and a video predictor."
    )
    tags: ClassVar[tuple[str, ...]] = ("diffusion", "world-model")
    network: ClassVar[str] = "uwm.model.uwm:UWMPolicy"

    kind: Literal["uwm"] = "uwm"
    num_registers: int = Field(8, ge=0)
    patch: Patch = Field((2, 4, 4), description="frames, height, width of a latent patch")
    current_latents: bool = Field(
        False, description="join the current frames' latents to the noisy ones by channel, as PAD does; published: no"
    )
    adaln: Literal["full", "low_rank", "shared"] = Field(
        "full", description="each block's own modulation (published), one of low rank, or an offset to a shared one"
    )
    adaln_rank: int = Field(128, gt=0, description="of low-rank modulations")
    token_dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of training samples without next-observation tokens; above 0 the tokens of whatever is "
        "absent are masked, and policy sampling runs without them; published: 0",
    )
    obs_encoder: ObsEncoderConfig = ObsEncoderConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    diffusion: UwmDiffusionConfig = UwmDiffusionConfig()


@register_policy
class PadConfig(AdaLNConfig):
    """PAD: actions and next latents at one timestep; it sees the current latents."""

    about: ClassVar[str] = (
        "PAD ([Guo et al. 2024](https://arxiv.org/abs/2411.18179)): one diffusion transformer that predicts actions "
        "and the next images together."
    )
    tags: ClassVar[tuple[str, ...]] = ("diffusion", "world-model")
    network: ClassVar[str] = "uwm.baselines.pad:PADPolicy"

    kind: Literal["pad"] = "pad"
    patch: Patch = Field((2, 4, 4), description="frames, height, width of a latent patch")
    tokenizer: TokenizerConfig = TokenizerConfig()
    diffusion: LatentDiffusionConfig = LatentDiffusionConfig()


@register_policy
class DpConfig(AdaLNConfig):
    """Diffusion Policy as a transformer: actions only."""

    about: ClassVar[str] = f"{_DIFFUSION_POLICY}: a transformer that denoises actions."
    tags: ClassVar[tuple[str, ...]] = ("diffusion",)
    network: ClassVar[str] = "uwm.baselines.diffusion_policy:TransformerPolicy"
    reads_next_obs: ClassVar[bool] = False

    kind: Literal["dp"] = "dp"
    obs_encoder: ObsEncoderConfig = ObsEncoderConfig()
    tokenizer: None = None
    diffusion: ActionDiffusionConfig = ActionDiffusionConfig()


@register_policy
class DpUnetConfig(PolicyConfig):
    """Diffusion Policy as a 1-D U-Net."""

    about: ClassVar[str] = f"{_DIFFUSION_POLICY}: a 1-D U-Net that denoises actions."
    tags: ClassVar[tuple[str, ...]] = ("diffusion",)
    network: ClassVar[str] = "uwm.baselines.diffusion_policy:UnetPolicy"
    reads_next_obs: ClassVar[bool] = False

    kind: Literal["dp_unet"] = "dp_unet"
    timestep_embed_dim: int = Field(512, ge=4, multiple_of=2)
    widths: tuple[PositiveInt, ...] = Field(
        (256, 512, 1024), min_length=2, description="channels, at halved length each"
    )
    kernel_size: int = Field(5, gt=0, description="odd, so that lengths are kept")
    groups: int = Field(8, gt=0, description="of GroupNorm; must divide every width")
    obs_encoder: ObsEncoderConfig = ObsEncoderConfig()
    tokenizer: None = None
    diffusion: ActionDiffusionConfig = ActionDiffusionConfig()

    @model_validator(mode="after")
    def _groups_divide(self) -> Self:
        if self.kernel_size % 2 == 0 or any(width % self.groups for width in self.widths):
            raise ValueError(f"kernel_size must be odd and groups {self.groups} divide all of {self.widths}")
        return self

    @property
    def size(self) -> str:
        """The widths."""
        return f"widths {', '.join(map(str, self.widths))}"


class Gr1EncoderConfig(Settings):
    """How GR-1 sees: a vision transformer's tokens, resampled to a few per image."""

    kind: Literal["vit_b_32", "vit_small"] = Field("vit_b_32", description="published, or 2 blocks for CPUs")
    resampler_latents: int = Field(9, gt=0, description="tokens per image beside the class token's")
    resampler_depth: int = Field(3, gt=0)
    resampler_heads: int = Field(4, gt=0)
    resampler_head_dim: int = Field(128, gt=0)

    @property
    def latents_per_image(self) -> int:
        """Tokens of an image: the class token's and the resampled ones."""
        return 1 + self.resampler_latents


class Gr1DecoderConfig(Settings):
    """What makes images of GR-1's tokens."""

    patch: int = Field(16, gt=0, description="pixels along each side of a predicted patch")
    depth: int = Field(3, gt=0)
    heads: int = Field(16, gt=0)


@register_policy
class Gr1Config(TransformerConfig):
    """GR-1 without language: actions and next images by regression."""

    about: ClassVar[str] = (
        "GR-1 ([Wu et al. 2023](https://arxiv.org/abs/2312.13139)) without language: a transformer that predicts "
        "actions and the next images by regression."
    )
    tags: ClassVar[tuple[str, ...]] = ("world-model",)
    network: ClassVar[str] = "uwm.baselines.gr1:GR1Policy"

    kind: Literal["gr1"] = "gr1"
    obs_encoder: Gr1EncoderConfig = Gr1EncoderConfig()
    decoder: Gr1DecoderConfig = Gr1DecoderConfig()
    tokenizer: None = None
    diffusion: None = None

    @model_validator(mode="after")
    def _decoder_heads_divide(self) -> Self:
        if self.embed_dim % self.decoder.heads:
            raise ValueError(f"embed_dim {self.embed_dim} is not divisible by decoder.heads {self.decoder.heads}")
        return self


def build(config: RunConfig) -> "Learner":
    """The untrained network of a run: a tokenizer for the tokenizer stage, a policy otherwise.

    Raises:
        UserError: when sizes don't divide, or the run's tokenizer can't be loaded.
    """
    if config.stage == "tokenizer":
        from uwm.model.autoencoder import Autoencoder

        return Autoencoder(config.autoencoder)
    return config.policy.build(config.data)
