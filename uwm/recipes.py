"""Named runs: a recipe is a function that returns a `RunConfig`; variants derive with `replace`.

On the command line `field.subfield=value` pairs change single settings of a recipe, and
`data.datasets.0.uri=...` names the data.
"""

import difflib
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated

from pydantic import Field, ValidationError

from storage_schemas.errors import UserError
from uwm.config import (
    AutoencoderConfig,
    DataConfig,
    DatasetRef,
    DiffusionConfig,
    Gr1Config,
    ModelConfig,
    ObsEncoderConfig,
    OptimConfig,
    RunConfig,
    TokenizerConfig,
    TrainConfig,
    UnetConfig,
    replace,
)

Recipe = Callable[[], RunConfig]
RECIPES: dict[str, Recipe] = {}

SDXL_VAE = "madebyollin/sdxl-vae-fp16-fix"


def recipe(function: Recipe) -> Recipe:
    """Register a recipe under its function's name."""
    RECIPES[function.__name__] = function
    return function


@recipe
def uwm() -> RunConfig:
    """DROID at published scale, with the known defects corrected (docs/decisions names each)."""
    return RunConfig(
        name="uwm",
        data=DataConfig(datasets=(DatasetRef(uri="data/droid"),), workers=8),
        tokenizer=TokenizerConfig(kind="sdxl", path=SDXL_VAE),
    )


@recipe
def uwm_paper() -> RunConfig:
    """The published DROID settings (Zhu et al. 2025): 100k steps of 36 samples on each of 4 GPUs."""
    base = uwm()
    return replace(
        base,
        name="uwm-paper",
        data=replace(
            base.data,
            resize=(240, 320),
            crop=(224, 224),
            fit="stretch",
            augmentation="batch",
            next_start=16,
            normalizer_split="all",
        ),
        tokenizer=replace(base.tokenizer, latent_scale=3.0),
        diffusion=DiffusionConfig.published(),
        optim=OptimConfig(schedule="constant", warmup_steps=0, ema_decay=0, implementation="foreach"),
        train=replace(base.train, matmul="fp32", sync="step"),
    )


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
    return replace(uwm(), name="pad", policy="pad")


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
    base = uwm()
    return replace(
        base,
        name="dp",
        policy="dp",
        model=replace(base.model, timestep_embed_dim=256),
        tokenizer=TokenizerConfig(kind="identity"),
    )


@recipe
def dp_finetune() -> RunConfig:
    """A pretrained `dp` on one task; `init_from` names the checkpoint."""
    return _finetuned(dp())


@recipe
def dp_unet() -> RunConfig:
    """Diffusion Policy as its 1-D U-Net."""
    return replace(dp(), name="dp-unet", policy="dp_unet")


@recipe
def dp_unet_finetune() -> RunConfig:
    """A pretrained `dp_unet` on one task; `init_from` names the checkpoint."""
    return _finetuned(dp_unet())


@recipe
def gr1() -> RunConfig:
    """GR-1 (Wu et al. 2023) without language at the scale of `uwm`: ViT-B/32, pixels, no diffusion."""
    base = uwm()
    return replace(
        base,
        name="gr1",
        policy="gr1",
        model=replace(base.model, obs_encoder=ObsEncoderConfig(kind="vit_b_32")),
        tokenizer=TokenizerConfig(kind="identity"),
    )


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
    """Four tiny steps on the CPU with pixels for latents: proves the plumbing in seconds, of any `policy=`."""
    return RunConfig(
        name="debug",
        data=DataConfig(datasets=(DatasetRef(uri="data/droid"),), resize=(36, 64), crop=(32, 56)),
        model=ModelConfig(
            embed_dim=32,
            timestep_embed_dim=32,
            depth=2,
            num_heads=2,
            num_registers=2,
            patch=(2, 8, 8),
            obs_encoder=ObsEncoderConfig(kind="small", embed_dim=16),
            unet=UnetConfig(widths=(16, 32)),
            gr1=Gr1Config(
                resampler_latents=2,
                resampler_depth=1,
                resampler_heads=2,
                resampler_head_dim=16,
                patch=8,
                decoder_depth=1,
                decoder_heads=2,
            ),
        ),
        tokenizer=TokenizerConfig(kind="identity"),
        optim=OptimConfig(lr=1e-3, schedule="constant", warmup_steps=2, ema_decay=0.9),
        train=TrainConfig(steps=4, batch_size=4, device="cpu", log_every=1, save_every=2, track=()),
    )


@recipe
def debug_gr1() -> RunConfig:
    """`debug` for GR-1, which needs a vision transformer."""
    base = debug()
    encoder = ObsEncoderConfig(kind="vit_small", embed_dim=16)
    return replace(base, name="debug-gr1", policy="gr1", model=replace(base.model, obs_encoder=encoder))


def _demo() -> RunConfig:
    """What the demo's three runs share: 64x112 images and a network for minutes on two CPU cores.

    Three settings differ from the published method, for a few thousand samples don't carry it
    (docs/decisions/0004): the network sees the current latents and predicts their clean change.
    """
    return RunConfig(
        name="demo",
        data=DataConfig(datasets=(DatasetRef(uri="runs/demo/droid"),), resize=(72, 128), crop=(64, 112)),
        model=ModelConfig(
            embed_dim=128,
            timestep_embed_dim=128,
            depth=4,
            num_heads=4,
            num_registers=4,
            patch=(2, 4, 4),
            obs_encoder=ObsEncoderConfig(kind="small", embed_dim=64),
            current_latents=True,
        ),
        autoencoder=AutoencoderConfig(channels=4, downsample=4, width=16, depth=1),
        diffusion=DiffusionConfig(prediction="sample", latent_target="change", sample_steps=2),
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
        data=replace(base.data, datasets=datasets),
        tokenizer=TokenizerConfig(path="runs/demo/tokenizer"),
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
    found = RECIPES.get(name.replace("-", "_"))
    if not found:
        raise UserError(f"unknown recipe {name!r}{_nearest(name, RECIPES)}; there are {', '.join(RECIPES)}")
    return found()


def apply_overrides(config: RunConfig, pairs: Sequence[str]) -> RunConfig:
    """A checked copy of `config` with settings changed by `dotted.name=value` pairs.

    Lists take commas or JSON (`data.crop=64,112`), `null` clears an optional setting, and the number
    after the last list entry appends one (`data.datasets.1.uri=...`).

    Raises:
        UserError: when a name is unknown (it suggests the nearest) or a value does not fit.
    """
    values: dict[str, object] = config.model_dump(mode="json")
    for pair in pairs:
        name, found, text = pair.partition("=")
        if not found:
            raise UserError(f"{pair!r} is no setting: write name=value, for example train.steps=100")
        _put(values, name, text)
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        reason = first["msg"].removeprefix("Value error, ")
        nearest = _nearest_field(config, name) if first["type"] == "extra_forbidden" else ""
        raise UserError(f"{name}: {reason}{nearest}" if name else reason) from error


def _put(values: dict[str, object], name: str, text: str) -> None:
    """Set one entry of nested dicts and lists."""
    *path, last = name.split(".")
    here: object = values
    for depth, key in enumerate(path):
        here = _child(here, key, ".".join(path[: depth + 1]))
    if isinstance(here, list):
        index = _index(here, last, name)
        here[index : index + 1] = [_parse(text, None)]
    elif isinstance(here, dict):
        here[last] = _parse(text, here.get(last))
    else:
        raise UserError(f"{name}: {'.'.join(path)} has no parts")


def _child(here: object, key: str, name: str) -> object:
    if isinstance(here, list):
        index = _index(here, key, name)
        if index == len(here):
            here.append({})
        return here[index]
    if isinstance(here, dict):
        if key not in here:
            raise UserError(f"there is no setting {name}{_nearest(key, here)}")
        return here[key]
    raise UserError(f"there is no setting {name}")


def _index(here: Sequence[object], key: str, name: str) -> int:
    if not key.isdecimal() or int(key) > len(here):
        raise UserError(f"{name}: {key!r} is no place in a list of {len(here)}: use 0 to {len(here)}")
    return int(key)


def _parse(text: str, current: object) -> object:
    """Text to what pydantic checks and converts; only lists and null need help."""
    if text == "null":
        return None
    if text.startswith(("[", "{")):
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            raise UserError(f"{text!r} is no JSON: {error.msg}") from error
    if isinstance(current, list):
        return [item.strip() for item in text.split(",")] if text else []
    return text


def _nearest(name: str, names: Iterable[str]) -> str:
    found = difflib.get_close_matches(name, list(names), n=1, cutoff=0.4)
    return f": did you mean {found[0]!r}?" if found else ""


def _nearest_field(config: RunConfig, name: str) -> str:
    values: object = config.model_dump(mode="json")
    *path, last = name.split(".")
    for key in path:
        values = values[int(key)] if isinstance(values, list) else values.get(key) if isinstance(values, dict) else None
    return _nearest(last, values) if isinstance(values, dict) else ""
