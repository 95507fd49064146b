"""Where the Prefect server is, and a private one for machines that have none.

Prefect takes settings from variables, from `.env`, `prefect.toml` and `pyproject.toml` of the folder it is started in,
and from a profile, in this order. A private server and its clients get none of those that are about another server.
"""

import contextlib
import http.client
import importlib
import os
import socket
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from flows.runtime.end_with_parent import ending_with_parent
from storage_schemas.errors import UserError

API_VARIABLE = "PREFECT_API_URL"
START_SECONDS = 180.0
STOP_SECONDS = 15.0
DEFAULT_PORT = 4200
LOOPBACK = "127.0.0.1"

_SILENT = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_UI_V2_ENABLED": "false",
    "PREFECT_CLI_PROMPT": "false",
}


@dataclass(frozen=True, kw_only=True)
class Server:
    """A running Prefect server."""

    url: str
    """URL of the web pages, without a slash at the end."""
    home: Path
    """Folder of its database and log."""
    process: subprocess.Popen[bytes]

    @property
    def api_url(self) -> str:
        """What PREFECT_API_URL takes."""
        return f"{self.url}/api"


def configured_api_url() -> str:
    """The server that the user set up: PREFECT_API_URL, else the active profile's; empty when there is none."""
    if API_VARIABLE in os.environ:
        return os.environ[API_VARIABLE]
    home = Path(os.environ.get("PREFECT_HOME", "~/.prefect")).expanduser()
    path = Path(os.environ.get("PREFECT_PROFILES_PATH") or home / "profiles.toml").expanduser()
    try:
        profiles = tomllib.loads(path.read_text())
    except FileNotFoundError:
        return ""
    except (OSError, ValueError) as error:
        raise UserError(f"can't read the Prefect profiles in {path}: {error}") from error
    active = os.environ.get("PREFECT_PROFILE") or profiles.get("active", "")
    profile = profiles.get("profiles", {}).get(active, {})
    return str(profile.get(API_VARIABLE, ""))


def is_healthy(api_url: str, timeout: float = 5.0) -> bool:
    """Whether a Prefect API answers at `api_url`."""
    request = urllib.request.Request(f"{api_url.rstrip('/')}/health", headers=_credentials())  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:  # noqa: S310
            return int(response.status) == http.HTTPStatus.OK
    except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError):
        return False


def _credentials() -> dict[str, str]:
    key = os.environ.get("PREFECT_API_KEY")
    return {"Authorization": f"Bearer {key}"} if key else {}


def require_server(api_url: str) -> None:
    """Check that the configured server is up before work starts on it.

    Raises:
        UserError: when nothing answers.
    """
    _pass_by_proxies()
    if not is_healthy(api_url, timeout=30):  # only a busy server takes that long to answer
        raise UserError(f"no Prefect server answers at {api_url}: start it, or pass --no-flow to work without one")


def free_port(preferred: int = 0) -> int:
    """A port of 127.0.0.1 that nothing listens on: `preferred` when it is free, else any."""
    for port in (preferred, 0):
        with socket.socket() as candidate, contextlib.suppress(OSError):
            candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            candidate.bind((LOOPBACK, port))
            return int(candidate.getsockname()[1])
    raise UserError("no free port on 127.0.0.1")


def environment(home: Path) -> dict[str, str]:
    """Variables of a private server: everything it writes lies in `home`, and it reports to nobody."""
    kept = {name: value for name, value in os.environ.items() if not _is_setting(name)}
    return kept | _SILENT | {"PREFECT_HOME": str(home)}


def _is_setting(variable: str) -> bool:
    return variable.upper().startswith("PREFECT_")  # Prefect reads them in any case


def _pass_by_proxies() -> None:
    """Send requests of this process and its children to this machine itself, whatever proxy is set for others."""
    hosts = os.environ.get("no_proxy") or os.environ.get("NO_PROXY", "")
    if hosts != "*" and LOOPBACK not in hosts.split(","):
        hosts = ",".join(filter(None, (hosts, LOOPBACK, "localhost")))
    os.environ.update(no_proxy=hosts, NO_PROXY=hosts)  # libraries differ in which they read


def client_environment(server: Server) -> Mapping[str, str]:
    """Variables with which a process of ours talks to `server`."""
    return {API_VARIABLE: server.api_url, "PREFECT_HOME": str(server.home), "DO_NOT_TRACK": "1"}


def become_client(server: Server) -> None:
    """Make this process a client of `server`, before it imports prefect, which reads its settings once."""
    for name in filter(_is_setting, list(os.environ)):
        del os.environ[name]
    os.environ.update(client_environment(server))
    with contextlib.chdir(server.home):  # away from files with settings
        importlib.import_module("prefect.main")


@contextlib.contextmanager
def local_server(home: str | os.PathLike[str], *, port: int = DEFAULT_PORT) -> Iterator[Server]:
    """Run a Prefect server on 127.0.0.1 until the block, or this process, ends.

    Args:
        home: folder of its database and its log, `server.log`.
        port: the port to take when it is free; any other one else.

    Yields:
        The server, once it answers.

    Raises:
        UserError: when it does not start.
    """
    _pass_by_proxies()
    folder = Path(home).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    # another process may take it before the server does: then the server ends, and `_wait` shows its log
    chosen = free_port(port)
    url = f"http://{LOOPBACK}:{chosen}"
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", LOOPBACK, "--port", str(chosen)]
    variables = environment(folder) | {"PREFECT_SERVER_UI_API_URL": f"{url}/api"}  # else its pages ask port 4200
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            ending_with_parent(command),
            cwd=folder,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            # Ctrl-C is for this process, which stops the server in order
            start_new_session=True,
        )
    server = Server(url=url, home=folder, process=process)
    try:
        _wait(server)
        yield server
    finally:
        stop(process)


def _wait(server: Server) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            break
        if is_healthy(server.api_url, timeout=2):
            return
        time.sleep(0.25)
    tail = (server.home / "server.log").read_bytes()[-300:].decode(errors="replace")
    raise UserError(f"the Prefect server did not start: see {server.home / 'server.log'} (…{' '.join(tail.split())})")


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process: SIGTERM, and SIGKILL when it takes too long."""
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
