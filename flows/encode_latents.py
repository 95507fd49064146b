"""The flow `latents`: the datasets of a run are encoded ahead of its training."""

from prefect import flow, get_run_logger

from flows.deploy.forms import AS_THE_RECIPE, Settings
from flows.jobs.options import LATENTS_DEFAULTS, RUNNER_DEFAULTS, LatentsOptions, Pair, RunnerOptions
from flows.runtime.gpu_slots import gpu_slot
from flows.runtime.task_runners import TaskExecutor
from flows.runtime.user_errors import failing_on_user_error
from uwm.latents.encode import encode_run
from uwm.latents.shards import EncodeReport
from uwm.overrides import apply_overrides
from uwm.recipes import RecipeName, get_recipe


@flow(name="latents", flow_run_name="latents of {recipe}")
@failing_on_user_error
def latents(
    recipe: RecipeName,
    overrides: tuple[Pair, ...] = (),
    settings: Settings = AS_THE_RECIPE,
    options: LatentsOptions = LATENTS_DEFAULTS,
    runner: RunnerOptions = RUNNER_DEFAULTS,
) -> tuple[EncodeReport, ...]:
    """Encode the datasets of a run once, so that it trains without its tokenizer; only what is missing is encoded.

    Args:
        recipe: of the run that shall train on them.
        overrides: key=value pairs that replace fields of its configuration; data.latents=NAME is needed.
        settings: the fields of the recipe that are most often replaced.
        options: how the datasets are encoded.
        runner: what carries out the task runs.
    """
    logger = get_run_logger()
    chosen = runner.choose()
    with gpu_slot(), TaskExecutor(chosen, "encode") as executor:
        return encode_run(
            apply_overrides(settings.applied_to(get_recipe(recipe)), overrides),
            variants=options.variants,
            seed=options.seed,
            batch_episodes=options.batch_episodes,
            executor=executor,
            in_flight=chosen.in_flight,
            progress=lambda done, total: logger.info("%s of %s batches", done, total),
        )
