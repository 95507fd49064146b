from collections.abc import Callable

import pytest

from storage_schemas.errors import UserError
from uwm.ablations import ABLATIONS, BASE, Variant, find_ablations, variants
from uwm.config import RunConfig
from uwm.overrides import apply_overrides
from uwm.policies import build
from uwm.recipes import get_recipe


def test_levels_are_what_they_say_they_are() -> None:
    """Published levels leave the published recipe as it is, corrected ones `uwm`, and each leaves only its own so."""
    for ablation in ABLATIONS.values():
        for level in ablation.levels:
            kept = {name for name in ("uwm_paper", "uwm") if _changes_nothing(name, level.settings)}
            said = {"published": {"uwm_paper"}, "corrected": {"uwm"}, "both": {"uwm_paper", "uwm"}, "other": set()}
            assert kept == said[level.origin], (ablation.name, level.name)


def test_each_ablation_has_the_published_and_the_corrected_side() -> None:
    for ablation in ABLATIONS.values():
        origins = [level.origin for level in ablation.levels]
        assert origins.count("both") == 1 or (origins.count("published"), origins.count("corrected")) == (1, 1)


@pytest.mark.parametrize("variant", variants(get_recipe("debug"), find_ablations(())), ids=lambda variant: variant.run)
def test_variants_of_a_small_base_build(variant: Variant, debug_run: Callable[..., RunConfig]) -> None:
    assert build(debug_run("data/droid", *variant.level.settings))


def test_a_level_of_the_base_is_the_base() -> None:
    found = variants(get_recipe("uwm"), find_ablations(["registers", "token_dropout"]))
    assert [variant.run for variant in found] == ["registers-0", BASE, BASE, "token-dropout-0.2"]


def test_an_unknown_ablation_is_named() -> None:
    with pytest.raises(UserError, match="unknown ablation 'regsters': it is one of registers, masked-loss"):
        find_ablations(["regsters"])


def _changes_nothing(recipe: str, settings: tuple[str, ...]) -> bool:
    config: RunConfig = get_recipe(recipe)
    return apply_overrides(config, settings) == config
