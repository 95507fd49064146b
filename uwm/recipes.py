"""Named runs: a recipe is a function that returns a `RunConfig`; variants derive with `replace`.

On the command line `field.subfield=value` pairs change single settings of a recipe, and
`data.datasets.0.uri=...` names the data.
"""

from collections.abc import Callable
from typing import Annotated

from pydantic import Field

from storage_schemas.errors import UserError
from uwm.conditions import LanguageConfig
from uwm.config import (
    AutoencoderConfig,
    DataConfig,
    DatasetRef,
    RunConfig,
    TokenizerConfig,
)
from uwm.overrides import as_kind
from uwm.policies import (
    DpConfig,
    DpUnetConfig,
    Gr1Config,
    Gr1DecoderConfig,
    Gr1EncoderConfig,
    ObsEncoderConfig,
    PadConfig,
    UwmConfig,
    UwmDiffusionConfig,
)
from uwm.registry import nearest
from uwm.settings import replace
from uwm.training_config import OptimConfig, TrainConfig

Recipe = Callable[[], RunConfig]
RECIPES: dict[str, Recipe] = {}

SDXL_VAE = "madebyollin/sdxl-vae-fp16-fix"
_SDXL = TokenizerConfig(kind="sdxl", path=SDXL_VAE)


def recipe(function: Recipe) -> Recipe:
    """Register a recipe under its function's name."""
    RECIPES[function.__name__] = function
    return function


@recipe
def uwm() -> RunConfig:
    """DROID at published scale, with the known defects corrected (docs/decisions names each)."""
    return RunConfig(
        name="uwm",
        policy=UwmConfig(tokenizer=_SDXL),
        data=DataConfig(datasets=(DatasetRef(uri="data/droid"),), workers=8),
    )


@recipe
def uwm_paper() -> RunConfig:
    """The published DROID settings (Zhu et al. 2025): 100k steps of 36 samples on each of 4 GPUs."""
    base = uwm()
    return replace(
        base,
        name="uwm-paper",
        policy=UwmConfig(tokenizer=replace(_SDXL, latent_scale=3.0), diffusion=UwmDiffusionConfig.published()),
        data=replace(
            base.data,
            resize=(240, 320),
            crop=(224, 224),
            fit="stretch",
            augmentation="batch",
            next_start=16,
            normalizer_split="all",
        ),
        optim=OptimConfig(schedule="constant", warmup_steps=0, ema_decay=0, implementation="foreach"),
        train=replace(base.train, matmul="fp32", sync="step"),
    )


@recipe
def uwm_told() -> RunConfig:
    """`uwm` that feels DROID's joints and gripper and hears its instructions."""
    base = uwm()
    states = ("observation/joint_position", "observation/gripper_position")
    language = LanguageConfig(kind="minilm", dropout=0.1)
    return replace(base, name="uwm-told", data=replace(base.data, states=states, language=language))


@recipe
def uwm_finetune() -> RunConfig:
    """A pretrained `uwm` on one task; `init_from` names the checkpoint."""
    return _finetuned(uwm())


@recipe
def uwm_cotrain() -> RunConfig:
    """`uwm` on robot episodes and action-free video in equal shares."""
    return _cotrained(uwm())


@recipe
def pad() -> RunConfig:
    """PAD (Guo et al. 2024) at the scale of `uwm`, on the same latents."""
    return replace(uwm(), name="pad", policy=PadConfig(tokenizer=_SDXL))


@recipe
def pad_cotrain() -> RunConfig:
    """`pad` on robot episodes and action-free video, whose actions it pads and masks."""
    return _cotrained(pad())


@recipe
def pad_finetune() -> RunConfig:
    """A pretrained `pad` on one task; `init_from` names the checkpoint."""
    return _finetuned(pad())


@recipe
def dp() -> RunConfig:
    """Diffusion Policy (Chi et al. 2023) as a transformer at the scale of `uwm`; robot episodes only."""
    return replace(uwm(), name="dp", policy=DpConfig(timestep_embed_dim=256))


@recipe
def dp_finetune() -> RunConfig:
    """A pretrained `dp` on one task; `init_from` names the checkpoint."""
    return _finetuned(dp())


@recipe
def dp_unet() -> RunConfig:
    """Diffusion Policy as its 1-D U-Net."""
    return replace(uwm(), name="dp-unet", policy=DpUnetConfig(timestep_embed_dim=256))


@recipe
def dp_unet_finetune() -> RunConfig:
    """A pretrained `dp_unet` on one task; `init_from` names the checkpoint."""
    return _finetuned(dp_unet())


@recipe
def gr1() -> RunConfig:
    """GR-1 (Wu et al. 2023) without language at the scale of `uwm`: ViT-B/32, pixels, no diffusion."""
    return replace(uwm(), name="gr1", policy=Gr1Config())


@recipe
def gr1_cotrain() -> RunConfig:
    """`gr1` on robot episodes and action-free video, whose action queries it masks."""
    return _cotrained(gr1())


@recipe
def gr1_finetune() -> RunConfig:
    """A pretrained `gr1` on one task; `init_from` names the checkpoint."""
    return _finetuned(gr1())


def _cotrained(base: RunConfig) -> RunConfig:
    datasets = (*base.data.datasets, DatasetRef(uri="data/video"))
    return replace(base, name=f"{base.name}-cotrain", data=replace(base.data, datasets=datasets))


def _finetuned(base: RunConfig) -> RunConfig:
    return replace(
        base,
        name=f"{base.name}-finetune",
        stage="finetune",
        optim=replace(base.optim, warmup_steps=500),
        train=replace(base.train, steps=10_000),
    )


@recipe
def debug() -> RunConfig:
    """Four tiny steps on the CPU with pixels for latents: proves the plumbing in seconds."""
    return RunConfig(
        name="debug",
        policy=UwmConfig(
            embed_dim=32,
            timestep_embed_dim=32,
            depth=2,
            num_heads=2,
            num_registers=2,
            patch=(2, 8, 8),
            obs_encoder=ObsEncoderConfig(kind="small", embed_dim=16),
            tokenizer=TokenizerConfig(kind="identity"),
        ),
        data=DataConfig(datasets=(DatasetRef(uri="data/droid"),), resize=(36, 64), crop=(32, 56)),
        optim=OptimConfig(lr=1e-3, schedule="constant", warmup_steps=1, ema_decay=0.9),
        train=TrainConfig(steps=4, batch_size=4, device="cpu", log_every=1, save_every=2, track=()),
    )


@recipe
def debug_pad() -> RunConfig:
    """`debug` for PAD."""
    return with_policy(debug(), "pad", name="debug-pad")


@recipe
def debug_dp() -> RunConfig:
    """`debug` for Diffusion Policy as a transformer."""
    return with_policy(debug(), "dp", name="debug-dp")


@recipe
def debug_dp_unet() -> RunConfig:
    """`debug` for Diffusion Policy as a small U-Net."""
    return with_policy(debug(), "dp_unet", name="debug-dp-unet", widths=(16, 32))


@recipe
def debug_gr1() -> RunConfig:
    """`debug` for GR-1, which needs a vision transformer."""
    encoder = Gr1EncoderConfig(
        kind="vit_small", resampler_latents=2, resampler_depth=1, resampler_heads=2, resampler_head_dim=16
    )
    decoder = Gr1DecoderConfig(patch=8, depth=1, heads=2)
    return with_policy(debug(), "gr1", name="debug-gr1", obs_encoder=encoder, decoder=decoder)


def with_policy(config: RunConfig, kind: str, *, name: str, **settings: object) -> RunConfig:
    """A run with another kind of policy, which keeps the settings that both kinds have."""
    shared = as_kind(config.policy.model_dump(mode="json"), kind)
    return replace(config, name=name, policy=shared | settings)


def _demo() -> RunConfig:
    """What the demo's three runs share: 64x112 images and a network for minutes on two CPU cores.

    Three settings differ from the published method, for a few thousand samples don't carry it
    (docs/decisions/0004): the network sees the current latents and predicts their clean change.
    """
    return RunConfig(
        name="demo",
        policy=UwmConfig(
            embed_dim=128,
            timestep_embed_dim=128,
            depth=4,
            num_heads=4,
            num_registers=4,
            patch=(2, 4, 4),
            obs_encoder=ObsEncoderConfig(kind="small", embed_dim=64),
            current_latents=True,
            diffusion=UwmDiffusionConfig(prediction="sample", latent_target="change", sample_steps=2),
        ),
        data=DataConfig(datasets=(DatasetRef(uri="runs/demo/droid"),), resize=(72, 128), crop=(64, 112)),
        autoencoder=AutoencoderConfig(channels=4, downsample=4, width=16, depth=1),
        optim=OptimConfig(lr=1e-3, warmup_steps=30, weight_decay=0.01, ema_decay=0.99),
        train=TrainConfig(steps=500, batch_size=12, device="cpu", log_every=25, save_every=100, keep=1),
    )


@recipe
def demo_tokenizer() -> RunConfig:
    """The demo's autoencoder, trained on the ingested frames."""
    base = _demo()
    return replace(
        base,
        name="demo-tokenizer",
        stage="tokenizer",
        optim=OptimConfig(lr=3e-3, warmup_steps=40, ema_decay=0),
        train=replace(base.train, steps=400, batch_size=2),
        output="runs/demo/tokenizer",
    )


@recipe
def demo_pretrain() -> RunConfig:
    """The demo's co-training on robot episodes and action-free video."""
    base = _demo()
    datasets = (DatasetRef(uri="runs/demo/droid", weight=4.0), DatasetRef(uri="runs/demo/video"))
    return replace(
        base,
        name="demo-pretrain",
        policy=replace(base.policy, tokenizer=TokenizerConfig(path="runs/demo/tokenizer")),
        data=replace(base.data, datasets=datasets),
        output="runs/demo/pretrain",
    )


@recipe
def demo_finetune() -> RunConfig:
    """The demo's finetuning on one collection, gently; it takes the tokenizer of its parent."""
    base = _demo()
    return replace(
        base,
        name="demo-finetune",
        stage="finetune",
        data=replace(base.data, datasets=(DatasetRef(uri="runs/demo/droid", collections=("ILIAD",)),)),
        init_from="runs/demo/pretrain",
        optim=replace(base.optim, lr=2e-5, warmup_steps=10, ema_decay=0.98),
        train=replace(base.train, steps=60),
        output="runs/demo/finetune",
    )


RecipeName = Annotated[str, Field(json_schema_extra={"enum": list(RECIPES)})]
"""A recipe, which a form offers in a list; a wrong name is refused by `get_recipe`, which suggests the nearest."""


def get_recipe(name: str) -> RunConfig:
    """The configuration of a named recipe; dashes and underscores are one.

    Raises:
        UserError: when there is no such recipe; it suggests the nearest.
    """
    function = RECIPES.get(name.replace("-", "_"))
    if not function:
        raise UserError(f"unknown recipe {name!r}{nearest(name, RECIPES)}; there are {', '.join(RECIPES)}")
    return function()
