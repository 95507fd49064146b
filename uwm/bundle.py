"""Inference bundles: all that a policy needs to act, in one folder that can be handed on.

<bundle>/
  model.safetensors   the averaged weights when there are some; no optimizer
  tokenizer/          the latent tokenizer, unless it lies on a public hub under the name in config.json
  config.json         the run's configuration
  normalizer.json     bounds of the actions
  README.md           the model card
  manifest.json       where the bundle comes from, and the sha256 of every file but the card
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from storage_schemas.documents import read_document, write_document
from storage_schemas.errors import DamagedError, UserError
from storage_schemas.local_files import sync_folder
from storage_schemas.location import locate
from uwm.card import model_card
from uwm.checkpoint import Checkpoint, load_checkpoint, sha256_file
from uwm.config import RunConfig, TokenizerConfig
from uwm.data.normalize import ActionNormalizer
from uwm.device import DTYPES, Precision
from uwm.eval.files import load_evaluation
from uwm.model.tokenizer import load_vae
from uwm.policy import Policy
from uwm.settings import Config, replace

MANIFEST_FILE = "manifest.json"
CARD_FILE = "README.md"
TOKENIZER = "tokenizer"


class Manifest(Config):
    """What a bundle holds and where it comes from."""

    format: Literal[1] = 1
    name: str
    step: int = Field(ge=0)
    checkpoint: str = Field(description="digest of the checkpoint that it was made from")
    weights: Literal["ema", "raw"]
    dtype: Precision
    tokenizer: str = Field(description="fingerprint of the latent tokenizer")
    files: Mapping[str, str] = Field(description="sha256 of every file but the card and this one")
    digest: str = Field("", description="sha256 of all fields above")

    def sealed(self) -> "Manifest":
        """The manifest with its digest."""
        body = self.model_dump(mode="json", exclude={"digest"})
        digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
        return self.model_copy(update={"digest": digest})


class Bundle(NamedTuple):
    """A bundle whose files have been checked."""

    policy: Policy
    config: RunConfig
    normalizer: ActionNormalizer
    manifest: Manifest


def is_bundle(path: str | Path) -> bool:
    """Whether a folder is a bundle rather than a checkpoint."""
    return (Path(path) / MANIFEST_FILE).is_file()


def export(
    checkpoint: str | Path,
    out: str | Path,
    *,
    dtype: Precision = "fp32",
    licence: str = "",
    evaluations: Sequence[str] = (),
) -> Manifest:
    """Write the bundle of a checkpoint; complete or not at all.

    Args:
        checkpoint: a policy's checkpoint, or a run's folder for its latest one.
        out: folder of the bundle; must not exist.
        dtype: of the weights on disk; bf16 halves them.
        licence: SPDX name for the card; that of the data decides, so there is no default.
        evaluations: folders of evaluations, whose tables the card shows.

    Raises:
        UserError: when the checkpoint can't be opened, is a tokenizer, or `out` exists.
    """
    target = Path(out).absolute()
    if target.exists():
        raise UserError(f"{target} exists: name a new folder for the bundle")
    loaded = load_checkpoint(checkpoint)
    if loaded.config.stage == "tokenizer":
        raise UserError(f"{loaded.path} is a tokenizer: export the checkpoint of a policy")
    results = [load_evaluation(folder) for folder in evaluations]
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".tmp-{target.name}-{os.getpid()}")
    temporary.mkdir()
    try:
        tokenizer = _write_tokenizer(loaded, temporary)
        policy = replace(loaded.config.policy, tokenizer=tokenizer)
        config = replace(loaded.config, policy=policy, init_from="", output="")
        _write_weights(loaded, temporary, DTYPES[dtype])
        write_document(locate(temporary / "config.json"), config)
        write_document(locate(temporary / "normalizer.json"), loaded.normalizer)
        manifest = Manifest(
            name=loaded.state.name,
            step=loaded.state.step,
            checkpoint=loaded.identity,
            weights="ema" if loaded.has("ema") else "raw",
            dtype=dtype,
            tokenizer=loaded.state.tokenizer,
            files={
                _relative(path, temporary): sha256_file(path) for path in sorted(temporary.rglob("*")) if path.is_file()
            },
        ).sealed()
        (temporary / CARD_FILE).write_text(model_card(loaded, manifest.weights, results, licence=licence))
        write_document(locate(temporary / MANIFEST_FILE), manifest)
        _sync(temporary)
        temporary.rename(target)
    except BaseException:
        shutil.rmtree(temporary)
        raise
    sync_folder(target.parent)
    return manifest


def load_bundle(path: str | Path) -> Bundle:
    """Open and check a bundle; its policy is in evaluation mode, on the CPU, with float32 weights.

    Raises:
        UserError: when a file is missing, cut short, changed, or of another version; one line.
    """
    folder = Path(path).absolute()
    manifest = read_document(locate(folder / MANIFEST_FILE), Manifest, hint="name the folder of a bundle")
    if manifest != manifest.sealed():
        raise DamagedError(f"bundle {folder} is damaged: {MANIFEST_FILE} is not the file that was exported")
    for name, expected in manifest.files.items():
        file = folder / name
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or not file.is_file():
            raise DamagedError(f"bundle {folder} is damaged: {name} is missing")
        if sha256_file(file) != expected:
            raise DamagedError(f"bundle {folder} is damaged: {name} is not the file that was exported")
    needed = [name for name in ("model.safetensors", "config.json", "normalizer.json") if name not in manifest.files]
    if needed:
        raise DamagedError(f"bundle {folder} is damaged: {needed[0]} is missing")
    config = read_document(locate(folder / "config.json"), RunConfig)
    normalizer = read_document(locate(folder / "normalizer.json"), ActionNormalizer)
    tokenizer = config.policy.tokenizer
    if tokenizer and tokenizer.path == TOKENIZER:
        tokenizer = replace(tokenizer, path=str(folder / TOKENIZER))
        config = replace(config, policy=replace(config.policy, tokenizer=tokenizer))
    policy = config.policy.build(config.data)
    try:
        weights = load_file(folder / "model.safetensors")
        policy.load_state_dict({name: value.float() for name, value in weights.items()}, strict=True)
    except (SafetensorError, OSError, RuntimeError) as error:
        raise UserError(f"bundle {folder}: {' '.join(str(error).split())[:200]}") from error
    if policy.tokenizer_fingerprint != manifest.tokenizer:
        raise UserError(
            f"bundle {folder} needs the tokenizer {manifest.tokenizer}; "
            f"{tokenizer.path if tokenizer else 'its policy'} has {policy.tokenizer_fingerprint}"
        )
    return Bundle(policy.eval(), config, normalizer, manifest)


def _write_tokenizer(checkpoint: Checkpoint, folder: Path) -> TokenizerConfig | None:
    """Put the tokenizer into the bundle when it lies on this machine; returns how the bundle names it."""
    config = checkpoint.config.policy.tokenizer
    if config is None or config.kind == "identity" or not Path(config.path).is_dir():
        return config
    if config.kind == "sdxl":
        load_vae(config.path).save_pretrained(folder / TOKENIZER, safe_serialization=True)
    else:
        source = load_checkpoint(config.path)
        (folder / TOKENIZER).mkdir()
        _write_weights(source, folder / TOKENIZER, torch.float32, averaged=False)
        plain = replace(source.config, init_from="", output="")
        write_document(locate(folder / TOKENIZER / "config.json"), plain)
    return replace(config, path=TOKENIZER)


def _write_weights(checkpoint: Checkpoint, folder: Path, dtype: torch.dtype, *, averaged: bool = True) -> None:
    weights = checkpoint.tensors("ema" if averaged and checkpoint.has("ema") else "model")
    cast = {name: _cast(value, dtype) for name, value in weights.items()}
    save_file(cast, folder / "model.safetensors", metadata={"format": "pt"})


def _cast(value: Tensor, dtype: torch.dtype) -> Tensor:
    return value.to(dtype) if value.is_floating_point() else value


def _relative(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def _sync(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    sync_folder(folder)
