"""From a published file to a checkpoint that every command of this house opens."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError
from torch import Tensor

from storage_schemas.errors import UserError, first_problem
from storage_schemas.local_files import sync_folder
from uwm.checkpoint import CheckpointState, Origin, TensorKind, latest_checkpoint, save_checkpoint, sha256_file
from uwm.config import RunConfig
from uwm.language.encoder import weights_identity
from uwm.overrides import apply_overrides, as_kind
from uwm.policies import build
from uwm.recipes import get_recipe
from uwm.reference.normalizers import action_normalizer, state_ranges
from uwm.reference.pickle_check import Refused
from uwm.reference.published import ASSUMED, Published, ordered, sizes, take_apart
from uwm.reference.torchfile import read_torch_file
from uwm.train.resume import fixed_settings
from uwm.train.setup import code_revision

_FIRST_BLOCK = re.compile(r"encoder\.down_blocks\.0\.resnets\.\d+\.conv1\.weight")
TOKENIZER_FOLDER = "tokenizer"
SDXL_SCALING = 0.13025
"""The factor of the SDXL VAE's latents, which no weight tells (Podell et al. 2023, arXiv 2307.01952)."""


@dataclass(frozen=True, kw_only=True)
class Imported:
    """The checkpoint that an import made, and what it assumed."""

    path: str
    """Folder of the checkpoint."""
    policy: str
    step: int
    parameters: int
    source: str
    sha256: str
    assumed: Mapping[str, object]
    """Settings that the file does not tell, and what was taken for them."""


def import_reference(file: str | Path, out: str | Path, overrides: Sequence[str] = ()) -> Imported:
    """Turn a published UWM, PAD or DP checkpoint into a checkpoint directory, without running anything in it.

    The file's frozen VAE, when it has one, becomes the run's tokenizer in `<out>/tokenizer`.

    Args:
        file: what `torch.save` wrote.
        out: folder of the run that the checkpoint becomes; must hold no checkpoint.
        overrides: `key=value` pairs for what the weights do not tell, see `ASSUMED`.

    Raises:
        UserError: when the file is hostile, damaged, of no published network, or does not fit the settings.
    """
    source, folder = Path(file).absolute(), Path(out).absolute()
    if latest_checkpoint(folder):
        raise UserError(f"{folder} already holds checkpoints: remove them, or name another folder")
    base = apply_overrides(get_recipe("uwm_paper"), overrides)
    root = read_torch_file(source)
    try:
        published = take_apart(root)
        config = _configure(published, base, source, folder)
        weights = {kind: _read(published, config, stored) for kind, stored in _stored(published).items()}
        tokenizer = config.policy.tokenizer
        if published.vae and tokenizer and tokenizer.path == str(folder / TOKENIZER_FOLDER):
            write_vae(published.vae, folder / TOKENIZER_FOLDER)
        data = config.data
        states = state_ranges(published.state_normalizer, data.states) if data.states else ()
        normalizer = action_normalizer(published.action_normalizer, data.action_dim, str(source), states)
    except Refused as error:
        raise UserError(f"{source} is refused, nothing was run: it holds {error}") from error
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    digest = sha256_file(source)
    fingerprint = _check(config, weights, source)
    path = save_checkpoint(
        folder,
        config=config,
        normalizer=normalizer,
        state=_state(config, published.step, Origin(path=str(source), identity=digest), fingerprint),
        tensors=weights,
        keep=1,
    )
    settings = fixed_settings(config)
    return Imported(
        path=str(path),
        policy=published.layout.policy,
        step=published.step,
        parameters=sum(value.numel() for value in weights["model"].values()),
        source=str(source),
        sha256=digest,
        assumed={name: settings[name] for name in ASSUMED if name in settings},
    )


def _state(config: RunConfig, step: int, source: Origin, tokenizer: str) -> CheckpointState:
    """The state of a checkpoint that was trained elsewhere."""
    return CheckpointState(
        name=config.name,
        stage=config.stage,
        step=step,
        position=0,
        seed=config.train.seed,
        datasets=(),
        source=source,
        tokenizer=tokenizer,
        code_revision=code_revision(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _configure(published: Published, base: RunConfig, source: Path, folder: Path) -> RunConfig:
    """The run that the weights belong to."""
    values: dict[str, Any] = base.model_dump(mode="json")
    values["policy"] = as_kind(values["policy"], published.layout.policy)
    for name, value in sizes(published, base).items():
        *path, last = name.split(".")
        here = values
        for key in path:
            here = here[key]
        here[last] = value
    if published.clip and values["data"]["language"]["kind"] == "clip":
        values["data"]["language"]["identity"] = weights_identity("clip", published.clip.items())
    crop, resize = values["data"]["crop"], values["data"]["resize"]
    values["data"]["resize"] = [max(pair) for pair in zip(crop, resize, strict=True)]
    values["data"]["datasets"] = []
    if base.name == get_recipe("uwm_paper").name:
        values["name"] = folder.name
    tokenizer = values["policy"]["tokenizer"]
    if published.vae and tokenizer and base.policy.tokenizer == get_recipe("uwm_paper").policy.tokenizer:
        tokenizer |= {"path": str(folder / TOKENIZER_FOLDER), "latent_scale": _latent_scale(published.vae)}
    values["output"] = str(folder)
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise UserError(": ".join(first_problem(error))) from error


def _latent_scale(vae: Mapping[str, Tensor]) -> float:
    """What the published code divides the VAE's latents by."""
    shift, scale = (vae[name].flatten() if name in vae else None for name in ("shift", "scale"))
    if shift is not None and bool(shift.any()):
        raise UserError("its latents are shifted, which this tokenizer does not do")
    if scale is None:
        return 1.0
    if not bool((scale == scale[0]).all()) or not bool(scale[0] > 0):
        raise UserError("its latents are scaled by channel, which this tokenizer does not do")
    return float(scale[0])


def _stored(published: Published) -> dict[TensorKind, dict[str, Tensor]]:
    weights: dict[TensorKind, dict[str, Tensor]] = {"model": published.weights}
    return weights | {"ema": published.ema} if published.ema else weights


def _read(published: Published, config: RunConfig, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights in float32, all of them numbers."""
    read = {name: value.float() for name, value in stored.items()}
    broken = [name for name, value in read.items() if not bool(value.isfinite().all())]
    if broken:
        raise UserError(f"weights that are not finite: {', '.join(broken[:3])}")
    if "condition.head.bias" in read:  # it was never without an instruction: then its features are zero
        read["condition.absent"] = read["condition.head.bias"].clone()
    return ordered(published.layout, read, config)


def _check(config: RunConfig, weights: Mapping[TensorKind, Mapping[str, Tensor]], source: Path) -> str:
    """That the network takes the weights; returns its tokenizer's fingerprint."""
    model = build(config)
    expected = model.state_dict()
    for named in weights.values():
        wrong = sorted({*named} ^ {*expected})
        wrong += [
            f"{name} {tuple(named[name].shape)} instead of {tuple(expected[name].shape)}"
            for name in sorted({*named} & {*expected})
            if named[name].shape != expected[name].shape
        ]
        if wrong:
            raise UserError(f"{source}: {len(wrong)} weights don't fit the network: {'; '.join(wrong[:3])}")
    return model.tokenizer_fingerprint


def write_vae(weights: Mapping[str, Tensor], folder: Path) -> None:
    """Write a published checkpoint's frozen VAE as diffusers keep theirs, in safetensors.

    Args:
        weights: by name, with the prefix `vae.`.
        folder: to write; replaced whole when it exists.

    Raises:
        UserError: when the weights are no `AutoencoderKL`.
    """
    from diffusers import AutoencoderKL

    state = {name.removeprefix("vae."): value for name, value in weights.items() if name.startswith("vae.")}
    try:
        widths = _block_widths(state)
        vae: Any = cast(Any, AutoencoderKL)(
            block_out_channels=widths,
            down_block_types=("DownEncoderBlock2D",) * len(widths),
            up_block_types=("UpDecoderBlock2D",) * len(widths),
            layers_per_block=sum(_FIRST_BLOCK.fullmatch(name) is not None for name in state),
            latent_channels=state["decoder.conv_in.weight"].shape[1],
            scaling_factor=SDXL_SCALING,
        )
        vae.load_state_dict(state)
    except (KeyError, IndexError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"its VAE is no AutoencoderKL of the SDXL kind: {reason}") from error
    folder.mkdir(parents=True, exist_ok=True)
    vae.save_pretrained(folder, safe_serialization=True)
    sync_folder(folder)


def _block_widths(state: Mapping[str, Tensor]) -> tuple[int, ...]:
    count = 1 + max(int(name.split(".")[2]) for name in state if name.startswith("encoder.down_blocks."))
    return tuple(state[f"encoder.down_blocks.{index}.resnets.0.conv2.weight"].shape[0] for index in range(count))
