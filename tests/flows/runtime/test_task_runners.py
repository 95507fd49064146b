"""The one setting of runners, and the plan of an ingestion: neither needs a server."""

import sys
from pathlib import Path

import pytest

from flows.cli import run
from flows.runtime.task_runners import choose
from storage_schemas.errors import UserError


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ((None, None, None), "threads"),
        (("dask", 2, None), "dask"),
        ((None, None, "tcp://10.0.0.1:8786"), "dask"),
        (("dask", None, "tls://10.0.0.1:8786"), "dask"),
    ],
)
def test_a_cluster_tells_its_engine(given: tuple[str | None, int | None, str | None], meant: str) -> None:
    assert choose(*given).name == meant


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("spark", None, None), "use threads, processes, dask"),
        (("dask", 0, None), "at least 1"),
        ((None, None, "http://host"), "not the address of a Dask scheduler"),
        (("processes", None, "tcp://host:8786"), "address of a dask cluster"),
        ((None, 2, "tcp://host:8786"), "its own number of workers"),
    ],
)
def test_settings_that_make_no_sense(given: tuple[str | None, int | None, str | None], words: str) -> None:
    with pytest.raises(UserError, match=words):
        choose(*given)


def test_a_missing_extra_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prefect_dask", None)
    monkeypatch.setitem(sys.modules, "prefect_dask.task_runners", None)
    with pytest.raises(UserError, match=r"uwm-pipeline\[dask\]"):
        choose("dask", 2, None).start()


@pytest.mark.parametrize(
    "line", ["ingest raw out --runner dask", "ingest raw out --workers 2", "latents debug data.latents=k --runner dask"]
)
def test_a_runner_without_a_server_is_refused(line: str, away: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(line.split()) == 2
    assert "PREFECT_API_URL" in capsys.readouterr().err
