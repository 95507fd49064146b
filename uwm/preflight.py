"""What can be said of runs and evaluations before any of them is carried out: whether all of them can be.

A pipeline's second stage must not find out after the first one's days that it can't begin. Networks are laid out
without memory for their weights; only tokenizers, which are small, are loaded.
"""

import dataclasses
import warnings

import torch

from storage_schemas.errors import UserError
from storage_schemas.store.dataset import open_dataset
from uwm.checkpoint import load_checkpoint
from uwm.config import RunConfig
from uwm.data.mixture import Member, check_actions, choose_member, open_mixture
from uwm.data.pinning import pin_robots, ref_in
from uwm.device import resolve_device
from uwm.eval.options import EvalOptions
from uwm.eval.result import ACTION_METRICS, Metric, ModeName
from uwm.eval.setup import check_steps, full_windows
from uwm.language.instructions import with_encoder
from uwm.policies import build
from uwm.policy import Learner, Policy
from uwm.settings import replace
from uwm.train.finetuning import check_changes
from uwm.train.resume import resolve_paths
from uwm.train.setup import check_data, with_data


def check_run(config: RunConfig, *, after: RunConfig | None = None) -> None:
    """Check a run's device, data and paths, and that its network fits that which it starts from.

    Args:
        config: of the run.
        after: the run whose last checkpoint it will start from, when that is still to be trained.

    Raises:
        UserError: when the run would end with it.
    """
    if after is None:
        config = resolve_paths(config)
        parent = load_checkpoint(config.init_from).config if config.init_from else None
    else:
        config, parent = _continued(config, after), _pinned(after)[0]
    resolve_device(config.train.device)
    config, members = _pinned(config, parent)
    check_data(members, config, new=parent is None)
    network = _layout(config)
    if parent is not None:
        _check_fits(network, config, parent)
        check_changes(parent, config, parent.name)
    if after is not None:
        _check_scale(config, after)


def check_evaluation(
    config: RunConfig, dataset: str, options: EvalOptions, measure: tuple[ModeName, Metric] | None = None
) -> None:
    """Check that the checkpoints of a run can be evaluated on a dataset, and that a measure comes out.

    Raises:
        UserError: when an evaluation would end with it, or would not have the measure.
    """
    if config.stage == "tokenizer":
        raise UserError(f"{config.name} trains a tokenizer: there is nothing to evaluate")
    config = _pinned(config)[0] if config.data.datasets else config
    resolve_device(options.device)
    if options.steps is not None:
        check_steps(config, options.steps)
    opened = open_dataset(dataset, options.version)
    ref = ref_in(config.data, dataset, opened.version, options.collections)
    member = choose_member(opened, ref, config.data, split=options.split)
    check_actions([member])
    last = dataclasses.replace(config.data.segment_spec, stride=ref.stride).last
    if not full_windows(member.rows, member.lengths, last, 1):
        raise UserError(f"no {options.split} episode of {dataset} has the {last + 1} steps of one segment")
    if measure is None:
        return
    mode, metric = measure
    network = _layout(config)
    if isinstance(network, Policy) and mode not in network.modes:
        raise UserError(f"policy {config.policy.kind} has no mode {mode}: it has {', '.join(sorted(network.modes))}")
    if (metric in ACTION_METRICS or mode == "forward") and not member.known_actions:
        raise UserError(f"no {options.split} episode of {dataset} has known actions: {mode}/{metric} can't be measured")


def _pinned(config: RunConfig, parent: RunConfig | None = None) -> tuple[RunConfig, tuple[Member, ...]]:
    """A run as it will be when it starts, and its datasets."""
    data, members = pin_robots(config.data, open_mixture(config.data), parent.data if parent else None)
    return replace(config, data=data), members


def _continued(config: RunConfig, parent: RunConfig) -> RunConfig:
    """The run as it will be when its parent is trained: it takes the parent's tokenizer when it names none."""
    own, given = config.policy.tokenizer, parent.policy.tokenizer
    if own is not None and own.kind == "autoencoder" and not own.path and config.stage != "tokenizer":
        config = replace(config, policy=replace(config.policy, tokenizer=given))
    paths = resolve_paths(replace(config, stage="pretrain", init_from="") if config.stage != "tokenizer" else config)
    return replace(paths, stage=config.stage)


def _layout(config: RunConfig) -> Learner:
    """A run's network without memory for its weights; what its size depends on is asked of data and text encoder."""
    data = config.data
    if any(state.space is None for state in data.states) or data.language.is_heard:
        asked = replace(config, data=replace(data, language=with_encoder(data.language)))
        config = with_data(asked, open_mixture(data)) if data.datasets else asked
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # initialising what has no memory
        return build(config)


def _check_fits(network: Learner, config: RunConfig, parent: RunConfig) -> None:
    """Raises UserError when the weights of the parent would not fit."""
    for run in (config, parent):
        if run.stage == "tokenizer":
            raise UserError(
                f"{config.name} can't start from {parent.name}: {run.name} trains a tokenizer, from scratch"
            )
    if parent.policy.kind != config.policy.kind:
        raise UserError(
            f"{config.name} is a {config.policy.kind}, {parent.name}, which it starts from, a {parent.policy.kind}"
        )
    other = _layout(parent)
    shapes, before = (
        {name: tuple(value.shape) for name, value in each.state_dict().items()} for each in (network, other)
    )
    for name in [*shapes, *(name for name in before if name not in shapes)]:
        if shapes.get(name) != before.get(name):
            raise UserError(
                f"the weights of {parent.name} do not fit {config.name}: {name} is {before.get(name, 'absent')} there "
                f"and {shapes.get(name, 'absent')} here"
            )
    if network.tokenizer_fingerprint != other.tokenizer_fingerprint:
        raise UserError(f"{parent.name} and {config.name} have different tokenizers")


def _check_scale(config: RunConfig, parent: RunConfig) -> None:
    """Raises UserError when the run asks for another kind of normalizer than that which it will take over."""
    asked, before = config.data.action_scale, parent.data.action_scale
    if asked == before or "normalizer" in config.init_changes:
        return
    if any(member.known_actions for member in open_mixture(parent.data)):
        raise UserError(
            f"data.action_scale={asked} would not be applied: {config.name} takes over the normalizer of {parent.name}"
            f", which is {before}. Set data.action_scale={before}, or fit one of its own with init_changes=normalizer"
        )
