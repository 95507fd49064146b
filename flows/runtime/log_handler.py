"""Logging of a flow run that survives the loss of whoever reads its output."""

from contextlib import suppress
from logging import LogRecord

from prefect.logging.handlers import PrefectConsoleHandler


class BrokenPipeSafeHandler(PrefectConsoleHandler):
    """Prefect's, for flow runs of a worker: a run whose worker was killed still reports to the server how it ended."""

    def emit(self, record: LogRecord) -> None:
        """Print a record, or nothing more once nobody reads."""
        with suppress(SystemExit):  # rich's answer to a broken pipe; it is silent from then on
            super().emit(record)
