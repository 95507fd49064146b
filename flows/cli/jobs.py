"""Who carries out the jobs of a command: Prefect flows, or plain functions with progress bars."""

from typing import TYPE_CHECKING

from flows.cli.console import count, note, progress_bar, telling_what_is_kept
from flows.jobs.options import RUNNER_DEFAULTS, LatentsOptions, RunnerOptions
from pipelines.options import IngestOptions
from storage_schemas.errors import UserError
from uwm.eval.options import EVAL_DEFAULTS, EvalOptions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.progress import Progress, TaskID
    from rich.table import Table

    from flows.jobs.evaluate import Evaluated
    from flows.jobs.ingest import Ingested
    from flows.jobs.pipeline import Jobs
    from flows.jobs.train import Trained
    from uwm.config import RunConfig
    from uwm.events import DatasetPlan, TrainEvent
    from uwm.latents.shards import EncodeReport


def use_flow(flow: bool | None) -> bool:
    """Whether a command runs as a Prefect flow: as told, else when a server is configured.

    Raises:
        UserError: when a flow is wanted and no server answers.
    """
    if flow is False:
        return False
    from flows.runtime.server import configured_api_url, require_server

    api_url = configured_api_url()
    if not api_url:
        if flow:
            raise UserError("--flow needs a Prefect server: set PREFECT_API_URL to its address")
        return False
    require_server(api_url)
    return True


def jobs_of(flow: bool | None, *, quiet: bool) -> "Jobs":
    """The three jobs as flows or as plain functions; `quiet` shows no progress of the latter."""
    if use_flow(flow):
        from flows.pipeline import FlowJobs

        return FlowJobs()
    return LocalJobs(quiet=quiet)


def _needs_no_runner(runner: "RunnerOptions") -> None:
    """Check the options of a job that is done in this process. Raises UserError when they ask for a runner."""
    if runner.model_fields_set:
        raise UserError("--runner, --workers and --cluster need a Prefect server: set PREFECT_API_URL to its address")


class LocalJobs:
    """The jobs in this process, with their progress on stderr."""

    def __init__(self, *, quiet: bool) -> None:
        self.quiet = quiet

    def ingest(
        self, source: str, store: str, options: IngestOptions, runner: RunnerOptions = RUNNER_DEFAULTS
    ) -> "Ingested":
        """Ingest with a bar of references."""
        from flows.jobs.ingest import run_ingest

        _needs_no_runner(runner)
        with telling_what_is_kept(lambda: _kept_episodes(store)), progress_bar(quiet=self.quiet) as display:
            task = display.add_task("ingest", total=None)
            return run_ingest(
                source, store, options, progress=lambda p: display.update(task, completed=p.done, total=p.total)
            )

    def train(self, config: "RunConfig") -> "Trained":
        """Train with a bar of steps."""
        from flows.jobs.train import run_training

        with telling_what_is_kept(lambda: _kept_checkpoint(config)), progress_bar(quiet=self.quiet) as display:
            return run_training(config, on_event=Follower(display, quiet=self.quiet))

    def evaluate(self, checkpoint: str, store: str, options: EvalOptions = EVAL_DEFAULTS) -> "Evaluated":
        """Evaluate with a bar of segments."""
        from flows.jobs.evaluate import run_evaluation

        with progress_bar(quiet=self.quiet) as display:
            task = display.add_task("evaluate", total=None)
            return run_evaluation(
                checkpoint,
                store,
                options,
                progress=lambda done, total: display.update(task, completed=done, total=total),
            )

    def encode(self, config: "RunConfig", options: LatentsOptions, runner: RunnerOptions) -> "tuple[EncodeReport, ...]":
        """Encode latents with a bar of batches."""
        from uwm.latents.encode import encode_run

        _needs_no_runner(runner)
        batches = "no batch"

        def show(done: int, total: int) -> None:
            nonlocal batches
            batches = f"{done:,} of {total:,} batches"
            display.update(task, completed=done, total=total)

        kept = telling_what_is_kept(lambda: f"{batches} encoded; what is written stays, the same command goes on")
        with kept, progress_bar(quiet=self.quiet) as display:
            task = display.add_task("encode", total=None)
            return encode_run(
                config,
                variants=options.variants,
                seed=options.seed,
                batch_episodes=options.batch_episodes,
                progress=show,
            )


def plans_table(plans: "Sequence[DatasetPlan]") -> "Table":
    """What a run makes of its datasets, for a terminal."""
    from rich.table import Table
    from rich.text import Text

    table = Table("dataset", "", "what the run makes of it", title="Data", title_justify="left")
    for plan in plans:
        for index, (name, text) in enumerate(plan.facts.items()):
            uri = f"{plan.uri}@{plan.version}" if index == 0 else ""
            table.add_row(Text(uri, overflow="fold"), name, Text(text, overflow="fold"))
        table.add_section()
    return table


def _kept_episodes(store: str) -> str:
    from storage_schemas.catalog.table import dataset_exists
    from storage_schemas.store.dataset import open_dataset

    try:
        if not dataset_exists(store):
            return "nothing is stored yet; the same command begins anew"
        dataset = open_dataset(store)
    except UserError as error:
        return f"what is stored can't be read now ({error}); the same command goes on"
    episodes = count(len(dataset), "whole episode")
    return f"{store} is at version {dataset.version} with {episodes}; the same command brings in the rest"


def _kept_checkpoint(config: "RunConfig") -> str:
    from uwm.checkpoint import latest_checkpoint

    checkpoint = latest_checkpoint(config.folder)
    if checkpoint is None:
        return "there is no checkpoint yet; the same command begins anew"
    return f"the same command goes on from {checkpoint}"


class Follower:
    """Shows the events of a training process: a bar on a terminal, lines elsewhere."""

    def __init__(self, display: "Progress", *, quiet: bool) -> None:
        self.display = display
        self.quiet = quiet
        self.task: TaskID | None = None

    def __call__(self, event: "TrainEvent") -> None:
        """Show one event."""
        from flows.jobs.training_messages import describe
        from uwm.events import TrainProgress, TrainStarted

        if isinstance(event, TrainStarted):
            self.task = self.display.add_task(f"train {event.name}", total=event.steps, completed=event.step)
        if isinstance(event, TrainProgress) and self.task is not None and not self.display.disable:
            self.display.update(self.task, completed=event.step)
        if not self.quiet:
            if self.display.disable:
                note(describe(event))
            else:
                line = describe(event).partition("\n")[0]  # the table says the rest
                self.display.console.print(line, highlight=False, markup=False)
                if isinstance(event, TrainStarted) and event.plans:
                    self.display.console.print(plans_table(event.plans))
