"""What a run takes over from its parent means the same in it, or the run says that it shall not.

Weights of the same shapes load, whatever they have learned: the wrong camera first, noise where the clean sample is
asked for, metres where there are millimetres now. All of that is compared before the first step.
"""

from collections.abc import Sequence
from typing import get_args

import torch
from torch import Tensor

from storage_schemas.errors import UserError
from uwm.checkpoint import Checkpoint
from uwm.conditions import RunState
from uwm.config import InitChange, RunConfig
from uwm.data.mixture import Member, known_actions, mixture_normalizer
from uwm.data.normalize import ActionNormalizer
from uwm.train.resume import fixed_settings

MOST_BEYOND = 0.2
"""Share of the steps that may lie beyond the parent's range, where training goes but sampling can't follow."""
LEAST_SPREAD = 0.02
"""Deviation of the actions, of a parent's half range, below which they are in other units than the parent's."""


def check_meaning(parent: Checkpoint, config: RunConfig, tokenizer: str) -> None:
    """Compare what the parent's weights stand for with what the run makes of them.

    Args:
        parent: whose weights the run starts from.
        config: of the run; `init_changes` says what may differ.
        tokenizer: fingerprint of the run's.

    Raises:
        UserError: when they differ in a way that the run does not declare.
    """
    check_shapes(parent, config, tokenizer)
    check_changes(parent.config, config, str(parent.path))


def check_changes(parent: RunConfig, config: RunConfig, parent_name: str) -> None:
    """Raises UserError when a run differs from its parent in a setting of meaning that it does not declare."""
    before, now = _settings(parent), _settings(config)
    for name in get_args(InitChange):
        if name == "data.language.identity" and None in (before.get(name), now.get(name)):
            continue  # weights of a run that hears nothing don't fit; an encoder that was not asked yet is asked later
        if name == "data.action" and before.get(name) is None:  # nobody had said what they mean
            continue
        if before.get(name) != now.get(name) and name not in config.init_changes:
            raise UserError(
                f"{parent_name} was trained with {name}={_text(before.get(name))}, the run has {_text(now.get(name))}: "
                f"set it as it was, or declare the change with init_changes={name}"
            )


def _settings(config: RunConfig) -> dict[str, object]:
    """Every fixed setting by its name, and the names of the observed states as one."""
    return fixed_settings(config) | {"data.states": tuple(state.name for state in config.data.states)}


def check_shapes(base: Checkpoint, config: RunConfig, tokenizer: str) -> None:
    """Raises UserError when the run's latents or actions are not those of the checkpoint that it starts from."""
    if base.state.tokenizer != tokenizer:
        raise UserError(f"{base.path} was trained on latents of another tokenizer: {base.state.tokenizer}")
    if base.normalizer.action_dim != config.data.action_dim:
        raise UserError(
            f"{base.path} has {base.normalizer.action_dim} action dimensions, the run {config.data.action_dim}"
        )


def parents_normalizer(parent: Checkpoint, config: RunConfig) -> ActionNormalizer | None:
    """The parent's normalizer, which a run takes over unless the parent saw no actions or the run declares its own.

    Raises:
        UserError: when the run asks for another kind of normalizer without declaring one.
    """
    normalizer = parent.normalizer
    if not normalizer.count or "normalizer" in config.init_changes:
        return None
    if normalizer.scale != config.data.action_scale:
        raise UserError(
            f"data.action_scale={config.data.action_scale} would not be applied: the run takes over the normalizer of "
            f"{parent.path}, which is {normalizer.scale}. Set data.action_scale={normalizer.scale}, or fit one of its "
            "own with init_changes=normalizer"
        )
    return normalizer


def with_new_robots(
    normalizer: ActionNormalizer, robots: Sequence[str], members: Sequence[Member], states: Sequence[RunState] = ()
) -> ActionNormalizer:
    """A parent's normalizer, and of each robot that the parent did not know one of its own.

    Args:
        normalizer: the parent's.
        robots: that the parent knew; one that knew none, by name, is taken for all.
        members: of the run.
        states: that the run observes.
    """
    new = dict.fromkeys(member.ref.embodiment for member in members if member.known_actions)
    names = [name for name in new if name and name not in robots]
    if not (robots and names):
        return normalizer
    known = {name: normalizer.of(name).model_copy(update={"robots": {}}) for name in robots}
    own = {
        name: mixture_normalizer(
            [member for member in members if member.ref.embodiment == name], normalizer.scale, states
        )
        for name in names
    }
    return normalizer.model_copy(update={"robots": known | own})


def share_beyond(normalizer: ActionNormalizer, members: Sequence[Member], config: RunConfig) -> float:
    """How much of the run's actions the parent's normalizer puts beyond what sampling can reach.

    Returns:
        The share of the steps in the worst dimension; 0 when sampling knows no bound.

    Raises:
        UserError: when it is more than `MOST_BEYOND`, or the actions fill next to nothing of the parent's range.
    """
    used = [member for member in members if member.known_actions]
    if not used:
        return 0.0
    parts = [
        normalizer.of(member.ref.embodiment).normalize(torch.from_numpy(known_actions(member)).double())
        for member in used
    ]
    values = torch.cat(parts)  # (n, A); not a number where a robot has none
    advice = "see that units and action space are the parent's, or fit a normalizer with init_changes=normalizer"
    spread = float(_spread(values).max())
    if len(values) > 1 and spread < LEAST_SPREAD:
        raise UserError(f"the actions fill {spread:.2%} of the parent's range: {advice}")
    bound = config.policy.diffusion.clip_action if config.policy.diffusion else None
    if bound is None:
        return 0.0
    beyond = (values.abs() > bound * (1 + 1e-6)).double().mean(dim=0)  # (A,)
    share, dimension = float(beyond.max()), int(beyond.argmax())
    if share > MOST_BEYOND:
        raise UserError(f"{share:.0%} of the actions lie beyond the parent's range in dimension {dimension}: {advice}")
    return share


def _spread(values: Tensor) -> Tensor:
    """Deviation (A,) of what is known of (n, A)."""
    if not bool(values.isnan().any()):
        return values.std(dim=0, correction=0)
    centred = values - values.nanmean(dim=0)
    return centred.square().nanmean(dim=0).sqrt().nan_to_num()


def _text(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
