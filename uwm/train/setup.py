"""Everything that stands before the first step: new, from a parent, or from where a run stopped."""

import fcntl
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import cast

import torch
from torch import nn

from storage_schemas.errors import UserError
from uwm.config import Config, RunConfig, replace
from uwm.data.latents import LatentStore, open_latents
from uwm.data.mixture import Member, mixture_normalizer, open_member, open_mixture
from uwm.data.normalize import ActionNormalizer
from uwm.device import autocast, resolve_device, resolve_precision, set_matmul
from uwm.policy import Learner
from uwm.train.checkpoint import (
    Checkpoint,
    Origin,
    latest_checkpoint,
    load_checkpoint,
    load_weights,
    origin,
    resolve_checkpoint,
)
from uwm.train.log import DatasetUse
from uwm.train.optim import WeightAverage, make_optimizer, restore_optimizer

Build = Callable[[RunConfig], nn.Module]

FREE_TO_CHANGE = frozenset(
    {
        "output",
        "init_from",
        "tokenizer.path",
        "data.workers",
        "data.prefetch",
        "optim.decay_steps",
        "train.steps",
        "train.device",
        "train.log_every",
        "train.save_every",
        "train.keep",
        "train.threads",
        "train.matmul",
        "train.sync",
        "train.compile",
        "model.attention",
        "diffusion.hoist",
        "train.track",
        "train.eval_every",
        "train.eval_samples",
    }
)
"""What may differ between the parts of a resumed run. Parent, tokenizer and decay are compared by what they mean."""


@dataclass(kw_only=True)
class Run:
    """A run that is set up, and where it stands."""

    config: RunConfig
    """With dataset versions, parent and tokenizer paths filled in."""
    members: tuple[Member, ...]
    normalizer: ActionNormalizer
    model: nn.Module
    optimizer: torch.optim.Optimizer
    average: WeightAverage | None
    device: torch.device
    dtype: torch.dtype
    parent: Origin | None
    tokenizer_checkpoint: Origin | None
    tokenizer: str
    attention: str
    code_revision: str
    latents: tuple[LatentStore, ...] = ()
    """Of every dataset, when the run trains on cached latents."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """The last logged numbers."""
    saved: Path | None = None
    """The checkpoint of this very step, if there is one."""
    step: int = 0
    position: int = 0

    @property
    def learner(self) -> Learner:
        """The model, by its loss."""
        return cast(Learner, self.model)

    @property
    def folder(self) -> Path:
        """Where the run's checkpoints and log lie."""
        return Path(self.config.folder)

    @property
    def uses(self) -> tuple[DatasetUse, ...]:
        """The datasets of the run, pinned."""
        return tuple(_use(member, self.config.data.action_dim) for member in self.members)


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Hold a run's folder; the system lets go of it when the process ends, however it ends.

    Raises:
        UserError: when another process trains in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"another process trains in {folder}: wait for it, or set another output") from error
        yield


def resolve_paths(config: RunConfig) -> RunConfig:
    """Replace run folders by the checkpoints that they stand for now, as absolute paths.

    A run that starts from a parent and names no autoencoder takes the parent's tokenizer.

    Raises:
        UserError: when a finetuning run names no parent, or a checkpoint is missing.
    """
    if config.stage == "finetune" and not config.init_from:
        raise UserError("a finetuning run starts from a checkpoint: set init_from=<run folder or checkpoint>")
    changes: dict[str, object] = {}
    tokenizer = config.tokenizer
    if config.init_from:
        parent = resolve_checkpoint(config.init_from).absolute()
        changes["init_from"] = str(parent)
        if _by_checkpoint(config) and not tokenizer.path:
            tokenizer = load_checkpoint(parent).config.tokenizer
    if _by_checkpoint(config):
        path = resolve_checkpoint(tokenizer.path).absolute() if tokenizer.path else ""
        changes["tokenizer"] = replace(tokenizer, path=str(path))
    return replace(config, **changes)


def find_checkpoint(config: RunConfig, *, resume: bool) -> Checkpoint | None:
    """The latest checkpoint of the run, if any.

    Args:
        config: with paths resolved.
        resume: whether there may be one.

    Raises:
        UserError: when the folder holds a run of another configuration, or `resume` is False and it
            holds any.
    """
    path = latest_checkpoint(config.folder)
    if not path:
        return None
    if not resume:
        raise UserError(f"{config.folder} already holds checkpoints: resume it, remove it, or set another output")
    found = load_checkpoint(path)
    differing = _differences(config, found)
    if differing:
        raise UserError(
            f"{config.folder} holds another run, which differs in {'; '.join(differing[:3])}: "
            "set another name or output, or remove it"
        )
    return found


def prepare(config: RunConfig, found: Checkpoint | None, build: Build) -> Run:
    """Set a run up to go on from `found`, from its parent, or from scratch.

    Args:
        config: with paths resolved.
        found: the checkpoint to go on from.
        build: makes the network.

    Raises:
        UserError: when data, parent or tokenizer are missing or do not fit.
    """
    members = _open_data(config, found)
    config = _with_versions(config, members)
    device = resolve_device(config.train.device)
    dtype = resolve_precision(config.train.precision, device)
    set_matmul(config.train.matmul)
    model = _make_model(config, build, device)
    parent = load_checkpoint(config.init_from) if config.init_from and not found else None
    base = found or parent
    if base:
        _check_base(base, config, _text(model, "tokenizer_fingerprint"))
        load_weights(model, base, ema=not found)
    optimizer = make_optimizer(model, config.optim)
    average = WeightAverage(model, config.optim.ema_decay) if config.optim.ema_decay else None
    run = Run(
        config=config,
        members=members,
        normalizer=_choose_normalizer(members, config, found, parent),
        model=model,
        optimizer=optimizer,
        average=average,
        device=device,
        dtype=dtype,
        parent=Origin(path=str(parent.path), identity=parent.identity) if parent else None,
        tokenizer=_text(model, "tokenizer_fingerprint"),
        tokenizer_checkpoint=_tokenizer_origin(config),
        attention=_attention(model, device, dtype),
        code_revision=code_revision(),
        latents=_latents(members, config, model),
    )
    if found:
        _go_on(run, found)
    return run


def _go_on(run: Run, found: Checkpoint) -> None:
    """Bring everything but the weights to where `found` stands."""
    restore_optimizer(run.optimizer, run.model, found.tensors("optim"))
    if run.average:
        run.average.restore(found.tensors("ema"))
    run.parent = found.state.parent
    run.metrics = found.state.metrics
    run.saved = found.path
    run.step = found.state.step
    run.position = found.state.position


def _make_model(config: RunConfig, build: Build, device: torch.device) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed)
        model = build(config)
    if not isinstance(model, Learner):
        raise TypeError(f"{type(model).__name__} has no loss")
    model = model.to(device).train()
    if config.train.compile != "off":
        compile_transformer(model, config.train.compile)
    return model


def compile_transformer(model: nn.Module, mode: str) -> None:
    """Compile the denoiser in place; its parameters keep their names. Raises UserError when there is none."""
    transformer = getattr(model, "transformer", None)
    if not isinstance(transformer, nn.Module):
        raise UserError(f"train.compile={mode}: a {type(model).__name__} has no transformer to compile")
    transformer.compile(mode=mode)


def _open_data(config: RunConfig, found: Checkpoint | None) -> tuple[Member, ...]:
    if not found:
        return open_mixture(config.data)
    members = open_mixture(found.config.data)
    for member, use in zip(members, found.state.datasets, strict=True):
        if member.dataset.table_id != use.table_id:
            raise UserError(f"{use.uri} is another dataset than the one that {found.path} was trained on")
    return members


def _latents(members: tuple[Member, ...], config: RunConfig, model: nn.Module) -> tuple[LatentStore, ...]:
    """The cached latents that the run declares. Raises UserError when a dataset has none that fit."""
    if not config.data.latents:
        return ()
    shape = getattr(model, "latent_shape", None)
    if shape is None:
        raise UserError("this run takes no cached latents: leave data.latents empty")
    views, channels, frames, height, width = shape
    del views, frames
    seed, tokenizer = config.train.seed, _text(model, "tokenizer_fingerprint")
    latent = channels, height, width
    return tuple(open_latents(member, config.data, tokenizer, latent, seed=seed) for member in members)


def _with_versions(config: RunConfig, members: tuple[Member, ...]) -> RunConfig:
    return replace(config, data=replace(config.data, datasets=[member.ref for member in members]))


def _choose_normalizer(
    members: tuple[Member, ...], config: RunConfig, found: Checkpoint | None, parent: Checkpoint | None
) -> ActionNormalizer:
    """A run keeps its own bounds, a finetuning run its parent's, unless the parent saw no actions."""
    if found:
        return found.normalizer
    if parent and parent.normalizer.count:
        return parent.normalizer
    bound, scale = config.diffusion.clip_action, config.data.action_scale
    if scale == "z_score" and config.stage != "tokenizer" and bound is not None and bound <= 1:
        raise UserError("data.action_scale=z_score needs actions beyond 1: set diffusion.clip_action to 5 or to none")
    if config.data.normalizer_split == "all":
        members = tuple(open_member(member.ref, config.data, split=None) for member in members)
    return mixture_normalizer(members, config.data.action_dim, scale)


def _check_base(base: Checkpoint, config: RunConfig, tokenizer: str) -> None:
    if base.state.tokenizer != tokenizer:
        raise UserError(f"{base.path} was trained on latents of another tokenizer: {base.state.tokenizer}")
    if base.normalizer.action_dim != config.data.action_dim:
        raise UserError(
            f"{base.path} has {base.normalizer.action_dim} action dimensions, the run {config.data.action_dim}"
        )


def _differences(config: RunConfig, found: Checkpoint) -> list[str]:
    """How the run that is asked for differs from the one that is there, as `field: there -> asked for`."""
    there, wanted = flatten(found.config), flatten(config)
    changed = [
        f"{key}: {there.get(key)} -> {wanted.get(key)}"
        for key in sorted({*there, *wanted} - FREE_TO_CHANGE)
        if there.get(key) != wanted.get(key) and not (key.endswith(".version") and wanted.get(key) is None)
    ]
    if config.optim.schedule == "cosine" and _decay_end(config) != _decay_end(found.config):
        changed.append(f"the end of the cosine (optim.decay_steps): {_decay_end(found.config)} -> {_decay_end(config)}")
    if _identity(config.init_from) != (found.state.parent.identity if found.state.parent else ""):
        changed.append("its parent (init_from)")
    recorded = found.state.tokenizer_checkpoint
    tokenizer = _tokenizer_origin(config)
    if (tokenizer and tokenizer.identity) != (recorded and recorded.identity):
        changed.append("its tokenizer (tokenizer.path)")
    return changed


def flatten(config: Config) -> dict[str, object]:
    """Every single setting by its dotted name."""
    found: dict[str, object] = {}

    def visit(prefix: str, value: object) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                visit(f"{prefix}{key}.", item)
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            visit(prefix, dict(enumerate(value)))
        else:
            found[prefix.removesuffix(".")] = value

    visit("", config.model_dump(mode="json"))
    return found


def _decay_end(config: RunConfig) -> int:
    return config.optim.decay_steps or config.train.steps


def _identity(path: str) -> str:
    return origin(path).identity if path else ""


def _by_checkpoint(config: RunConfig) -> bool:
    return config.stage != "tokenizer" and config.tokenizer.kind == "autoencoder"


def _tokenizer_origin(config: RunConfig) -> Origin | None:
    return origin(config.tokenizer.path) if _by_checkpoint(config) and config.tokenizer.path else None


def _use(member: Member, action_dim: int) -> DatasetUse:
    return DatasetUse(
        uri=member.dataset.uri,
        version=member.dataset.version,
        table_id=member.dataset.table_id,
        weight=member.ref.weight,
        collections=member.ref.collections,
        episodes=len(member.rows),
        segments=len(member.sampler((0,))),
        action_steps=member.action_steps(action_dim),
    )


def _text(model: nn.Module, name: str) -> str:
    return str(getattr(model, name, ""))


def _attention(model: nn.Module, device: torch.device, dtype: torch.dtype) -> str:
    """What attention runs on, for networks that can tell."""
    report = getattr(model, "attention_report", None)
    if report is None:
        return "none"
    with autocast(device, dtype):
        return str(report())


def code_revision() -> str:
    """The commit that this code is, with `-dirty` when files differ from it; else the package's version."""
    here = Path(__file__).parent
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
        if found.returncode == 0:
            return found.stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        pass  # no git here: the version says it
    return f"uwm-pipeline {metadata.version('uwm-pipeline')}"
