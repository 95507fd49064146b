import socket
from pathlib import Path

import pytest

from flows.runtime.server import configured_api_url, environment, free_port, is_healthy, require_server
from storage_schemas.errors import UserError


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("PREFECT_API_URL", "PREFECT_PROFILE", "PREFECT_PROFILES_PATH"):
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
