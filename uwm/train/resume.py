"""Which run a configuration asks for: its folder, its paths, and the checkpoint that it goes on from."""

import fcntl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from storage_schemas.errors import UserError
from storage_schemas.store.dataset import open_dataset
from uwm.checkpoint import Checkpoint, Origin, latest_checkpoint, load_checkpoint, origin, resolve_checkpoint
from uwm.conditions import filled_in
from uwm.config import DataConfig, DatasetRef, RunConfig, TokenizerConfig
from uwm.settings import MAY_CHANGE, Config, replace
from uwm.training_config import TrainConfig


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


def resolve_paths(config: RunConfig, latest: Checkpoint | None = None) -> RunConfig:
    """Replace run folders by the checkpoints that they stand for now, as absolute paths, and tags by versions.

    A run that starts from a parent and names no autoencoder takes the parent's tokenizer. One that goes on has taken
    what it needs: its parent may have moved, gone on, or be pruned since.

    Args:
        config: what is asked for.
        latest: checkpoint that the run goes on from, if any.

    Raises:
        UserError: when a finetuning run names no parent, or a checkpoint or tag is missing.
    """
    config.check_warmup()
    if config.stage == "finetune" and not config.init_from:
        raise UserError("a finetuning run starts from a checkpoint: set init_from=<run folder or checkpoint>")
    changes: dict[str, object] = {"data": replace(config.data, datasets=[_pinned(ref) for ref in config.data.datasets])}
    tokenizer = own_tokenizer(config)
    if config.init_from and not latest:
        parent = resolve_checkpoint(config.init_from).absolute()
        changes["init_from"] = str(parent)
        if tokenizer and not tokenizer.path:
            tokenizer = load_checkpoint(parent).config.policy.tokenizer
    elif latest:
        changes["data"] = _as_pinned(config.data, latest.config.data)
        if _names(config.init_from, latest.state.parent):
            changes["init_from"] = latest.config.init_from
        if tokenizer and (not tokenizer.path or _names(tokenizer.path, latest.state.tokenizer_checkpoint)):
            tokenizer = latest.config.policy.tokenizer
    if tokenizer:
        path = resolve_checkpoint(tokenizer.path).absolute() if tokenizer.path else ""
        changes["policy"] = replace(config.policy, tokenizer=replace(tokenizer, path=str(path)))
    return replace(config, **changes)


def _as_pinned(data: DataConfig, before: DataConfig) -> DataConfig:
    """What the data leave open about actions and robots as it was filled in when the run started."""
    pinned = replace(data, datasets=[_pinned(ref) for ref in data.datasets])
    if data.action is None and before.action is not None:
        pinned = replace(pinned, action=before.action)
    return pinned if data.embodiments else replace(pinned, embodiments=before.embodiments)


def _pinned(ref: DatasetRef) -> DatasetRef:
    """A dataset whose version is no tag any more. Tags move; what a run is compared with on resume does not."""
    return replace(ref, version=open_dataset(ref.uri, ref.version).version) if isinstance(ref.version, str) else ref


def find_checkpoint(config: RunConfig, *, resume: bool) -> Checkpoint | None:
    """The latest checkpoint in the run's folder, if any. Raises UserError when there is one and `resume` is False."""
    path = latest_checkpoint(config.folder)
    if path and not resume:
        raise UserError(f"{config.folder} already holds checkpoints: resume it, remove it, or set another output")
    return load_checkpoint(path) if path else None


def check_same_run(config: RunConfig, latest: Checkpoint, processes: int) -> None:
    """Check that a checkpoint is one of the run that is asked for.

    Args:
        config: with paths resolved.
        latest: in the run's folder.
        processes: that train together; they may be others than before as long as a step has as many samples.

    Raises:
        UserError: when the folder holds a run of another configuration; says in what they differ.
    """
    differing = _differences(config, latest, processes)
    if differing:
        raise UserError(
            f"{config.folder} holds another run, which differs in {'; '.join(differing[:3])}: "
            "set another name or output, or remove it"
        )


def _differences(config: RunConfig, latest: Checkpoint, processes: int) -> list[str]:
    """How the run that is asked for differs from the one in the folder, as `setting: recorded -> asked for`."""
    recorded, asked = fixed_settings(latest.config), fixed_settings(config)
    changed = [
        f"{name}: {recorded.get(name)} -> {asked.get(name)}"
        for name in sorted({*recorded, *asked})
        if recorded.get(name) != asked.get(name)
        and not _filled_in(name, recorded, asked)
        and not filled_in(asked, recorded, name)
    ]
    decay_end = _decay_end(latest.config)
    if config.optim.schedule == "cosine" and _decay_end(config) != decay_end:
        changed.append(f"the end of the cosine (optim.decay_steps): {decay_end} -> {_decay_end(config)}")
    # checkpoints of older versions do not say how many samples a step had
    samples, before = step_samples(config.train, processes), latest.state.batch or latest.config.train.batch_size
    if samples != before:
        product = f"train.batch_size x train.accumulate x {processes} process{'es' if processes > 1 else ''}"
        changed.append(f"the samples of a step ({product}): {before} -> {samples}")
    if config.init_from != latest.config.init_from:
        parent = latest.state.parent.path if latest.state.parent else "none"
        changed.append(f"its parent (init_from): {parent} -> {config.init_from or 'none'}")
    tokenizer, own = latest.state.tokenizer_checkpoint, tokenizer_origin(config)
    if (own and own.identity) != (tokenizer and tokenizer.identity):
        changed.append("its tokenizer (policy.tokenizer.path)")
    return changed


def _filled_in(name: str, recorded: Mapping[str, object], asked: Mapping[str, object]) -> bool:
    """Whether a setting was left open, then as now: what it became when the run started is still so."""
    if name == "data.action_dim":
        return recorded.get("data.action") is not None and asked.get("data.action") is None
    left_open = name == "data.action" or name.endswith((".version", ".embodiment", ".cameras"))
    return (left_open or name.startswith("data.embodiments.")) and asked.get(name) in (None, "", {})


def _names(path: str, recorded: Origin | None) -> bool:
    """Whether a path names the checkpoint that a run has taken from; of one that is gone, or moved, the name counts."""
    if not (path and recorded):
        return not path and not recorded
    named, checkpoint = Path(path).absolute(), Path(recorded.path)
    try:
        return origin(named).identity == recorded.identity
    except UserError:  # there is none any more
        return named.name in (checkpoint.name, checkpoint.parent.parent.name)


def fixed_settings(config: Config) -> dict[str, object]:
    """Every single setting that does not change on resume (see `uwm.settings.Changeable`), by its dotted name."""
    settings: dict[str, object] = {}
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if MAY_CHANGE in field.metadata:
            continue
        parts = {name: value} if not isinstance(value, tuple) else {f"{name}.{i}": part for i, part in enumerate(value)}
        if all(isinstance(part, Config) for part in parts.values()):
            for prefix, part in parts.items():
                settings |= {f"{prefix}.{key}": inner for key, inner in fixed_settings(part).items()}
        else:
            settings[name] = value
    return settings


def _decay_end(config: RunConfig) -> int:
    return config.optim.decay_steps or config.train.steps


def step_samples(config: TrainConfig, processes: int) -> int:
    """The samples of a step, over all processes and accumulated batches."""
    return config.batch_size * config.accumulate * processes


def own_tokenizer(config: RunConfig) -> TokenizerConfig | None:
    """The run's tokenizer when it is a checkpoint of this project, which the path names or a parent is to name."""
    tokenizer = config.policy.tokenizer
    return tokenizer if config.stage != "tokenizer" and tokenizer and tokenizer.kind == "autoencoder" else None


def tokenizer_origin(config: RunConfig) -> Origin | None:
    """The checkpoint that the run's tokenizer is, if it is one."""
    tokenizer = own_tokenizer(config)
    return origin(tokenizer.path) if tokenizer and tokenizer.path else None
