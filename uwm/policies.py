"""The policies by name, and the untrained network of a run."""

from collections.abc import Callable

from torch import nn

from uwm.config import RunConfig


def build(config: RunConfig) -> nn.Module:
    """The untrained network of a run: a tokenizer for the tokenizer stage, a policy otherwise.

    Raises:
        UserError: when the run's tokenizer can't be loaded.
    """
    if config.stage == "tokenizer":
        from uwm.model.autoencoder import Autoencoder

        return Autoencoder(config.autoencoder)
    return _policy_class(config.policy)(config)


def _policy_class(name: str) -> Callable[[RunConfig], nn.Module]:
    """What builds a policy, imported when it is wanted."""
    if name == "pad":
        from uwm.baselines.pad import PADPolicy

        return PADPolicy
    if name in ("dp", "dp_unet"):
        from uwm.baselines.diffusion_policy import DiffusionPolicy

        return DiffusionPolicy
    if name == "gr1":
        from uwm.baselines.gr1 import GR1Policy

        return GR1Policy
    from uwm.model.uwm import UWMPolicy

    return UWMPolicy
