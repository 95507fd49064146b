"""Events as lines: what is written is read back, and anything else is no event."""

from pathlib import Path

import pytest

from uwm.events import (
    CheckpointSaved,
    MetricsFile,
    TrainEvent,
    TrainFinished,
    TrainProgress,
    TrainStopped,
    load_metrics,
    parse_line,
    read_events,
    to_line,
)


def progress(step: int, loss: float = 1.0) -> TrainProgress:
    return TrainProgress(
        step=step,
        steps=9,
        loss=loss,
        logs={"action_loss": 0.5},
        lr=1e-4,
        grad_norm=2.0,
        samples_per_second=3.0,
        data_wait=0.1,
    )


@pytest.mark.parametrize(
    "event",
    [
        progress(1),
        CheckpointSaved(path="a\nb", step=1),
        TrainStopped(path="ö", step=1),
        TrainFinished(path="", step=1, reused=True),
    ],
)
def test_events_survive_their_line(event: TrainEvent) -> None:
    line = to_line(event)
    assert "\n" not in line
    assert parse_line(line) == parse_line(line.encode()) == event


@pytest.mark.parametrize("line", ["", "hello", "{", "{}", '{"event": "other"}', "3", '{"event": "train_finished"}'])
def test_other_lines_are_no_events(line: str) -> None:
    assert parse_line(line) is None
    assert list(read_events([line, to_line(progress(2))])) == [progress(2)]


def test_metrics_keep_the_last_value_of_a_step(tmp_path: Path) -> None:
    assert load_metrics(tmp_path) == ()
    write = MetricsFile(tmp_path / "run", step=0)
    for event in (progress(1), progress(2), TrainStopped(path="a", step=2), progress(2, loss=3.0)):
        write(event)
    assert load_metrics(tmp_path / "run") == (progress(1), progress(2, loss=3.0))


def test_going_on_drops_what_lies_ahead(tmp_path: Path) -> None:
    write = MetricsFile(tmp_path, step=0)
    for step in (1, 2, 3):
        write(progress(step))
    with write.path.open("a") as file:
        file.write("torn")
    MetricsFile(tmp_path, step=2)(progress(3, loss=7.0))
    assert [event.loss for event in load_metrics(tmp_path)] == [1.0, 1.0, 7.0]
