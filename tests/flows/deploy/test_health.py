"""Health checks of containers: what is wrong is said in one line, and the exit code is 1."""

import http.server
import threading
import time
from collections.abc import Iterator

import pytest
import redis

from flows.deploy.health import HEARTBEATS, SILENT_SECONDS, main
from flows.runtime.server import free_port


@pytest.fixture
def page() -> Iterator[str]:
    """A web page that answers with the status in its path."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(int(self.path.strip("/")))
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_page(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["http", f"{page}/200"]) == 0
    assert capsys.readouterr().err == ""
    for url, words in (
        (f"{page}/204", "status 204"),
        (f"{page}/503", "503"),
        (f"http://127.0.0.1:{free_port()}/", "refused"),
        ("nonsense", "nonsense"),
    ):
        assert main(["http", url]) == 1
        err = capsys.readouterr().err
        assert words in err
        assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("beats", "code", "words"),
    [
        ([0.0], 0, ""),
        ([-2 * SILENT_SECONDS], 1, "silent for 60 s"),
        ([], 1, "never reported"),
    ],
)
def test_background_services(
    beats: list[float],
    code: int,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = []

    def zrange(self: object, name: str, *_: object, **__: object) -> list[tuple[bytes, float]]:
        asked.append(name)
        return [(b"worker", time.time() + beat) for beat in beats]

    monkeypatch.setattr(redis.Redis, "zrange", zrange)
    monkeypatch.setenv("PREFECT_SERVER_DOCKET_URL", "redis://127.0.0.1:1/1")
    assert main(["services"]) == code
    assert words in capsys.readouterr().err
    assert asked == [HEARTBEATS]


@pytest.mark.parametrize(("url", "words"), [("redis://127.0.0.1:1/1", "no answer"), ("", "no answer")])
def test_no_redis(url: str, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PREFECT_SERVER_DOCKET_URL", url)
    assert main(["services"]) == 1
    assert words in capsys.readouterr().err


def test_any_other_call_shows_the_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["everything"]) == 1
    assert "usage" in capsys.readouterr().err
