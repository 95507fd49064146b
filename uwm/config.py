"""Typed configurations of a run: frozen, checked on construction, JSON in and out.

A named run is a function in `recipes.py` that returns a `RunConfig`; variants derive with
`replace`. On the command line `key=value` pairs replace single fields: `train.steps=100`.
"""

import json
from collections.abc import Mapping
from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, SerializeAsAny, ValidationError, model_validator

from storage_schemas.conventions import DROID_ACTION, DROID_ROBOT
from storage_schemas.episode import SegmentSpec
from storage_schemas.errors import UserError
from storage_schemas.spaces import Space
from uwm.conditions import AnyState, LanguageConfig
from uwm.earlier_configs import upgraded
from uwm.registry import POLICY_GROUP, policy_settings
from uwm.settings import Changeable, DatasetVersion, RunName, Settings, Size
from uwm.training_config import OptimConfig, TrainConfig

if TYPE_CHECKING:
    from uwm.policy import Policy


ACTION_SPACES: Mapping[str, Space] = {"droid": DROID_ACTION, "droid_robot": DROID_ROBOT}
"""Action spaces that can be named."""


class DatasetRef(Settings):
    """One dataset of a mixture, pinned to a version."""

    uri: Changeable[str]
    version: DatasetVersion = Field(
        None, description="dataset version or tag; pinned to a number when the run starts, None to the newest"
    )
    weight: float = Field(1.0, gt=0, description="share of the samples, relative to the other datasets")
    collections: tuple[str, ...] = Field((), description="only episodes of these collections; empty takes all")
    cameras: Mapping[str, str] = Field(
        {}, description="camera of the run -> camera of the dataset; empty goes by equal names, then by declared roles"
    )
    states: Mapping[str, str] = Field(
        {}, description="state of the run -> field of the dataset, empty for none; equal names where nothing is said"
    )
    embodiment: str = Field(
        "", description="the robot, whose actions share a normalizer; empty is one for each declared action space"
    )
    stride: int = Field(1, gt=0, description="steps of the dataset that make one step of the run")


def _read_space(value: object) -> object:
    """A space by the name of a convention, or as JSON has it."""
    if isinstance(value, str):
        if value not in ACTION_SPACES:
            raise ValueError(f"there is no action space {value!r}: name {', '.join(ACTION_SPACES)}, or give it as JSON")
        return ACTION_SPACES[value]
    if not isinstance(value, Mapping):
        return value
    try:
        return Space.model_validate_json(json.dumps(value))
    except ValidationError as error:
        raise ValueError(f"not an action space: {error.errors()[0]['msg']}") from error


RunSpace = Annotated[Space, BeforeValidator(_read_space)]
"""An action space; `droid` and the like stand for those of `storage_schemas.conventions`."""


class Embodiment(Settings):
    """A robot of a run: what its numbers mean, under the name that its datasets and its normalizer go by."""

    name: str = Field(min_length=1)
    action: RunSpace | None = None


class DataConfig(Settings):
    """What a sample holds and how batches are made."""

    datasets: tuple[DatasetRef, ...] = ()
    cameras: tuple[str, ...] = ("exterior_image_1_left", "exterior_image_2_left", "wrist_image_left")
    action: RunSpace | None = Field(
        None, description="what the run's actions mean; filled in from the datasets with actions, if they say it"
    )
    actions_from: Literal["first", "all"] = Field(
        "first",
        description="whose actions the run takes when data.action is open: the first dataset's, or every part of any, "
        "each masked where a dataset lacks it",
    )
    action_dim: int = Field(10, gt=0, description="numbers of an action; data.action, where there is one, decides it")
    embodiments: tuple[Embodiment, ...] = Field(
        (), description="the robots, in the order of their ids, which start at 1; filled in when the run starts"
    )
    robot_embedding: bool = Field(
        False, description="tell the network by a learned vector which robot acts; published: no"
    )
    states: tuple[AnyState, ...] = Field(
        (), description="fields of the robot's state that are observed beside the images, as name or name:numbers"
    )
    language: LanguageConfig = LanguageConfig()
    missing_views: Literal["none", "same", "random"] = Field(
        "none",
        description="a camera that a sample lacks stays a masked hole, or shows the first one that it has, or any",
    )
    obs_frames: int = Field(2, gt=0)
    action_horizon: int = Field(16, gt=0, description="length of an action chunk, in steps")
    next_frames: int = Field(2, gt=0)
    next_start: int = Field(
        15, ge=0, description="first next-observation frame, in steps after the current one; published: 16"
    )
    resize: Size = Field((180, 320), description="height, width that a frame is brought to in the loader")
    crop: Size = Field(
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
    workers: Changeable[int] = Field(0, ge=0, description="loader processes; 0 reads in the training process")
    prefetch: Changeable[int] = Field(4, gt=0, description="batches that each loader process reads ahead")

    @model_validator(mode="before")
    @classmethod
    def _space_counts(cls, values: object) -> object:
        """The declared space says how many numbers an action has."""
        if not isinstance(values, Mapping) or values.get("action") is None:
            return values
        space = _read_space(values["action"])
        return {**values, "action": space, "action_dim": space.dim} if isinstance(space, Space) else values

    @model_validator(mode="after")
    def _robots_differ(self) -> Self:
        if len(set(self.robots)) < len(self.robots):
            raise ValueError("two embodiments have the same name")
        return self

    @model_validator(mode="after")
    def _crop_fits(self) -> Self:
        if self.crop[0] > self.resize[0] or self.crop[1] > self.resize[1]:
            raise ValueError(f"crop {self.crop} is larger than resize {self.resize}")
        return self

    @model_validator(mode="after")
    def _states_differ(self) -> Self:
        names = [state.name for state in self.states]
        if len(set(names)) != len(names):
            raise ValueError(f"two states have the same name: {', '.join(names)}")
        return self

    @property
    def state_dim(self) -> int:
        """D, the numbers of all states together."""
        return sum(state.dim for state in self.states)

    @property
    def robots(self) -> tuple[str, ...]:
        """Names of the embodiments; the id of the first one is 1, for 0 is none."""
        return tuple(embodiment.name for embodiment in self.embodiments)

    @property
    def segment_spec(self) -> SegmentSpec:
        """Which steps around the current one a sample reads, and from which cameras."""
        return SegmentSpec(
            cameras=self.cameras,
            obs_frames=self.obs_frames,
            action_horizon=self.action_horizon,
            next_frames=self.next_frames,
            next_start=self.next_start,
        )


class TokenizerConfig(Settings):
    """What turns next-observation images into latents."""

    kind: Literal["autoencoder", "sdxl", "identity"] = "autoencoder"
    path: Changeable[str] = Field(
        "", description="autoencoder: checkpoint directory; sdxl: hub id or local path of the diffusers VAE"
    )
    latent_scale: float = Field(
        1.0, gt=0, description="sdxl: what its latents are divided by after the VAE's own factor; published: 3"
    )


class AutoencoderConfig(Settings):
    """The small autoencoder that the project trains on ingested frames."""

    channels: int = Field(4, gt=0, description="latent channels")
    downsample: int = Field(8, ge=2, description="image pixels per latent pixel along each axis, a power of two")
    width: int = Field(32, gt=0, description="feature channels at half resolution, doubled at every further halving")
    depth: int = Field(2, gt=0, description="residual blocks at each resolution")

    @model_validator(mode="after")
    def _halves(self) -> Self:
        if self.downsample.bit_count() != 1:
            raise ValueError(f"downsample {self.downsample} is not 2, 4, 8 or a higher power of two")
        return self


class DiffusionConfig(Settings):
    """Noise schedule, what the network predicts, and how it is sampled."""

    train_timesteps: int = Field(100, gt=1)
    sample_steps: int = Field(10, gt=0, description="at most train_timesteps")
    beta_schedule: Literal["squaredcos_cap_v2"] = "squaredcos_cap_v2"
    prediction: Literal["epsilon", "sample", "v"] = Field(
        "epsilon", description="the network predicts the noise (published), the clean sample, or v (arXiv 2202.00512)"
    )
    spacing: Literal["trailing", "leading"] = Field(
        "trailing", description="sampling timesteps 99..9, or the published 90..0"
    )
    sampler: Literal["ddim", "dpmsolver++"] = Field(
        "ddim", description="dpmsolver++ (arXiv 2211.01095, by diffusers) gets by with fewer sample_steps"
    )
    clip_action: float | None = Field(1.0, gt=0, description="bound of the predicted clean action")

    @property
    def sampling_timesteps(self) -> tuple[int, ...]:
        """Timesteps of the sampling loop, falling: 99, 89 .. 9 ("trailing") or the published 90, 80 .. 0 ("leading").

        Lin et al. 2024 (arXiv 2305.08891) show why sampling must start where training's noise ends.
        """
        steps, total = self.sample_steps, self.train_timesteps
        if self.spacing == "leading":
            return tuple(i * (total // steps) for i in reversed(range(steps)))
        return tuple(round(total - i * total / steps) - 1 for i in range(steps))

    @property
    def absent_timestep(self) -> int:
        """The timestep that marks a modality as absent when sampling."""
        return self.train_timesteps - 1

    @property
    def clean_timestep(self) -> int:
        """The timestep that marks a modality as clean."""
        return 0

    @model_validator(mode="after")
    def _steps_lie_in_schedule(self) -> Self:
        if self.sample_steps > self.train_timesteps:
            raise ValueError(f"sample_steps {self.sample_steps} is above train_timesteps {self.train_timesteps}")
        return self


class PolicyConfig(Settings):
    """Settings of one kind of policy: the base of them all.

    A policy is a subclass that holds the settings it uses and no others, and `@register_policy`. Its network may lie
    in the same file; those of this project lie apart, so that settings are read without torch.
    """

    kind: str = ""
    about: ClassVar[str] = ""
    """What the policy is, for the model card."""
    tags: ClassVar[tuple[str, ...]] = ()
    """Hub tags of the model card."""
    network: ClassVar[str]
    """`module:Class` of the `Policy`, which takes these settings and the run's `DataConfig`."""
    reads_next_obs: ClassVar[bool] = True
    """Whether the network looks at the next observation; if not, its images are never decoded."""
    tokenizer: TokenizerConfig | None = None
    diffusion: DiffusionConfig | None = None

    @property
    def size(self) -> str:
        """The network's size in a few words, for the model card."""
        return ""

    def build(self, data: DataConfig) -> "Policy":
        """The untrained network. Raises UserError when sizes don't divide or the tokenizer can't be loaded."""
        policy: Policy = EntryPoint(name=self.kind, value=self.network, group=POLICY_GROUP).load()(self, data)
        return policy


def _read_policy(value: object) -> object:
    if not isinstance(value, Mapping):
        return value
    try:
        return policy_settings(str(value.get("kind"))).model_validate(value)
    except UserError as error:
        raise ValueError(str(error)) from error


AnyPolicy = Annotated[SerializeAsAny[PolicyConfig], BeforeValidator(_read_policy)]
"""The settings of any policy, told apart by `kind`."""


InitChange = Literal[
    "normalizer",
    "data.cameras",
    "data.states",
    "data.language.identity",
    "data.action",
    "data.next_start",
    "policy.diffusion.beta_schedule",
    "policy.diffusion.train_timesteps",
    "policy.diffusion.prediction",
    "policy.diffusion.latent_target",
    "policy.diffusion.absent_embedding",
]
"""What weights mean beside their shapes: a run that starts from others' has the same, or declares that it has not."""


class RunConfig(Settings):
    """One training run. `stage` says what is trained; every stage goes through the same trainer."""

    name: RunName = Field(description="the run's and its checkpoints' name")
    stage: Literal["tokenizer", "pretrain", "finetune"] = "pretrain"
    policy: AnyPolicy = Field(
        default_factory=lambda: policy_settings("uwm")(), description="what is trained, by `kind`, and its settings"
    )
    data: DataConfig = DataConfig()
    autoencoder: AutoencoderConfig = AutoencoderConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    init_from: Changeable[str] = Field(
        "", description="checkpoint directory whose weights and normalizers the run starts from"
    )
    init_changes: tuple[InitChange, ...] = Field(
        (), description="settings that may differ from those of init_from; normalizer fits one to the run's own data"
    )
    output: Changeable[str] = Field("", description="folder of the run; empty is runs/<name>")

    @model_validator(mode="before")
    @classmethod
    def _of_today(cls, values: object) -> object:
        return upgraded(values) if isinstance(values, Mapping) else values

    @model_validator(mode="after")
    def _finetune_starts_somewhere(self) -> Self:
        if self.stage == "tokenizer" and self.init_from:
            raise ValueError("a tokenizer run starts from scratch: init_from must be empty")
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

    def check_warmup(self) -> None:
        """Raise UserError when the run ends before its warm-up; no check of the settings, for such runs exist."""
        if self.optim.warmup_steps > self.train.steps:
            raise UserError(
                f"the warm-up of {self.optim.warmup_steps} steps (optim.warmup_steps) is longer than the run of "
                f"{self.train.steps} (train.steps)"
            )

    @property
    def reads_next_obs(self) -> bool:
        """Whether what is trained looks at the images of the next observation."""
        return self.stage == "tokenizer" or self.policy.reads_next_obs

    @property
    def folder(self) -> str:
        """Where checkpoints and logs of the run lie."""
        return self.output or f"runs/{self.name}"
