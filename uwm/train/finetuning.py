"""What a run takes over from its parent means the same in it, or the run says that it shall not.

Weights of the same shapes load, whatever they have learned: the wrong camera first, noise where the clean sample is
asked for, metres where there are millimetres now. All of that is compared before the first step.
"""

from collections.abc import Sequence
from typing import get_args

import numpy as np
import torch

from storage_schemas.errors import UserError
from uwm.checkpoint import Checkpoint
from uwm.config import InitChange, RunConfig
from uwm.data.mixture import Member, known_actions
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


def share_beyond(normalizer: ActionNormalizer, members: Sequence[Member], config: RunConfig) -> float:
    """How much of the run's actions the parent's normalizer puts beyond what sampling can reach.

    Returns:
        The share of the steps in the worst dimension; 0 when sampling knows no bound.

    Raises:
        UserError: when it is more than `MOST_BEYOND`, or the actions fill next to nothing of the parent's range.
    """
    used = [member for member in members if member.known_actions(config.data.action_dim)]
    if not used:
        return 0.0
    actions = torch.from_numpy(np.concatenate([known_actions(member) for member in used]))
    values = normalizer.normalize(actions.double())  # (n, A)
    advice = "see that units and action space are the parent's, or fit a normalizer with init_changes=normalizer"
    spread = float(values.std(dim=0, correction=0).max())
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


def _text(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
