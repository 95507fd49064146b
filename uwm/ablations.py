"""Ablations: named variants of any recipe, each of which changes one thing.

An ablation is a question with levels; a level is a recipe's settings, as on the command line. Where the published
implementation and this project's recipes differ, both are levels. A level that a base has already is the base: it
is trained once, however many ablations name it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from storage_schemas.errors import UserError
from uwm.config import RunConfig
from uwm.overrides import apply_overrides

BASE = "base"
"""The run of the base itself."""


@dataclass(frozen=True, kw_only=True)
class Level:
    """One answer to an ablation's question."""

    name: str
    settings: tuple[str, ...]
    origin: Literal["published", "corrected", "both", "other"] = "other"
    """Whether it is the published implementation's, that of recipe `uwm`, of both or of neither."""


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """A question about the method, and what can be put in the place in question."""

    name: str
    question: str
    levels: tuple[Level, ...]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A level applied to a base."""

    ablation: Ablation
    level: Level
    config: RunConfig
    """The base with the level's settings."""
    run: str
    """Name of the run that trains it; `BASE` when the base has this level."""


ABLATIONS = {
    ablation.name: ablation
    for ablation in (
        Ablation(
            name="registers",
            question="do register tokens help (arXiv 2309.16588)?",
            levels=(
                Level(name="0", settings=("policy.num_registers=0",)),
                Level(name="8", settings=("policy.num_registers=8",), origin="both"),
            ),
        ),
        Ablation(
            name="masked-loss",
            question="do unknown actions belong into the loss? It takes action-free data to tell",
            levels=(
                Level(name="all", settings=("policy.diffusion.action_loss=all",), origin="published"),
                Level(name="masked", settings=("policy.diffusion.action_loss=masked",), origin="corrected"),
            ),
        ),
        Ablation(
            name="augmentation",
            question="is crop and colour drawn for a batch or for every sample?",
            levels=(
                Level(name="batch", settings=("data.augmentation=batch",), origin="published"),
                Level(name="sample", settings=("data.augmentation=sample",), origin="corrected"),
                Level(name="none", settings=("data.augmentation=none",)),
            ),
        ),
        Ablation(
            name="ema",
            question="are averaged weights better ones?",
            levels=(
                Level(name="0", settings=("optim.ema_decay=0",), origin="published"),
                Level(name="0.999", settings=("optim.ema_decay=0.999",), origin="corrected"),
            ),
        ),
        Ablation(
            name="conventions",
            question="where does the sampling grid start, and what marks an absent modality?",
            levels=(
                Level(
                    name="90-and-90",
                    settings=("policy.diffusion.spacing=leading", "policy.diffusion.absent=first_sampled"),
                    origin="published",
                ),
                Level(
                    name="90-and-99",
                    settings=("policy.diffusion.spacing=leading", "policy.diffusion.absent=last_trained"),
                ),
                Level(
                    name="99-and-99",
                    settings=("policy.diffusion.spacing=trailing", "policy.diffusion.absent=last_trained"),
                    origin="corrected",
                ),
                Level(
                    name="99-and-learned",
                    settings=("policy.diffusion.spacing=trailing", "policy.diffusion.absent_embedding=true"),
                ),
            ),
        ),
        Ablation(
            name="prediction",
            question="what does the network predict?",
            levels=(
                Level(name="epsilon", settings=("policy.diffusion.prediction=epsilon",), origin="both"),
                Level(name="sample", settings=("policy.diffusion.prediction=sample",)),
                Level(name="v", settings=("policy.diffusion.prediction=v",)),
            ),
        ),
        Ablation(
            name="adaln",
            question="does every block need its own modulation, most of the parameters?",
            levels=(
                Level(name="full", settings=("policy.adaln=full",), origin="both"),
                Level(name="low-rank", settings=("policy.adaln=low_rank",)),
                Level(name="shared", settings=("policy.adaln=shared",)),
            ),
        ),
        Ablation(
            name="token-dropout",
            question="what does it cost that the policy can run without next-observation tokens?",
            levels=(
                Level(name="0", settings=("policy.token_dropout=0",), origin="both"),
                Level(name="0.2", settings=("policy.token_dropout=0.2",)),
            ),
        ),
    )
}


def find_ablations(names: Sequence[str]) -> tuple[Ablation, ...]:
    """The ablations of these names, in this order; all when there is no name. Dashes and underscores are one.

    Raises:
        UserError: when there is no such ablation; names all there are.
    """
    chosen = [name.strip().replace("_", "-") for name in names]
    for name in chosen:
        if name not in ABLATIONS:
            raise UserError(f"unknown ablation {name!r}: it is one of {', '.join(ABLATIONS)}")
    return tuple(ABLATIONS[name] for name in dict.fromkeys(chosen)) or tuple(ABLATIONS.values())


def variants(base: RunConfig, ablations: Sequence[Ablation]) -> tuple[Variant, ...]:
    """Every level of the ablations, applied to a base.

    Raises:
        UserError: when a level does not fit the base.
    """
    return tuple(_variant(base, ablation, level) for ablation in ablations for level in ablation.levels)


def _variant(base: RunConfig, ablation: Ablation, level: Level) -> Variant:
    config = apply_overrides(base, level.settings)
    run = BASE if config == base else f"{ablation.name}-{level.name}"
    return Variant(ablation=ablation, level=level, config=config, run=run)
