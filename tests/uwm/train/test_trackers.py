"""Trackers show what the events say, go on after a resume, keep secrets, and never end a run."""

import io
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from storage_schemas.errors import UserError
from uwm.config import RunConfig
from uwm.eval.files import ExampleArrays, save_evaluation
from uwm.eval.result import Evaluation
from uwm.events import Evaluated, TrainProgress, TrainStarted
from uwm.overrides import apply_overrides
from uwm.recipes import get_recipe
from uwm.report.pictures import Pictures, pictures_of
from uwm.settings import replace
from uwm.train.trackers import Trackers, settings


def config(*names: str) -> RunConfig:
    base = get_recipe("debug")
    return replace(base, train=replace(base.train, track=names))


def started(folder: Path, step: int = 0) -> TrainStarted:
    return TrainStarted(
        name="debug",
        stage="pretrain",
        folder=str(folder),
        step=step,
        steps=9,
        batch_size=4,
        device="cpu",
        precision="fp32",
        attention="none",
        parameters=7,
        tokenizer="",
        parent="",
        datasets=(),
        code_revision="abc",
    )


def progress(step: int, loss: float) -> TrainProgress:
    return TrainProgress(
        step=step,
        steps=9,
        loss=loss,
        logs={"action_loss": loss / 2},
        lr=0.1,
        grad_norm=1.0,
        samples_per_second=5.0,
        data_wait=0.25,
        detail={"parameter_norm": 3.0, "dataset/droid/action_loss": 0.5},
    )


def evaluated(folder: Path, evaluation: Evaluation, arrays: ExampleArrays) -> Evaluated:
    save_evaluation(str(folder), evaluation, arrays)
    return Evaluated(
        step=2,
        dataset="data/droid",
        folder=str(folder),
        metrics={"policy/action_mse": 0.5},
        gains={"policy/action_mse": 0.1},
    )


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    reader = EventAccumulator(str(folder / "tensorboard"))
    reader.Reload()
    return {name: [(point.step, point.value) for point in reader.Scalars(name)] for name in reader.Tags()["scalars"]}


def test_tensorboard_shows_every_number(tmp_path: Path) -> None:
    with Trackers(config("tensorboard")) as trackers:
        trackers(started(tmp_path))
        trackers(progress(1, 4.0))
        trackers(progress(2, 2.0))
    found = scalars(tmp_path)
    assert found["train/loss"] == [(1, 4.0), (2, 2.0)]
    assert found["train/data_wait"] == [(1, 0.25), (2, 0.25)]
    assert found["dataset/droid/action_loss"] == [(1, 0.5), (2, 0.5)]
    assert found["train/parameter_norm"][0] == (1, 3.0)


def test_a_resumed_run_has_every_step_once(tmp_path: Path) -> None:
    for begin, steps in ((0, (1, 2, 3, 4)), (2, (3, 4, 5))):
        with Trackers(config("tensorboard")) as trackers:
            trackers(started(tmp_path, begin))
            for step in steps:
                trackers(progress(step, float(step)))
    assert scalars(tmp_path)["train/loss"] == [(step, float(step)) for step in (1, 2, 3, 4, 5)]


def test_tensorboard_shows_pictures_and_videos(tmp_path: Path, evaluation: Evaluation, arrays: ExampleArrays) -> None:
    with Trackers(config("tensorboard")) as trackers:
        trackers(started(tmp_path))
        trackers(evaluated(tmp_path / "result", evaluation, arrays))
    reader = EventAccumulator(str(tmp_path / "tensorboard"))
    reader.Reload()
    assert set(reader.Tags()["images"]) == {
        f"{mode}/{index}{kind}" for mode in ("forward", "video") for index in (0, 1) for kind in ("", "-video")
    }
    image = Image.open(io.BytesIO(reader.Images("forward/0-video")[0].encoded_image_string))
    assert (image.format, image.n_frames) == ("GIF", 2)  # type: ignore[attr-defined]
    assert scalars(tmp_path)["eval/droid/policy/action_mse"] == [(2, 0.5)]


def test_a_still_shows_now_truth_and_prediction(arrays: ExampleArrays) -> None:
    sheet = np.asarray(Image.open(io.BytesIO(pictures_of(arrays).images["forward/0"])))
    views, height, width = arrays.current.shape[1:4]
    assert sheet.shape == (views * height, 3 * width, 3)
    np.testing.assert_array_equal(sheet[:height, :width], arrays.current[0, 0])
    np.testing.assert_array_equal(sheet[:height, 2 * width :], arrays.frames["forward"][0, 0])
    assert (sheet[height:, : 2 * width] == 128).all(), "the second view was not recorded"


class Recorder:
    """A tracker that remembers, and fails when it is told to."""

    def __init__(self, fail: str = "") -> None:
        self.fail, self.heard = fail, list[object]()

    def _hear(self, name: str, *what: object) -> None:
        self.heard.append((name, *what))
        if name == self.fail:
            raise RuntimeError("the network is gone")

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        self._hear("numbers", step)

    def pictures(self, step: int, pictures: Pictures) -> None:
        self._hear("pictures", step)

    def close(self) -> None:
        self._hear("close")


@pytest.mark.parametrize("fail", ["numbers", "pictures", "close", "open"])
def test_a_tracker_that_fails_is_left_out_with_one_warning(
    fail: str, tmp_path: Path, evaluation: Evaluation, arrays: ExampleArrays, caplog: pytest.LogCaptureFixture
) -> None:
    broken, sound = Recorder(fail), Recorder()

    def refuse(config: RunConfig, event: TrainStarted) -> Recorder:
        raise ConnectionError("the network is gone")

    opens: Mapping[str, Callable[[RunConfig, TrainStarted], Recorder]] = {
        "wandb": refuse if fail == "open" else lambda config, event: broken,
        "mlflow": lambda config, event: sound,
    }
    with caplog.at_level(logging.WARNING), Trackers(config("wandb", "mlflow"), opens) as trackers:
        trackers(started(tmp_path))
        for step in (1, 2):
            trackers(progress(step, 1.0))
        trackers(evaluated(tmp_path / "result", evaluation, arrays))
        trackers(progress(3, 1.0))
    assert sound.heard == [
        *(("numbers", step) for step in (1, 2, 2)),
        ("pictures", 2),
        ("numbers", 3),
        ("close",),
    ]
    assert [record.getMessage() for record in caplog.records] == [
        f"wandb is left out of {'this run' if fail == 'open' else 'the rest of this run'}: the network is gone"
    ]


def test_no_secret_is_told(tmp_path: Path) -> None:
    secret = apply_overrides(
        get_recipe("debug"), ["data.datasets.0.uri=https://user:hunter2@host/data?X-Signature=hunter3&y=1"]
    )
    told = str(settings(secret, started(tmp_path)))
    assert "hunter" not in told
    assert "https://host/data" in told


def test_what_is_chosen_must_be_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="wandb is not installed"):
        Trackers(config("wandb"))
    Trackers(config())


def test_wandb_writes_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="Weights & Biases is not installed (extra track)")
    monkeypatch.setenv("WANDB_MODE", "offline")
    with Trackers(config("wandb")) as trackers:
        trackers(started(tmp_path))
        trackers(progress(1, 4.0))
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))


def test_mlflow_goes_on_without_duplicates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, evaluation: Evaluation, arrays: ExampleArrays
) -> None:
    mlflow = pytest.importorskip("mlflow", reason="MLflow is not installed (extra track)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for begin, steps in ((0, (1, 2, 3)), (2, (3, 4))):
        with Trackers(config("mlflow")) as trackers:
            trackers(started(tmp_path, begin))
            for step in steps:
                trackers(progress(step, float(step)))
            trackers(evaluated(tmp_path / "result", evaluation, arrays))
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("uwm").experiment_id])
    points = client.get_metric_history(run.info.run_id, "train/loss")
    assert sorted((point.step, point.value) for point in points) == [(step, float(step)) for step in (1, 2, 3, 4)]
    assert client.list_artifacts(run.info.run_id, "step-00000002")
