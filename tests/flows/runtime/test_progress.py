"""The bar on a run's page: whatever becomes of it, the work goes on."""

import logging
import threading
from uuid import uuid4

import pytest

from flows.runtime import progress
from flows.runtime.progress import ProgressArtifact


@pytest.fixture
def bar(monkeypatch: pytest.MonkeyPatch) -> ProgressArtifact:
    monkeypatch.setattr(progress, "get_run_logger", lambda: logging.getLogger("bar"))
    monkeypatch.setattr(progress, "create_progress_artifact", lambda *_, **__: uuid4())
    return ProgressArtifact("key", "steps")


def test_a_server_that_hangs_holds_nobody_up_and_is_told_the_end(
    bar: ProgressArtifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    answering, shown = threading.Event(), list[float]()

    def update(_: object, percent: float) -> None:
        answering.wait(60)
        shown.append(percent)

    monkeypatch.setattr(progress, "update_progress_artifact", update)
    bar.show(0)
    bar._thread.submit(lambda: None).result()
    for percent in range(1, 101):
        bar.show(percent)
    answering.set()
    bar._thread.shutdown()
    assert shown == [1, 100]


def test_a_lost_server_is_said_and_tried_again(
    bar: ProgressArtifact, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    shown = list[float]()

    def update(_: object, percent: float) -> None:
        if percent < 3:
            raise ConnectionError("no server")
        shown.append(percent)

    monkeypatch.setattr(progress, "update_progress_artifact", update)
    for percent in range(5):
        bar.show(percent)
        bar._thread.submit(lambda: None).result()
    assert shown == [3, 4]
    assert "the work goes on: no server" in caplog.text
