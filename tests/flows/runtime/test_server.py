import http.server
import os
import socket
import socketserver
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from endings import Marked

from flows.runtime.server import configured_api_url, environment, free_port, is_healthy, require_server
from storage_schemas.errors import UserError

ROOT = Path(__file__).resolve().parents[3]


class Healthy(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("PREFECT_API_URL", "PREFECT_PROFILE", "PREFECT_PROFILES_PATH", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))


def test_without_variable_and_profile_there_is_no_server() -> None:
    assert configured_api_url() == ""


def test_the_variable_counts_before_the_profile(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = 'active = "lab"\n[profiles.lab]\nPREFECT_API_URL = "http://lab/api"\n[profiles.other]\n'
    (tmp_path / "profiles.toml").write_text(text)
    assert configured_api_url() == "http://lab/api"
    monkeypatch.setenv("PREFECT_PROFILE", "other")
    assert configured_api_url() == ""
    monkeypatch.setenv("PREFECT_API_URL", "http://mine/api")
    assert configured_api_url() == "http://mine/api"


def test_a_damaged_profile_is_named(tmp_path: Path) -> None:
    (tmp_path / "profiles.toml").write_text("not toml")
    with pytest.raises(UserError, match=r"profiles\.toml"):
        configured_api_url()


def test_a_server_that_does_not_answer_is_said_in_one_line() -> None:
    url = f"http://127.0.0.1:{free_port()}/api"
    assert not is_healthy(url, timeout=1)
    with pytest.raises(UserError, match="--no-flow"):
        require_server(url)


def test_a_taken_port_is_avoided() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert free_port(port) not in (0, port)


def test_a_private_server_takes_no_settings_of_another_and_reports_to_nobody(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://elsewhere/api")
    monkeypatch.setenv("PREFECT_API_DATABASE_CONNECTION_URL", "postgresql://elsewhere")
    made = environment(tmp_path)
    assert "PREFECT_API_URL" not in made
    assert "PREFECT_API_DATABASE_CONNECTION_URL" not in made
    assert made["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"
    assert made["DO_NOT_TRACK"] == "1"
    assert made["PREFECT_HOME"] == str(tmp_path)


def test_settings_count_in_any_case_and_requests_to_this_machine_pass_by_proxies(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("prefect_api_database_connection_url", "postgresql://elsewhere")
    assert "prefect_api_database_connection_url" not in environment(tmp_path)
    with socketserver.TCPServer(("127.0.0.1", 0), Healthy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")
        monkeypatch.setenv("no_proxy", "lab.example")
        require_server(f"http://127.0.0.1:{server.server_address[1]}/api")
        server.shutdown()
    assert os.environ["no_proxy"] == os.environ["NO_PROXY"] == "lab.example,127.0.0.1,localhost"


CLIENT = """
import sys
from pathlib import Path
from flows.runtime.server import become_client, local_server
with local_server(Path("private"), port=0) as server:
    become_client(server)
    from prefect import flow, get_client
    from prefect.settings import get_current_settings

    @flow
    def note() -> int:
        return 5

    assert note() == 5
    settings = get_current_settings()
    assert settings.home == Path("private").absolute(), settings.home
    assert settings.api.url == server.api_url
    assert not settings.api.auth_string and not settings.api.key
    assert settings.results.local_storage_path.is_relative_to(settings.home)
    with get_client(sync_client=True) as client:
        assert [run.name for run in client.read_flow_runs()]
"""


@pytest.mark.slow
@pytest.mark.server
def test_a_private_server_and_its_client_heed_nothing_in_their_surroundings(tmp_path: Path) -> None:
    away = tmp_path / "elsewhere"
    settings = {
        "PREFECT_API_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{away}/x.db",
        "PREFECT_API_URL": "http://127.0.0.1:9/api",
        "PREFECT_API_AUTH_STRING": "a:b",
        "PREFECT_SERVER_API_AUTH_STRING": "a:b",
        "PREFECT_SERVER_API_BASE_PATH": "/other",
        "PREFECT_HOME": str(away),
        "PREFECT_PROFILE": "nobodys",
        "PREFECT_RESULTS_LOCAL_STORAGE_PATH": str(away),
    }
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / ".env").write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
    table = f'home = "{away}"\n[results]\nlocal_storage_path = "{away}"\n[server.api]\nauth_string = "c:d"\n'
    (folder / "prefect.toml").write_text(table)
    (folder / "pyproject.toml").write_text(f'[tool.prefect]\nhome = "{away}"\n[tool.prefect.server.api]\nport = 9\n')
    proxies = dict.fromkeys(("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY"), "http://127.0.0.1:9")
    surroundings = {name.lower(): value for name, value in settings.items()} | settings | proxies
    done = subprocess.run(
        [sys.executable, "-c", CLIENT],
        cwd=folder,
        env={**os.environ, **surroundings, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:] + (folder / "private" / "server.log").read_text()[-3000:]
    assert (folder / "private" / "prefect.db").stat().st_size
    assert not away.exists()
    assert sorted(path.name for path in folder.iterdir()) == [".env", "prefect.toml", "private", "pyproject.toml"]


@pytest.mark.slow
@pytest.mark.server
def test_a_private_server_does_not_outlive_a_starter_that_is_killed(tmp_path: Path) -> None:
    script = "import time\nfrom flows.runtime.server import local_server\n"
    script += "with local_server('private', port=0):\n    print('up', flush=True)\n    time.sleep(600)\n"
    marked = Marked()
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=tmp_path, env=marked.environment, stdout=subprocess.PIPE, text=True
    ) as starter:
        assert starter.stdout is not None
        assert starter.stdout.readline() == "up\n"
        assert len(marked.processes()) > 2
        starter.kill()
        starter.wait()
        marked.wait()
