"""Everything that stands before the first step: new, from a parent, or from where a run stopped."""

import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import torch

from storage_schemas.catalog.table import dataset_id
from storage_schemas.errors import UserError
from uwm.checkpoint import Checkpoint, Origin, load_checkpoint, load_weights
from uwm.config import RunConfig
from uwm.data.latents import LatentStore, open_latents
from uwm.data.mixture import Member, check_actions, check_cameras, mixture_normalizer, open_member, open_mixture
from uwm.data.normalize import ActionNormalizer
from uwm.data.pinning import pin_robots
from uwm.data.states import resolve_states
from uwm.device import autocast, resolve_device, resolve_precision, set_matmul
from uwm.events import DatasetUse, Encoding, OnEvent
from uwm.language.instructions import Progress, encode_instructions, with_encoder
from uwm.policy import Learner
from uwm.settings import replace
from uwm.train.distributed import World
from uwm.train.finetuning import check_meaning, check_shapes, parents_normalizer, share_beyond, with_new_robots
from uwm.train.optim import WeightAverage, make_optimizer, restore_optimizer
from uwm.train.parallel import Engine, parallelize
from uwm.train.resume import step_samples, tokenizer_origin

Build = Callable[[RunConfig], Learner]


@dataclass(kw_only=True)
class Run:
    """A run that is set up, and where it stands."""

    config: RunConfig
    """The configuration with dataset versions, parent and tokenizer paths filled in."""
    members: tuple[Member, ...]
    normalizer: ActionNormalizer
    share_beyond: float
    """Of the training steps, in the worst dimension: with actions beyond the range of a parent's normalizer."""
    world: World
    model: Learner
    """The network; its parameters are shards when FSDP divides it."""
    engine: Engine
    """The model's loss, over all processes."""
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
    """Cached latents of every dataset, when the run trains on them."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """The last logged numbers."""
    saved: Path | None = None
    """The checkpoint of this very step, if there is one."""
    step: int = 0
    position: int = 0

    @property
    def samples(self) -> int:
        """Samples of a step, over all processes and accumulated batches."""
        return step_samples(self.config.train, self.world.size)

    @property
    def folder(self) -> Path:
        """Where the run's checkpoints and log lie."""
        return Path(self.config.folder)

    @property
    def uses(self) -> tuple[DatasetUse, ...]:
        """The datasets of the run, pinned."""
        return tuple(_use(member) for member in self.members)


def pin_versions(config: RunConfig) -> RunConfig:
    """Fill the newest versions of the datasets in. Raises UserError when one can't be opened."""
    return with_data(config, open_mixture(config.data))


def with_instructions(
    config: RunConfig, latest: Checkpoint | None, *, on_event: OnEvent = lambda event: None
) -> RunConfig:
    """Encode the instructions of a run's datasets, as far as they are not; of held-out episodes too.

    Args:
        config: of a run that hears them, with paths resolved.
        latest: the checkpoint that it goes on from, whose encoder is the run's.
        on_event: is told how far it is.

    Returns:
        The configuration with dataset versions, and what follows from the encoder, filled in.

    Raises:
        UserError: when data or encoder are missing, or the encoder is another one than before.
    """
    language = config.data.language
    if latest:
        before = latest.config.data.language
        language = replace(language, identity=before.identity, features=before.features)
    language = with_encoder(language)
    members = _open_data(config, latest)
    for member in members:
        uri, rows = member.dataset.uri, member.dataset.episodes.select(collections=member.ref.collections)
        encode_instructions(
            member.dataset,
            rows,
            language,
            device=resolve_device(config.train.device),
            progress=_telling(uri, on_event),
        )
    heard = replace(config, data=replace(config.data, language=language))
    return heard if latest else with_data(heard, members)


def _telling(uri: str, on_event: OnEvent) -> Progress:
    return lambda done, total: on_event(Encoding(dataset=uri, done=done, total=total))


def prepare(config: RunConfig, latest: Checkpoint | None, build: Build, world: World) -> Run:
    """Set a run up to go on from `latest`, from its parent, or from scratch.

    Args:
        config: with paths resolved.
        latest: the checkpoint to go on from.
        build: makes the network.
        world: the processes that train it together.

    Raises:
        UserError: when data, parent or tokenizer are missing or do not fit.
    """
    if config.stage == "tokenizer" and world.size * config.train.accumulate > 1:
        raise UserError("a tokenizer keeps statistics of its batches: set train.processes=1 and train.accumulate=1")
    parent = load_checkpoint(config.init_from) if config.init_from and not latest else None
    members = _open_data(config, latest)
    data, members = pin_robots(config.data, members, parent.config.data if parent else None)
    config = replace(config, data=data)
    check_data(members, config, new=not (latest or parent))
    config = with_data(config, members)
    device = world.device(config.train.device)
    dtype = resolve_precision(config.train.precision, device)
    set_matmul(config.train.matmul)
    model = _make_model(config, build, device)
    if latest:
        check_shapes(latest, config, model.tokenizer_fingerprint)
        load_weights(model, latest, ema=False)
    elif parent:
        check_meaning(parent, config, model.tokenizer_fingerprint)
        load_weights(model, parent, ema=True)
    normalizer, beyond = _choose_normalizer(members, config, latest, parent)
    with autocast(device, dtype):
        attention = model.attention_report()
    engine = parallelize(model, config.train, world, device, dtype)
    # only now: FSDP has put shards in the place of the parameters
    optimizer = make_optimizer(model, config.optim)
    average = WeightAverage(model, config.optim.ema_decay) if config.optim.ema_decay else None
    run = Run(
        config=config,
        members=members,
        normalizer=normalizer,
        share_beyond=beyond,
        world=world,
        model=model,
        engine=engine,
        optimizer=optimizer,
        average=average,
        device=device,
        dtype=dtype,
        parent=Origin(path=str(parent.path), identity=parent.identity) if parent else None,
        tokenizer=model.tokenizer_fingerprint,
        tokenizer_checkpoint=tokenizer_origin(config),
        attention=attention,
        code_revision=code_revision(),
        latents=_latents(members, config, model),
    )
    if latest:
        _go_on(run, latest)
    return run


def _go_on(run: Run, latest: Checkpoint) -> None:
    """Bring everything but the weights to where `latest` stands."""
    restore_optimizer(run.optimizer, run.model, latest.tensors("optim"))
    if run.average:
        run.average.restore(latest.tensors("ema"))
    run.parent = latest.state.parent
    run.metrics = latest.state.metrics
    run.saved = latest.path
    run.step = latest.state.step
    run.position = latest.state.position


def _make_model(config: RunConfig, build: Build, device: torch.device) -> Learner:
    # drawn on the CPU, so that a seed gives the same weights on every device, and aside from everybody else's numbers
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed)
        model = build(config)
    model = model.to(device).train()
    if config.train.compile != "off":
        model.compile_network(config.train.compile)
    return model


def _open_data(config: RunConfig, latest: Checkpoint | None) -> tuple[Member, ...]:
    if not latest:
        return open_mixture(config.data)
    asked = list(zip(config.data.datasets, latest.state.datasets, strict=True))
    for ref, use in asked:  # before a version of it is asked for, which another dataset may not have
        if dataset_id(ref.uri) != use.table_id:
            raise UserError(f"{ref.uri} is another dataset than the one that {latest.path} was trained on")
    return open_mixture(replace(config.data, datasets=[replace(ref, version=use.version) for ref, use in asked]))


def check_data(members: Sequence[Member], config: RunConfig, *, new: bool) -> None:
    """Raises UserError when the data can't teach what the run is to learn; one that is not new has cameras already."""
    if new:
        check_cameras(members, config.data.cameras)
    if config.stage == "tokenizer":
        return
    check_actions(members)
    acts_only = not config.policy.reads_next_obs
    if acts_only and not any(member.known_actions for member in members):
        raise UserError(
            f"nothing to learn from: policy {config.policy.kind} learns from actions, and no training episode of "
            f"{', '.join(member.ref.uri for member in members)} has a known one"
        )


def _latents(members: tuple[Member, ...], config: RunConfig, model: Learner) -> tuple[LatentStore, ...]:
    """The cached latents that the run declares. Raises UserError when a dataset has none that fit."""
    if not config.data.latents:
        return ()
    if model.latent_shape is None:
        raise UserError("this run takes no cached latents: leave data.latents empty")
    _, channels, _, height, width = model.latent_shape
    latent, tokenizer = (channels, height, width), model.tokenizer_fingerprint
    return tuple(open_latents(member, config.data, tokenizer, latent, seed=config.train.seed) for member in members)


def with_data(config: RunConfig, members: Sequence[Member]) -> RunConfig:
    """The configuration with what its datasets tell filled in: their versions, and what their states mean.

    Raises:
        UserError: when no dataset has one of the states, or one has it otherwise than the run.
    """
    states, refs = resolve_states(members, config.data.states), [member.ref for member in members]
    return replace(config, data=replace(config.data, datasets=refs, states=states))


def _choose_normalizer(
    members: tuple[Member, ...], config: RunConfig, latest: Checkpoint | None, parent: Checkpoint | None
) -> tuple[ActionNormalizer, float]:
    """A run's own from before, else its parent's, else one of its data; and the share of actions beyond a parent's."""
    if latest:
        return latest.normalizer, 0.0
    if parent and (normalizer := parents_normalizer(parent, config)):
        normalizer = with_new_robots(normalizer, parent.config.data.robots, members, config.data.states)
        return normalizer, share_beyond(normalizer, members, config)
    diffusion, scale = config.policy.diffusion, config.data.action_scale
    bound = diffusion.clip_action if diffusion and config.stage != "tokenizer" else None
    if scale == "z_score" and bound is not None and bound <= 1:
        raise UserError(
            "data.action_scale=z_score needs actions beyond 1: set policy.diffusion.clip_action to 5 or to null"
        )
    if config.data.normalizer_split == "all":
        members = tuple(open_member(member.ref, config.data, split=None) for member in members)
    return mixture_normalizer(members, scale, config.data.states), 0.0


def _use(member: Member) -> DatasetUse:
    return DatasetUse(
        uri=member.dataset.uri,
        version=member.dataset.version,
        table_id=member.dataset.table_id,
        weight=member.ref.weight,
        collections=member.ref.collections,
        episodes=len(member.rows),
        segments=len(member.sampler((0,))),
        action_steps=member.known_actions,
    )


def code_revision() -> str:
    """The commit that this code is, with `-dirty` when files differ from it; else the package's version."""
    here = Path(__file__).parent
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        described = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
        if described.returncode == 0:
            return described.stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        pass  # no git here: the version says it
    return f"uwm-pipeline {metadata.version('uwm-pipeline')}"
