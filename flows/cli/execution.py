"""Who carries out the jobs of a command: Prefect flows, or plain functions with progress bars."""

from typing import TYPE_CHECKING, Any

from flows.cli.console import note, progress_bar
from storage_schemas.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.progress import Progress, TaskID

    from flows.jobs.evaluate import Evaluated
    from flows.jobs.ingest import Ingested
    from flows.jobs.pipeline import Steps
    from flows.jobs.train import Trained
    from uwm.data.latents import EncodeReport
    from uwm.events import TrainEvent


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


def carried_out(flow: bool | None, *, quiet: bool) -> "Steps":
    """The three jobs as flows or as plain functions; `quiet` shows no progress of the latter."""
    if use_flow(flow):
        from flows.pipeline import as_flows

        return as_flows()
    return Here(quiet=quiet).steps()


def encoded(flow: bool | None, *, quiet: bool) -> "Callable[..., tuple[EncodeReport, ...]]":
    """The encoding of latents as a flow or as a plain function; `quiet` shows no progress of the latter."""
    if use_flow(flow):
        from flows.encode_latents import latents
        from flows.runtime.user_errors import as_function

        return as_function(latents)
    return Here(quiet=quiet).encode


def without_runner(options: dict[str, Any]) -> dict[str, Any]:
    """The options of a job that is done in this process.

    Raises:
        UserError: when one of them asks for a runner.
    """
    if any(options.get(name) is not None for name in ("runner", "workers", "cluster")):
        raise UserError("--runner, --workers and --cluster need a Prefect server: set PREFECT_API_URL to its address")
    return {name: value for name, value in options.items() if name not in ("runner", "workers", "cluster")}


class Here:
    """The jobs in this process, with their progress on stderr."""

    def __init__(self, *, quiet: bool) -> None:
        self.quiet = quiet

    def steps(self) -> "Steps":
        """All three of them."""
        from flows.jobs.pipeline import Steps

        return Steps(ingest=self.ingest, train=self.train, evaluate=self.evaluate)

    def ingest(self, source: str, store: str, **options: Any) -> "Ingested":
        """Ingest with a bar of references."""
        from flows.jobs.ingest import run_ingest

        options = without_runner(options)
        with progress_bar(quiet=self.quiet) as display:
            task = display.add_task("ingest", total=None)
            return run_ingest(
                source, store, **options, progress=lambda p: display.update(task, completed=p.done, total=p.total)
            )

    def train(self, recipe: str, overrides: tuple[str, ...]) -> "Trained":
        """Train with a bar of steps."""
        from flows.jobs.train import run_training

        with progress_bar(quiet=self.quiet) as display:
            follower = Follower(display, quiet=self.quiet)
            return run_training(recipe, overrides, on_event=follower)

    def evaluate(self, checkpoint: str, store: str, **options: Any) -> "Evaluated":
        """Evaluate with a bar of segments."""
        from flows.jobs.evaluate import run_evaluation

        with progress_bar(quiet=self.quiet) as display:
            task = display.add_task("evaluate", total=None)
            return run_evaluation(
                checkpoint,
                store,
                **options,
                progress=lambda done, total: display.update(task, completed=done, total=total),
            )

    def encode(self, recipe: str, overrides: tuple[str, ...], **options: Any) -> "tuple[EncodeReport, ...]":
        """Encode latents with a bar of batches."""
        from flows.jobs.train import make_config
        from uwm.encode_latents import encode_run

        options = without_runner(options)
        config = make_config(recipe, overrides)
        with progress_bar(quiet=self.quiet) as display:
            task = display.add_task("encode", total=None)
            return encode_run(
                config, **options, progress=lambda done, total: display.update(task, completed=done, total=total)
            )


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
        if isinstance(event, TrainProgress) and self.task is not None:
            self.display.update(self.task, completed=event.step)
        if not self.quiet:
            if self.display.disable:
                note(describe(event))
            else:
                self.display.console.print(describe(event), highlight=False, markup=False)
