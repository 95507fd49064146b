"""A private Prefect server that serves a site: its deployments, and a worker for them, in a folder of its own."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from flows.runtime.server import Server, client_environment, local_server, stop

ROOT = Path(__file__).resolve().parents[2]
UWM = (sys.executable, "-c", "from flows.cli import main; main()")


@dataclass(frozen=True)
class Site:
    """A server, and the folder that flow runs work in."""

    server: Server
    folder: Path

    @property
    def url(self) -> str:
        """Of the server's pages."""
        return self.server.url

    def environment(self) -> dict[str, str]:
        """Variables of commands and of the worker."""
        return {**environment(), **client_environment(self.server)}

    def uwm(self, *arguments: str) -> None:
        """Run a command of ours. Raises CalledProcessError."""
        uwm(self.folder, self.environment(), *arguments)

    @contextlib.contextmanager
    def worker(self) -> Iterator[None]:
        """A worker that takes flow runs until the block ends."""
        with (self.folder / "worker.log").open("wb") as log:
            process = subprocess.Popen(
                [*UWM, "worker"], cwd=self.folder, env=self.environment(), stdout=log, stderr=log
            )
        try:
            yield
        finally:
            stop(process)

    @contextlib.contextmanager
    def browsing(self, store: str) -> Iterator[str]:
        """The pages of a dataset, at the address that is yielded, until the block ends."""
        command = [*UWM, "browse", store, "--port", "0"]
        variables, pipe = self.environment(), subprocess.PIPE
        with subprocess.Popen(command, cwd=self.folder, env=variables, stdout=pipe, text=True) as process:
            try:
                assert process.stdout
                yield process.stdout.readline().split()[0]
            finally:
                stop(process)


@contextlib.contextmanager
def serve(folder: Path, home: str = "prefect") -> Iterator[Site]:
    """Run a server for the folder until the block ends; it keeps its database in `home` of it."""
    with local_server(folder / home, port=0) as server:
        yield Site(server, folder)


def environment() -> dict[str, str]:
    """Variables of this process without what would lead commands to another server or other data."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "UWM_"))}
    return {**kept, "PYTHONPATH": str(ROOT)}


def uwm(folder: Path, variables: dict[str, str], *arguments: str) -> None:
    """Run a command of ours in a folder. Raises CalledProcessError."""
    subprocess.run([*UWM, *arguments], cwd=folder, env=variables, check=True)
