"""Flows that keep a site in order: cached latents, and what crashed writers left behind."""

from dataclasses import asdict
from datetime import timedelta
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE

from flows.forms import AS_THE_RECIPE, RecipeName, Settings
from flows.jobs import make_config
from flows.refusal import refusing, settled
from flows.slots import gpu_slot
from storage_schemas.errors import UserError
from storage_schemas.orphans import collect_orphans


@task(name="encode latents", cache_policy=NO_CACHE)
@refusing
def encode_latents(recipe: str, overrides: tuple[str, ...], variants: int, seed: int) -> list[dict[str, Any]]:
    """Encode what is missing."""
    from uwm.train.encode import encode_run

    config = make_config(recipe, overrides)
    if not config.data.latents:
        raise UserError("give the latents a name: data.latents=NAME")
    logger = get_run_logger()

    def log(done: int, total: int) -> None:
        if done == total or done % 100 == 0:
            logger.info("%s of %s", done, total)

    return [asdict(report) for report in encode_run(config, variants=variants, seed=seed, progress=log)]


@flow(name="latents", flow_run_name="latents of {recipe}")
@refusing
def latents(
    recipe: RecipeName,
    overrides: tuple[str, ...] = (),
    settings: Settings = AS_THE_RECIPE,
    variants: int = 1,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Encode the datasets of a run once, so that it trains without its tokenizer; only what is missing is encoded.

    Args:
        recipe: recipe of the run that shall train on them.
        overrides: key=value pairs; data.latents=NAME names the latents.
        settings: the fields of the recipe that are most often replaced.
        variants: augmented variants of every frame.
        seed: of the variants.
    """
    given = (*settings.overrides(), *overrides)
    with gpu_slot():
        return settled(encode_latents)(recipe, given, variants, seed)


@flow(name="gc", flow_run_name="gc {stores}")
@refusing
def gc(stores: list[str], age_hours: float = 24.0, delete: bool = False) -> dict[str, int]:
    """List, or delete, what crashed writers have left and no version names. Old versions stay readable.

    Args:
        stores: datasets.
        age_hours: safety age; younger files may be in the making.
        delete: delete what was found; by default it is only listed.
    """
    logger = get_run_logger()
    found = {}
    for store in stores:
        report = collect_orphans(store, age=timedelta(hours=age_hours), remove=delete)
        found[store] = report.bytes
        logger.info(
            "%s: %d orphans with %d bytes %s, %d younger left alone",
            store,
            len(report.orphans),
            report.bytes,
            "deleted" if delete else "found",
            report.young,
        )
    return found
