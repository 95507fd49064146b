"""Typed configurations of a run: frozen, checked on construction, JSON in and out.

A named run is a function in `recipes.py` that returns a `RunConfig`; variants derive with
`replace`. On the command line `key=value` pairs replace single fields: `train.steps=100`.
"""

from typing import Annotated, Literal, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from storage_schemas.episode import SegmentSpec

Kernel = Literal["auto", "flash", "efficient", "cudnn", "math"]
"""Which of SDPA's kernels attention runs on."""


def _as_number(version: object) -> object:
    return int(version) if isinstance(version, str) and version.isdecimal() else version


DatasetVersion = Annotated[Annotated[int, Field(ge=0)] | str | None, BeforeValidator(_as_number)]
"""A dataset version: its number, a tag, or None for the newest."""

C = TypeVar("C", bound="Config")


class Config(BaseModel):
    """Base of all configurations: immutable, and an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class DatasetRef(Config):
    """One dataset of a mixture, pinned to a version."""

    uri: str
    version: DatasetVersion = Field(
        None, description="dataset version or tag; pinned to a number when the run starts, None to the newest"
    )
    weight: float = Field(1.0, gt=0, description="share of the samples, relative to the other datasets")
    collections: tuple[str, ...] = Field((), description="only episodes of these collections; empty takes all")


class DataConfig(Config):
    """What a sample holds and how batches are made."""

    datasets: tuple[DatasetRef, ...] = ()
    cameras: tuple[str, ...] = ("exterior_image_1_left", "exterior_image_2_left", "wrist_image_left")
    action_dim: int = Field(10, gt=0)
    obs_frames: int = Field(2, gt=0)
    action_steps: int = Field(16, gt=0)
    next_frames: int = Field(2, gt=0)
    next_start: int = Field(
        15, ge=0, description="first next-observation frame, in steps after the current one; published: 16"
    )
    resize: tuple[int, int] = Field((180, 320), description="height, width that a frame is brought to in the loader")
    crop: tuple[int, int] = Field(
        (160, 288), description="height, width of the model's images: random crop in training, centre crop else"
    )
    fit: Literal["cover", "stretch"] = Field(
        "cover", description="cover keeps the aspect and cuts the rest; published: stretch"
    )
    augmentation: Literal["sample", "batch", "none"] = Field(
        "sample",
        description="draw crop and colour jitter for every sample, once for a batch (published; other numbers of "
        "processes or accumulated batches then train on other crops), or not at all",
    )
    jitter: float = Field(0.2, ge=0, lt=1, description="strength of brightness, contrast and saturation jitter")
    decode: Literal["exact", "scaled"] = Field(
        "exact", description="scaled lets JPEGs shrink while they are decoded, to half or less: faster, other pixels"
    )
    normalizer_split: Literal["train", "all"] = Field(
        "train", description="episodes whose actions bound the normalizer; published: all, held-out ones too"
    )
    action_scale: Literal["min_max", "quantile", "z_score"] = Field(
        "min_max",
        description="what becomes [-1, 1]: all training actions (published), percentiles 1 to 99, or mean +- std",
    )
    latents: str = Field(
        "", description="name of cached latents (`uwm latents`) to train on; empty encodes images in every step"
    )
    workers: int = Field(0, ge=0, description="loader processes; 0 reads in the training process")
    prefetch: int = Field(4, gt=0, description="batches that each loader process reads ahead")

    @model_validator(mode="after")
    def _crop_fits(self) -> Self:
        if self.crop[0] > self.resize[0] or self.crop[1] > self.resize[1]:
            raise ValueError(f"crop {self.crop} is larger than resize {self.resize}")
        return self

    @property
    def segment_spec(self) -> SegmentSpec:
        """Which steps around the current one a sample reads, and from which cameras."""
        return SegmentSpec(
            cameras=self.cameras,
            obs_frames=self.obs_frames,
            action_steps=self.action_steps,
            next_frames=self.next_frames,
            next_start=self.next_start,
        )


class TokenizerConfig(Config):
    """What turns next-observation images into latents."""

    kind: Literal["autoencoder", "sdxl", "identity"] = "autoencoder"
    path: str = Field(
        "", description="autoencoder: checkpoint directory; sdxl: hub id or local path of the diffusers VAE"
    )
    latent_scale: float = Field(
        1.0, gt=0, description="sdxl: what its latents are divided by after the VAE's own factor; published: 3"
    )


class AutoencoderConfig(Config):
    """The small autoencoder that the project trains on ingested frames."""

    channels: int = Field(4, gt=0, description="latent channels")
    downsample: int = Field(8, description="image pixels per latent pixel along each axis, a power of two")
    width: int = Field(32, gt=0, description="feature channels at half resolution, doubled at every further halving")
    depth: int = Field(2, gt=0, description="residual blocks at each resolution")


class ObsEncoderConfig(Config):
    """What turns current images into the conditioning vector."""

    kind: Literal["resnet18gn", "vit_b_32", "small", "vit_small"] = Field(
        "resnet18gn",
        description="published ResNet-18 with GroupNorm or ViT-B/32; a few convolutions or a 2-block ViT for CPUs",
    )
    embed_dim: int = Field(768, gt=0, description="features per view and frame")


class UnetConfig(Config):
    """The 1-D convolutional network of Diffusion Policy; the timestep's features are `model.timestep_embed_dim`."""

    widths: tuple[int, ...] = Field((256, 512, 1024), min_length=2, description="channels, at halved length each")
    kernel_size: int = Field(5, gt=0, description="odd, so that lengths are kept")
    groups: int = Field(8, gt=0, description="of GroupNorm; must divide every width")

    @model_validator(mode="after")
    def _groups_divide(self) -> Self:
        if self.kernel_size % 2 == 0 or any(width % self.groups for width in self.widths):
            raise ValueError(f"kernel_size must be odd and groups {self.groups} divide all of {self.widths}")
        return self


class Gr1Config(Config):
    """What GR-1 has beside its trunk: the resampler of image tokens and the image decoder."""

    resampler_latents: int = Field(9, gt=0, description="tokens per image beside the class token's")
    resampler_depth: int = Field(3, gt=0)
    resampler_heads: int = Field(4, gt=0)
    resampler_head_dim: int = Field(128, gt=0)
    patch: int = Field(16, gt=0, description="pixels along each side of a predicted patch")
    decoder_depth: int = Field(3, gt=0)
    decoder_heads: int = Field(16, gt=0)


class ModelConfig(Config):
    """The network of a policy; UWM takes every setting of its transformer, the baselines those they have."""

    embed_dim: int = Field(768, gt=0)
    timestep_embed_dim: int = Field(512, gt=0)
    depth: int = Field(12, gt=0)
    num_heads: int = Field(12, gt=0)
    mlp_ratio: float = Field(4.0, gt=0)
    qkv_bias: bool = True
    num_registers: int = Field(8, ge=0)
    patch: tuple[int, int, int] = Field((2, 4, 4), description="frames, height, width of a latent patch")
    obs_encoder: ObsEncoderConfig = ObsEncoderConfig()
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
    attention: Kernel = Field("auto", description="force one of SDPA's kernels; auto leaves it to torch")
    unet: UnetConfig = UnetConfig()
    gr1: Gr1Config = Gr1Config()

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.embed_dim % self.num_heads:
            raise ValueError(f"embed_dim {self.embed_dim} is not divisible by num_heads {self.num_heads}")
        return self


class DiffusionConfig(Config):
    """Noise schedule, sampling grid and conventions; `published()` gives the reference's."""

    train_timesteps: int = Field(100, gt=1)
    sample_steps: int = Field(10, gt=0)
    beta_schedule: Literal["squaredcos_cap_v2"] = "squaredcos_cap_v2"
    prediction: Literal["epsilon", "sample", "v"] = Field(
        "epsilon", description="the network predicts the noise (published), the clean sample, or v (arXiv 2202.00512)"
    )
    latent_target: Literal["absolute", "change"] = Field(
        "absolute", description="diffuse the next latents (published), or their change from the current frame's"
    )
    spacing: Literal["trailing", "leading"] = Field(
        "trailing", description="sampling grid 99..9, or the published 90..0"
    )
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
    sampler: Literal["ddim", "dpmsolver++"] = Field(
        "ddim", description="dpmsolver++ (arXiv 2211.01095, by diffusers) gets by with fewer sample_steps"
    )
    hoist: bool = Field(
        True, description="compute the observation's share of AdaLN once per sampling; published: in every step"
    )
    clip_action: float | None = Field(1.0, description="bound of the predicted clean action")
    clip_latent: float | None = Field(None, description="bound of the predicted clean latents; published: 1")
    action_loss: Literal["masked", "all"] = Field(
        "masked", description="leave unknown actions out of the loss, or the published average over all"
    )

    @classmethod
    def published(cls) -> "DiffusionConfig":
        """The conventions of the published implementation."""
        return cls(spacing="leading", absent="first_sampled", clip_latent=1.0, action_loss="all", hoist=False)


class OptimConfig(Config):
    """AdamW with linear warm-up, then cosine decay to zero or a constant rate."""

    implementation: Literal["fused", "foreach"] = Field(
        "fused", description="of the same update: one pass over the weights, or torch's default (published)"
    )
    lr: float = Field(1e-4, gt=0)
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = Field(1e-6, ge=0, description="on all parameters, as published")
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_steps: int = Field(1000, ge=0)
    decay_steps: int = Field(0, ge=0, description="step at which cosine reaches zero; 0 is the run's last step")
    clip_norm: float = Field(1.0, gt=0, description="bound of the gradient's norm")
    ema_decay: float = Field(0.999, ge=0, lt=1, description="0 keeps no average")


class TrainConfig(Config):
    """How long, how much at once, and how often to look and to save."""

    steps: int = Field(100_000, gt=0)
    batch_size: int = Field(36, gt=0, description="samples per process and step")
    accumulate: int = Field(1, gt=0, description="batches of each process whose gradients make one step")
    seed: int = 0
    device: str = Field("auto", description="auto takes CUDA when there is one")
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="auto is bf16 on CUDA, fp32 on the CPU")
    matmul: Literal["tf32", "fp32"] = Field(
        "tf32", description="CUDA's products of float32 matrices outside of bf16; published: fp32"
    )
    sync: Literal["report", "step"] = Field(
        "report", description="copy the losses to the host when they are reported, or in every step (published)"
    )
    compile: Literal["off", "default", "reduce-overhead"] = Field(
        "off", description="torch.compile of the transformer; reduce-overhead replays CUDA graphs; for CUDA"
    )
    log_every: int = Field(20, gt=0)
    save_every: int = Field(2000, gt=0)
    keep: int = Field(3, gt=0, description="checkpoints kept, besides the last")
    threads: int = Field(0, ge=0, description="CPU threads of torch; 0 leaves torch's choice")
    processes: int = Field(
        1, gt=0, description="processes on this machine, one per GPU; more than 1 go through torchrun"
    )
    machines: int = Field(1, gt=0, description="machines that the same command is started on")
    rendezvous: str = Field("", description="host:port of one of them, where they meet; empty on one machine")
    restarts: int = Field(3, ge=0, description="how often processes that died are started again, from the checkpoint")
    parallel: Literal["ddp", "fsdp"] = Field(
        "ddp", description="how several processes share a model: each has all of it, or a shard (FSDP2)"
    )
    replicas: int = Field(
        1, gt=0, description="fsdp: how many times the shards make up the model; as many as machines is HSDP"
    )
    checkpoint_activations: bool = Field(
        False, description="compute the blocks' activations again in the backward pass: less memory, a third more work"
    )
    spike_limit: float = Field(
        20.0, ge=0, description="robust deviations above the recent median at which a loss stops the run; 0 never"
    )
    spike_window: int = Field(
        200, ge=20, description="steps whose losses a loss is compared with; it starts empty when a run goes on"
    )
    track: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = Field(
        ("tensorboard",), description="who else is told how it goes; metrics.jsonl always is"
    )
    eval_every: int = Field(
        0, ge=0, description="steps between evaluations on held-out episodes, each of a checkpoint; 0 does none"
    )
    eval_samples: int = Field(16, gt=0, description="segments of each dataset that such an evaluation predicts")

    @model_validator(mode="after")
    def _graphs_keep_no_gradient(self) -> Self:
        if self.compile == "reduce-overhead" and self.accumulate > 1:  # pytorch/pytorch#169545
            raise ValueError(
                "a CUDA graph overwrites the gradients of the batch before: with accumulate, compile=default"
            )
        return self


class RunConfig(Config):
    """One training run. `stage` says what is trained; every stage goes through the same trainer."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="the run's and its checkpoints' name")
    stage: Literal["tokenizer", "pretrain", "finetune"] = "pretrain"
    policy: Literal["uwm", "pad", "dp", "dp_unet", "gr1"] = Field(
        "uwm", description="what is trained: UWM, PAD, Diffusion Policy as transformer or 1-D UNet, or GR-1"
    )
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    autoencoder: AutoencoderConfig = AutoencoderConfig()
    diffusion: DiffusionConfig = DiffusionConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    init_from: str = Field("", description="checkpoint directory whose weights and normalizers the run starts from")
    output: str = Field("", description="folder of the run; empty is runs/<name>")

    @model_validator(mode="after")
    def _finetune_starts_somewhere(self) -> Self:
        if self.stage == "tokenizer" and self.init_from:
            raise ValueError("a tokenizer run starts from scratch: init_from must be empty")
        return self

    @model_validator(mode="after")
    def _unknown_actions_are_masked(self) -> Self:
        if self.policy in ("pad", "gr1") and self.diffusion.action_loss == "all":
            raise ValueError(f"{self.policy} masks unknown actions, as published: diffusion.action_loss must be masked")
        return self

    @model_validator(mode="after")
    def _machines_meet(self) -> Self:
        if self.train.machines > 1 and not self.train.rendezvous:
            raise ValueError("several machines meet somewhere: set train.rendezvous=host:port on all of them")
        return self

    @model_validator(mode="after")
    def _decay_lasts(self) -> Self:
        if self.optim.schedule == "cosine" and 0 < self.optim.decay_steps < self.train.steps:
            raise ValueError("the learning rate is zero before the run ends: optim.decay_steps is below train.steps")
        return self

    @property
    def folder(self) -> str:
        """Where checkpoints and logs of the run lie."""
        return self.output or f"runs/{self.name}"


def replace(config: C, **changes: object) -> C:
    """A checked copy of `config` with some fields changed."""
    return type(config).model_validate(config.model_dump() | changes)
