"""Checkpoints: directories of safetensors and JSON, complete or absent, never overwritten.

    <run>/checkpoints/step-00000100/
      model.safetensors   weights under the network's own names, without the frozen tokenizer
      ema.safetensors     averaged weights, when the run keeps an average
      optim.safetensors   optimizer state, `<parameter>/<kind>`
      config.json         the run's configuration, dataset versions filled in
      normalizer.json     bounds of the actions
      state.json          step, position, origins, and the sha256 of every other file

`state.json` carries a digest of itself, so the digest stands for the whole checkpoint.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from storage_schemas.documents import read_document, write_document
from storage_schemas.errors import DamagedError, StorageError, UserError
from storage_schemas.local_files import sync_folder
from storage_schemas.location import locate
from uwm.config import RunConfig
from uwm.data.normalize import ActionNormalizer
from uwm.device import resolve_device
from uwm.events import DatasetUse
from uwm.policy import Policy
from uwm.settings import C, Config, replace

FOLDER = "checkpoints"
STATE_FILE = "state.json"
_STEP = re.compile(r"step-(\d{8,})")
_TEMPORARY = ".tmp-"

TensorKind = Literal["model", "ema", "optim"]


class Origin(Config):
    """Another checkpoint that this one was made from."""

    path: str
    identity: str = Field(description="its digest")


class CheckpointState(Config):
    """Where a run stands and what it came from: enough to go on, and for its lineage."""

    format: Literal[1] = 1
    name: str
    stage: str
    step: int = Field(ge=0)
    position: int = Field(ge=0, description="samples consumed; the place of the next one in the sample order")
    seed: int
    batch: int = Field(0, ge=0, description="samples of a step, over all processes; 0: train.batch_size of the config")
    datasets: tuple[DatasetUse, ...]
    parent: Origin | None = Field(None, description="checkpoint that the weights started from")
    source: Origin | None = Field(None, description="published file that the weights were imported from, by its sha256")
    tokenizer: str = Field("", description="fingerprint of the latent tokenizer")
    tokenizer_checkpoint: Origin | None = None
    code_revision: str = ""
    created: str = Field("", description="ISO 8601 in UTC")
    metrics: Mapping[str, float] = Field(default_factory=dict, description="the last logged numbers")
    files: Mapping[str, str] = Field(default_factory=dict, description="sha256 of every other file")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint whose files have been checked against their hashes."""

    path: Path
    identity: str
    config: RunConfig
    normalizer: ActionNormalizer
    state: CheckpointState

    def has(self, kind: TensorKind) -> bool:
        """Whether the checkpoint holds these tensors."""
        return _tensor_file(kind) in self.state.files

    def tensors(self, kind: TensorKind) -> dict[str, Tensor]:
        """Tensors by name, on the CPU.

        Raises:
            UserError: when the checkpoint does not hold them or they can't be read.
        """
        if not self.has(kind):
            raise UserError(f"{self.path} holds no {_tensor_file(kind)}")
        try:
            return load_file(self.path / _tensor_file(kind))
        except (SafetensorError, OSError) as error:
            raise UserError(f"can't read {self.path / _tensor_file(kind)}: {error}") from error


class LoadedPolicy(NamedTuple):
    """A network ready for inference and what belongs to it."""

    policy: Policy
    config: RunConfig
    normalizer: ActionNormalizer


def save_checkpoint(
    folder: Path,
    *,
    config: RunConfig,
    normalizer: ActionNormalizer,
    state: CheckpointState,
    tensors: Mapping[TensorKind, Mapping[str, Tensor]],
    keep: int,
) -> Path:
    """Write the checkpoint of `state.step` and drop old ones.

    Everything is written and synced under a temporary name, then renamed: a crash at any moment leaves
    the earlier checkpoints whole and at most a temporary folder, which the next save removes.

    Args:
        folder: of the run.
        config: with dataset versions filled in.
        normalizer: of the actions.
        state: without `files`, which are filled in here.
        tensors: by kind.
        keep: how many checkpoints to keep besides this one.

    Returns:
        The checkpoint's directory.

    Raises:
        UserError: when it can't be written; nothing is left of it then.
    """
    root = folder / FOLDER
    final, temporary = root / _step_name(state.step), root / f"{_TEMPORARY}{state.step}-{os.getpid()}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        for leftover in root.glob(f"{_TEMPORARY}*"):
            shutil.rmtree(leftover)
        temporary.mkdir()
        _fill(temporary, config=config, normalizer=normalizer, state=state, tensors=tensors)
        if final.exists() and final not in _complete(root):
            _remove(final)
        temporary.rename(final)
        sync_folder(root)
        for old in _complete(root)[: -keep - 1]:
            _remove(old)
    except (OSError, StorageError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        reason = (error.strerror if isinstance(error, OSError) else "") or str(error)
        raise UserError(f"can't write checkpoint {final}: {reason}; the one before it resumes the run") from error
    return final


def _fill(
    folder: Path,
    *,
    config: RunConfig,
    normalizer: ActionNormalizer,
    state: CheckpointState,
    tensors: Mapping[TensorKind, Mapping[str, Tensor]],
) -> None:
    """Write the files of a checkpoint; they are on disk when this returns."""
    for kind, named in tensors.items():
        save_file({name: value.detach().contiguous() for name, value in named.items()}, folder / _tensor_file(kind))
    write_document(locate(folder / "config.json"), config)
    write_document(locate(folder / "normalizer.json"), normalizer)
    hashes = {path.name: sha256_file(path) for path in sorted(folder.iterdir())}
    body = state.model_copy(update={"files": hashes}).model_dump(mode="json")
    write_document(locate(folder / STATE_FILE), {"digest": _digest(body), **body})
    _sync(folder)


def latest_checkpoint(folder: str | Path) -> Path | None:
    """The checkpoint of a run folder with the most steps, or None."""
    complete = _complete(Path(folder) / FOLDER)
    return complete[-1] if complete else None


def resolve_checkpoint(path: str | Path) -> Path:
    """A checkpoint directory: `path` itself, or the latest one when `path` is a run's folder.

    Raises:
        UserError: when there is none.
    """
    folder = Path(path)
    if (folder / STATE_FILE).is_file():
        return folder
    latest = latest_checkpoint(folder.parent.parent if _names_latest(folder) else folder)
    if latest:
        return latest
    reason = "holds no checkpoint" if folder.is_dir() else "does not exist"
    raise UserError(f"{folder} {reason}: give the folder of a run, or of one of its checkpoints")


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Open and check a checkpoint: every file is there and has its recorded hash.

    Args:
        path: a checkpoint directory, or a run's folder for its latest one.

    Raises:
        UserError: when it is missing, damaged or of another format.
    """
    folder = resolve_checkpoint(path)
    state, identity = _read_state(folder)
    for name, expected in state.files.items():
        file = folder / name
        if Path(name).name != name or not file.is_file():
            raise DamagedError(f"checkpoint {folder} is damaged: {name} is missing")
        if sha256_file(file) != expected:
            raise DamagedError(f"checkpoint {folder} is damaged: {name} is not the file that was saved")
    config = _with_tokenizer(_parse(RunConfig, folder, "config.json", state), state, folder)
    normalizer = _parse(ActionNormalizer, folder, "normalizer.json", state)
    return Checkpoint(path=folder, identity=identity, config=config, normalizer=normalizer, state=state)


def origin(path: str | Path) -> Origin:
    """Name a checkpoint and its content, without reading its tensors.

    Raises:
        UserError: when there is no readable checkpoint.
    """
    folder = resolve_checkpoint(path)
    return Origin(path=str(folder), identity=_read_state(folder)[1])


def locate_origin(recorded: Origin, near: Path) -> Path | None:
    """Where a checkpoint lies now that another one was made from; its digest tells it, not its path.

    Args:
        recorded: in the other one's state.
        near: the other one; folders that were copied together lie to each other as they did.
    """
    parts = Path(recorded.path).parts
    copies = (base.joinpath(*parts[-depth:]) for base in near.absolute().parents for depth in range(2, len(parts)))
    for candidate in (Path(recorded.path), *copies):
        if (candidate / STATE_FILE).is_file() and origin(candidate).identity == recorded.identity:
            return candidate
    return None


def _with_tokenizer(config: RunConfig, state: CheckpointState, folder: Path) -> RunConfig:
    """The configuration with the tokenizer where it lies now; one that is gone is named when it is used."""
    tokenizer, recorded = config.policy.tokenizer, state.tokenizer_checkpoint
    path = locate_origin(recorded, folder) if tokenizer and recorded else None
    if tokenizer is None or path is None:
        return config
    return replace(config, policy=replace(config.policy, tokenizer=replace(tokenizer, path=str(path))))


def load_policy(path: str | Path, device: str = "auto", *, ema: bool = True) -> LoadedPolicy:
    """The trained network of a checkpoint, in evaluation mode.

    Args:
        path: a checkpoint directory or a run's folder.
        device: where the network shall lie; `auto` takes CUDA when there is one.
        ema: take the averaged weights when there are some.

    Raises:
        UserError: when the checkpoint is no policy's, or it or its tokenizer can't be loaded.
    """
    checkpoint = load_checkpoint(path)
    if checkpoint.config.stage == "tokenizer":
        raise UserError(f"{checkpoint.path} is a tokenizer: give the checkpoint of a policy")
    policy = checkpoint.config.policy.build(checkpoint.config.data)
    load_weights(policy, checkpoint, ema=ema)
    return LoadedPolicy(policy.to(resolve_device(device)).eval(), checkpoint.config, checkpoint.normalizer)


def load_weights(model: nn.Module, checkpoint: Checkpoint, *, ema: bool) -> None:
    """Put a checkpoint's weights into a network of the same shape.

    Raises:
        UserError: when names or shapes differ.
    """
    weights = checkpoint.tensors("ema" if ema and checkpoint.has("ema") else "model")
    try:
        model.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"the weights of {checkpoint.path} do not fit this network: {reason}") from error


def _tensor_file(kind: TensorKind) -> str:
    return f"{kind}.safetensors"


def _step_name(step: int) -> str:
    return f"step-{step:08d}"


def _names_latest(path: Path) -> bool:
    return path.name == "latest" and path.parent.name == FOLDER


def _complete(root: Path) -> list[Path]:
    """Complete checkpoints, fewest steps first."""
    if not root.is_dir():
        return []
    by_step = {int(match[1]): path for path in root.iterdir() if (match := _STEP.fullmatch(path.name))}
    return [by_step[step] for step in sorted(by_step) if (by_step[step] / STATE_FILE).is_file()]


def _read_state(folder: Path) -> tuple[CheckpointState, str]:
    body = read_document(locate(folder / STATE_FILE), dict[str, object])
    digest = str(body.pop("digest", ""))
    if digest != _digest(body):
        raise DamagedError(f"checkpoint {folder} is damaged: {STATE_FILE} is not the file that was saved")
    try:
        return CheckpointState.model_validate(body), digest
    except ValidationError as error:
        raise DamagedError(
            f"checkpoint {folder} is of another version: {STATE_FILE}: {error.errors()[0]['msg']}"
        ) from error


def _parse(kind: type[C], folder: Path, name: str, state: CheckpointState) -> C:
    if name not in state.files:
        raise DamagedError(f"checkpoint {folder} is damaged: {name} is missing")
    return read_document(locate(folder / name), kind)


def _digest(body: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def sha256_file(path: Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _remove(checkpoint: Path) -> None:
    """Remove a checkpoint so that no moment shows half of one."""
    leaving = checkpoint.with_name(f"{_TEMPORARY}{checkpoint.name}")
    checkpoint.rename(leaving)
    shutil.rmtree(leaving)


def _sync(folder: Path) -> None:
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    sync_folder(folder)
