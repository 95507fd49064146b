"""A progress bar on the page of a run, which the work itself never waits for."""

from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from typing import Any
from uuid import UUID

from prefect import get_run_logger
from prefect.artifacts import create_progress_artifact, update_progress_artifact


class ProgressArtifact:
    """A progress artifact, brought to the server in a thread: a server that hangs or is lost costs the bar, no more.

    While a figure is under way newer ones are left out, except for the last.

    Args:
        key: of the artifact.
        description: what progresses.
    """

    def __init__(self, key: str, description: str) -> None:
        self._key = key
        self._description = description
        self._logger = get_run_logger()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="progress")
        self._sent: Future[None] | None = None
        self._id: UUID | None = None

    def show(self, percent: float) -> None:
        """Show how much is done, of 100."""
        if self._sent and not self._sent.done() and percent < 100:
            return
        if self._sent and self._sent.done() and (error := self._sent.exception()):
            self._logger.warning("the progress on the page stands still, the work goes on: %s", error)
        self._sent = self._thread.submit(copy_context().run, self._send, percent)

    def _send(self, percent: float) -> None:
        if self._id is None:
            artifact: Any = create_progress_artifact(percent, key=self._key, description=self._description)
            self._id = UUID(str(artifact))
        else:
            update_progress_artifact(self._id, percent)
