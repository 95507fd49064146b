"""The flow `latents`: the datasets of a run are encoded ahead of its training."""

from prefect import flow, get_run_logger

from flows.deploy.forms import AS_THE_RECIPE, RecipeName, Settings
from flows.jobs.train import make_config
from flows.runtime.gpu_slots import gpu_slot
from flows.runtime.task_runners import RunnerName, TaskExecutor, choose
from flows.runtime.user_errors import failing_on_user_error
from uwm.data.latents import EncodeReport
from uwm.encode_latents import BATCH_EPISODES, encode_run


@flow(name="latents", flow_run_name="latents of {recipe}")
@failing_on_user_error
def latents(
    recipe: RecipeName,
    overrides: tuple[str, ...] = (),
    settings: Settings = AS_THE_RECIPE,
    variants: int = 1,
    seed: int = 0,
    batch_episodes: int = BATCH_EPISODES,
    runner: RunnerName | None = None,
    workers: int | None = None,
    cluster: str | None = None,
) -> tuple[EncodeReport, ...]:
    """Encode the datasets of a run once, so that it trains without its tokenizer; only what is missing is encoded.

    Args:
        recipe: of the run that shall train on them.
        overrides: key=value pairs that replace fields of its configuration; data.latents=NAME is needed.
        settings: the fields of the recipe that are most often replaced.
        variants: augmented variants of every frame.
        seed: of the variants.
        batch_episodes: episodes per task run, at least.
        runner: what carries out the task runs; threads by default.
        workers: batches at once: one thread by default, or as many processes as there are cores.
        cluster: address of a Dask scheduler that runs already.
    """
    logger = get_run_logger()
    chosen = choose(runner, workers, cluster)
    with gpu_slot(), TaskExecutor(chosen, "encode") as executor:
        return encode_run(
            make_config(recipe, (*settings.overrides(), *overrides)),
            variants=variants,
            seed=seed,
            batch_episodes=batch_episodes,
            executor=executor,
            in_flight=chosen.in_flight,
            progress=lambda done, total: logger.info("%s of %s batches", done, total),
        )
