"""docker-compose.yml without containers: PostgreSQL and Redis of this machine, Prefect's server, services and worker.

Commands, variables, health checks and the order of starting come from the compose file. What a container has of its own
is replaced: host names and ports by 127.0.0.1 and free ports, `/tmp` by a folder, the S3 store by moto's.
"""

import contextlib
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import compose
import httpx
from s3_server import moto_server

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = ROOT / "docker-compose.yml"
PORTS = {"postgres": 5432, "redis": 6379, "s3": 8333, "server": 4200, "worker": 8080}
"""What the services listen on in their containers."""
ELSEWHERE = ("s3", "worker-gpu")
"""Services that are not started: moto is the S3, and there is no GPU."""
SECRETS = ("POSTGRES_PASSWORD", "REDIS_PASSWORD", "S3_ACCESS_KEY", "S3_SECRET_KEY", "PREFECT_AUTH")
START_SECONDS = 240.0


def missing_programs() -> list[str]:
    """Debian packages that the topology needs and this machine lacks."""
    programs = {"postgresql": postgres_bin() is not None, "redis-server": shutil.which("redis-server") is not None}
    return [package for package, found in programs.items() if not found]


def postgres_bin() -> Path | None:
    """The folder of the newest PostgreSQL server."""
    found = Path("/usr/lib/postgresql").glob("*/bin/initdb")
    newest = max(found, key=lambda path: int(path.parts[-3]), default=None)
    return newest.parent if newest else None


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nothing listens on, all different."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def wait_for(what: str, check: Callable[[], Any], seconds: float = START_SECONDS, pause: float = 0.2) -> Any:
    """The first true value of `check`. Raises TimeoutError."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := check():
            return found
        time.sleep(pause)
    raise TimeoutError(f"waited {seconds:.0f} s for {what}")


@dataclass
class Topology:
    """The running services, by their names in the compose file."""

    folder: Path
    services: dict[str, Any]
    ports: dict[str, int]
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    started: dict[str, float] = field(default_factory=dict)
    """Seconds that each service took until it was healthy."""

    def here(self, text: str, service: str) -> str:
        """A command's word or a variable's value, with addresses and folders of this machine."""
        for name, port in PORTS.items():
            text = re.sub(rf"(?<![\w.]){name}:{port}(?!\d)", f"127.0.0.1:{self.ports[name]}", text)
            text = re.sub(rf"(?<![\w.]){port}(?!\d)", str(self.ports[name]), text)
        if text == "0.0.0.0":  # noqa: S104 - replaced
            return "127.0.0.1"
        return re.sub(r"^/tmp(?=/|$)", str(self.home(service)), text)

    def home(self, service: str) -> Path:
        """The folder that a service works in, with the files that its container is given."""
        path = self.folder / service
        if not path.exists():
            path.mkdir()
            for source, target in (mount.split(":")[:2] for mount in self.services[service].get("volumes", ())):
                if source.startswith("./"):
                    shutil.copy(ROOT / source, path / Path(target).name)
        return path

    def environment(self, service: str) -> dict[str, str]:
        """The variables of a service; of this process only what programs need to run."""
        kept = {name: value for name, value in os.environ.items() if name in ("HOME", "LANG", "TMPDIR", "TZ")}
        path = [str(self.folder / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]]
        if postgres := postgres_bin():
            path.insert(2, str(postgres))
        given = self.services[service].get("environment", {})
        own = {name: "127.0.0.1" if value in PORTS else self.here(value, service) for name, value in given.items()}
        threads = {"OMP_NUM_THREADS": "1"}
        return kept | threads | {"PATH": ":".join(path), "PYTHONPATH": str(ROOT)} | own

    def command(self, service: str) -> list[str]:
        """The command of a service; the images of PostgreSQL and Redis add what is added here."""
        words = [self.here(word, service) for word in self.services[service]["command"]]
        home = str(self.home(service))
        if service == "postgres":
            words += ["-D", f"{home}/data", "-k", home, "-h", "127.0.0.1", "-p", str(self.ports["postgres"])]
        if service == "redis":
            words += ["--dir", home, "--bind", "127.0.0.1", "--port", str(self.ports["redis"])]
        return words

    def run(self, service: str, command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command with a service's variables until it ends."""
        return subprocess.run(
            command,
            env=self.environment(service),
            cwd=self.home(service),
            text=True,
            capture_output=True,
            timeout=START_SECONDS,
            check=False,
            **self.user(service),
            **options,
        )

    def user(self, service: str) -> dict[str, Any]:
        """PostgreSQL refuses to run as root."""
        if service != "postgres" or os.geteuid() != 0:
            return {}
        return {"user": "postgres", "group": "postgres", "extra_groups": []}

    def start(self, service: str) -> None:
        """Start a service and wait until its health check passes, or, without one, until it has ended well."""
        begun = time.monotonic()
        log = self.folder / f"{service}.log"
        with log.open("ab") as output:
            self.processes[service] = process = subprocess.Popen(
                self.command(service),
                env=self.environment(service),
                cwd=self.home(service),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                **self.user(service),
            )
        lasting = "test" in self.services[service]["healthcheck"]

        def ready() -> bool:
            if process.poll() is not None and (lasting or process.returncode):
                raise RuntimeError(f"{service} ended with {process.returncode}:\n{self.log(service)}")
            return self.is_healthy(service) if lasting else process.poll() == 0

        wait_for(f"{service} (its log: {log})", ready)
        self.started[service] = time.monotonic() - begun

    def is_healthy(self, service: str) -> bool:
        """Run the health check of the compose file."""
        kind, *words = self.services[service]["healthcheck"]["test"]
        assert kind == "CMD", f"{service}: only checks without a shell"
        return self.run(service, [self.here(word, service) for word in words]).returncode == 0

    def log(self, service: str) -> str:
        """The end of what a service said."""
        return (self.folder / f"{service}.log").read_text(errors="replace")[-4000:]

    def running(self) -> list[str]:
        """Services that run, in the order in which they can be started."""
        alive = {name for name, process in self.processes.items() if process.poll() is None}
        return [name for name in compose.in_order(self.services) if name in alive]

    def kill(self, service: str) -> None:
        """SIGKILL to a service and to every process that it started."""
        process = self.processes.pop(service)
        for each in _family(process.pid):  # the parent first, so that it replaces no child
            with contextlib.suppress(ProcessLookupError):
                os.kill(each, signal.SIGKILL)
        process.wait()

    def stop(self, service: str, seconds: float = 30.0) -> None:
        """SIGTERM, and SIGKILL for what does not end."""
        if service not in self.processes:
            return
        self.processes[service].terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.processes[service].wait(seconds)
        self.kill(service)

    def client(self) -> httpx.Client:
        """Of the API, logged in."""
        name, _, password = self.environment("worker")["PREFECT_API_AUTH_STRING"].partition(":")
        return httpx.Client(base_url=f"http://127.0.0.1:{self.ports['server']}/api/", auth=(name, password), timeout=30)


def _family(pid: int) -> list[int]:
    """A process and all below it."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [pid, *(each for child in children for each in _family(int(child)))]


@contextlib.contextmanager
def running() -> Iterator[Topology]:
    """The topology, each service healthy."""
    variables = {name: secrets.token_hex(12) for name in SECRETS}
    variables["PREFECT_AUTH"] = f"admin:{variables['PREFECT_AUTH']}"
    document = compose.load(COMPOSE, variables)
    ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
    folder = Path(tempfile.mkdtemp(prefix="uwm-topology-"))
    folder.chmod(0o755)
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        s3 = stack.enter_context(moto_server())
        ports["s3"] = int(s3.rpartition(":")[2])
        topology = Topology(folder, document["services"], ports)
        _uwm(folder / "bin")
        _initdb(topology)
        wanted = [name for name in compose.in_order(topology.services) if name not in ELSEWHERE]
        for service in wanted:
            stack.callback(topology.stop, service)
            topology.start(service)
            if service == "postgres":
                _createdb(topology)
        yield topology


def _uwm(folder: Path) -> None:
    """The command `uwm` of this checkout, installed or not."""
    folder.mkdir()
    script = folder / "uwm"
    script.write_text(f"#!{sys.executable}\nfrom flows.cli import main\nmain()\n")
    script.chmod(0o755)


def _initdb(topology: Topology) -> None:
    """What the image of PostgreSQL does at its first start."""
    home, variables = topology.home("postgres"), topology.environment("postgres")
    if user := topology.user("postgres"):
        shutil.chown(home, user["user"], user["group"])
    password = home / "password"
    password.write_text(variables["POSTGRES_PASSWORD"])
    password.chmod(0o644)
    command = ["initdb", "-D", f"{home}/data", "-U", variables["POSTGRES_USER"], "--auth=scram-sha-256"]
    done = topology.run("postgres", [*command, f"--pwfile={password}", "--no-sync"])
    password.unlink()
    assert done.returncode == 0, done.stderr


def _createdb(topology: Topology) -> None:
    variables = topology.environment("postgres")
    done = psql(topology, "postgres", f"CREATE DATABASE {variables['POSTGRES_DB']}")
    assert done.returncode == 0, done.stderr


def psql(topology: Topology, database: str, statement: str) -> subprocess.CompletedProcess[str]:
    """Run SQL as the server's user."""
    return topology.run("postgres", pg(topology, "psql", "-d", database, "-AXtqc", statement))


def pg(topology: Topology, program: str, *arguments: str) -> list[str]:
    """The command line of a PostgreSQL client that is logged in."""
    variables = topology.environment("postgres")
    login = ["env", f"PGPASSWORD={variables['POSTGRES_PASSWORD']}", program, "-h", "127.0.0.1"]
    return [*login, "-p", str(topology.ports["postgres"]), "-U", variables["POSTGRES_USER"], *arguments]
