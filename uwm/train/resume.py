"""Which run a configuration asks for: its folder, its paths, and the checkpoint that it goes on from."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from storage_schemas.errors import UserError
from storage_schemas.store.dataset import open_dataset
from uwm.checkpoint import Checkpoint, Origin, latest_checkpoint, load_checkpoint, origin, resolve_checkpoint
from uwm.config import Config, DatasetRef, RunConfig, TokenizerConfig, TrainConfig, replace

FREE_TO_CHANGE = frozenset(
    {
        "output",
        "init_from",
        "policy.tokenizer.path",
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
        "train.track",
        "train.eval_every",
        "train.eval_samples",
        "train.compile",
        "policy.attention",
        "policy.diffusion.precompute_modulation",
        "train.batch_size",
        "train.accumulate",
        "train.processes",
        "train.machines",
        "train.rendezvous",
        "train.restarts",
        "train.parallel",
        "train.replicas",
        "train.checkpoint_activations",
        "train.spike_limit",
        "train.spike_window",
    }
)
"""What may differ between the parts of a resumed run. Parent, tokenizer, decay and batch are compared by meaning."""


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
    """Replace run folders by the checkpoints that they stand for now, as absolute paths, and tags by versions.

    A run that starts from a parent and names no autoencoder takes the parent's tokenizer.

    Raises:
        UserError: when a finetuning run names no parent, or a checkpoint or tag is missing.
    """
    config.check_warmup()
    if config.stage == "finetune" and not config.init_from:
        raise UserError("a finetuning run starts from a checkpoint: set init_from=<run folder or checkpoint>")
    changes: dict[str, object] = {"data": replace(config.data, datasets=[_pinned(ref) for ref in config.data.datasets])}
    tokenizer = own_tokenizer(config)
    if config.init_from:
        parent = resolve_checkpoint(config.init_from).absolute()
        changes["init_from"] = str(parent)
        if tokenizer and not tokenizer.path:
            tokenizer = load_checkpoint(parent).config.policy.tokenizer
    if tokenizer:
        path = resolve_checkpoint(tokenizer.path).absolute() if tokenizer.path else ""
        changes["policy"] = replace(config.policy, tokenizer=replace(tokenizer, path=str(path)))
    return replace(config, **changes)


def _pinned(ref: DatasetRef) -> DatasetRef:
    """A dataset whose version is no tag any more. Tags move; what a run is compared with on resume does not."""
    return replace(ref, version=open_dataset(ref.uri, ref.version).version) if isinstance(ref.version, str) else ref


def find_checkpoint(config: RunConfig, *, resume: bool, processes: int = 1) -> Checkpoint | None:
    """The latest checkpoint of the run, if any.

    Args:
        config: with paths resolved.
        resume: whether there may be one.
        processes: that train together; they may be others than before as long as a step has as many samples.

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
    differing = _differences(config, found, processes)
    if differing:
        raise UserError(
            f"{config.folder} holds another run, which differs in {'; '.join(differing[:3])}: "
            "set another name or output, or remove it"
        )
    return found


def _differences(config: RunConfig, found: Checkpoint, processes: int) -> list[str]:
    """How the run that is asked for differs from the one that is there, as `field: there -> asked for`."""
    there, wanted = flatten(found.config), flatten(config)
    changed = [
        f"{key}: {there.get(key)} -> {wanted.get(key)}"
        for key in sorted({*there, *wanted} - FREE_TO_CHANGE)
        if there.get(key) != wanted.get(key) and not (key.endswith(".version") and wanted.get(key) is None)
    ]
    if config.optim.schedule == "cosine" and _decay_end(config) != _decay_end(found.config):
        changed.append(f"the end of the cosine (optim.decay_steps): {_decay_end(found.config)} -> {_decay_end(config)}")
    samples, before = step_samples(config.train, processes), found.state.batch or found.config.train.batch_size
    if samples != before:
        product = f"train.batch_size x train.accumulate x {processes} process{'es' if processes > 1 else ''}"
        changed.append(f"the samples of a step ({product}): {before} -> {samples}")
    if _identity(config.init_from) != (found.state.parent.identity if found.state.parent else ""):
        changed.append("its parent (init_from)")
    recorded = found.state.tokenizer_checkpoint
    tokenizer = tokenizer_origin(config)
    if (tokenizer and tokenizer.identity) != (recorded and recorded.identity):
        changed.append("its tokenizer (policy.tokenizer.path)")
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


def step_samples(config: TrainConfig, processes: int) -> int:
    """The samples of a step, over all processes and accumulated batches."""
    return config.batch_size * config.accumulate * processes


def _identity(path: str) -> str:
    return origin(path).identity if path else ""


def own_tokenizer(config: RunConfig) -> TokenizerConfig | None:
    """The run's tokenizer when it is a checkpoint of this project, which the path names or a parent is to name."""
    tokenizer = config.policy.tokenizer
    return tokenizer if config.stage != "tokenizer" and tokenizer and tokenizer.kind == "autoencoder" else None


def tokenizer_origin(config: RunConfig) -> Origin | None:
    """The checkpoint that the run's tokenizer is, if it is one."""
    tokenizer = own_tokenizer(config)
    return origin(tokenizer.path) if tokenizer and tokenizer.path else None
