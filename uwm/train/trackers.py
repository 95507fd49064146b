"""Experiment trackers, told what the run's events say: TensorBoard, Weights & Biases, MLflow.

`metrics.jsonl` is the truth; a tracker is a view of it. It hears numbers and pictures of predictions, never more than
the events hold, and no part of a uri that may hold a secret. A tracker that fails is left out for the rest of the
run, with one warning; the run goes on. A resumed run goes on in the same place, from the step it resumes at.

Names: `train/...` and `detail` as they are, `eval/<dataset>/<mode>/<metric>`, pictures `<mode>/<number>`.
"""

import hashlib
import importlib.util
import json
import logging
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

from storage_schemas.errors import UserError
from uwm.config import RunConfig
from uwm.events import Evaluated, TrainEvent, TrainProgress, TrainStarted

if TYPE_CHECKING:
    from uwm.report.pictures import Pictures

_LOG = logging.getLogger(__name__)
_USER = re.compile(r"//[^/@\s\"]*@")
_QUERY = re.compile(r"(//[^?\s\"]*)\?[^\s\"]*")


class Tracker(Protocol):
    """One place that shows how runs go."""

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        """Take numbers of a step."""
        ...

    def pictures(self, step: int, pictures: "Pictures") -> None:
        """Take pictures of predictions."""
        ...

    def close(self) -> None:
        """Write everything out."""
        ...


Open = Callable[[RunConfig, TrainStarted], Tracker]


class Trackers:
    """All trackers of a run, as one listener of its events; they open when the run starts.

    Args:
        config: of the run; `train.track` names them.
        opens: how each is opened, by name.

    Raises:
        UserError: when a chosen one is not installed.
    """

    def __init__(self, config: RunConfig, opens: "Mapping[str, Open] | None" = None) -> None:
        self._config = config
        self._opens = OPENS if opens is None else opens
        self._open: dict[str, Tracker] = {}
        for name in config.train.track:
            if self._opens is OPENS and importlib.util.find_spec(name) is None:
                raise UserError(f"{name} is not installed: `pip install {name}`, or leave it out of train.track")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name in [*self._open]:
            self._try(name, lambda tracker: tracker.close())
        self._open.clear()

    def __call__(self, event: TrainEvent) -> None:
        """Pass an event on to every tracker that still works."""
        if isinstance(event, TrainStarted):
            for name in self._config.train.track:
                self._start(name, event)
        elif isinstance(event, TrainProgress):
            values = numbers(event)
            self._each(lambda tracker: tracker.numbers(event.step, values))
        elif isinstance(event, Evaluated):
            self._evaluated(event)

    def _start(self, name: str, event: TrainStarted) -> None:
        try:
            self._open[name] = self._opens[name](self._config, event)
        except Exception as error:  # a tracker must not end a run
            _LOG.warning("%s is left out of this run: %s", name, error)

    def _evaluated(self, event: Evaluated) -> None:
        if not self._open:
            return
        from uwm.report.pictures import load_pictures

        values, drawn = numbers(event), load_pictures(event.folder)
        self._each(lambda tracker: tracker.numbers(event.step, values))
        self._each(lambda tracker: tracker.pictures(event.step, drawn))

    def _each(self, tell: Callable[[Tracker], None]) -> None:
        for name in [*self._open]:
            self._try(name, tell)

    def _try(self, name: str, tell: Callable[[Tracker], None]) -> None:
        try:
            tell(self._open[name])
        except Exception as error:  # a tracker must not end a run
            del self._open[name]
            _LOG.warning("%s is left out of the rest of this run: %s", name, error)


def numbers(event: TrainProgress | Evaluated) -> dict[str, float]:
    """The numbers of an event, by the names that trackers show."""
    if isinstance(event, Evaluated):
        prefix = f"eval/{event.dataset.rstrip('/').rpartition('/')[2]}"
        gains = {f"{prefix}/{name}_gain": value for name, value in event.gains.items()}
        return {f"{prefix}/{name}": value for name, value in event.metrics.items()} | gains
    own = {
        "loss": event.loss,
        **event.logs,
        "lr": event.lr,
        "grad_norm": event.grad_norm,
        "samples_per_second": event.samples_per_second,
        "data_wait": event.data_wait,
    }
    return {f"train/{name}": value for name, value in own.items()} | {
        name if "/" in name else f"train/{name}": value for name, value in event.detail.items()
    }


def settings(config: RunConfig, event: TrainStarted) -> dict[str, object]:
    """What a tracker may know of a run: its settings and data, without user names, passwords or queries in uris."""
    text = json.dumps({**config.model_dump(mode="json"), "code": event.code_revision, "parameters": event.parameters})
    clean: dict[str, object] = json.loads(_QUERY.sub(r"\1", _USER.sub("//", text)))
    return clean


class TensorBoard:
    """Event files in the run's folder, under `tensorboard/`."""

    def __init__(self, config: RunConfig, event: TrainStarted) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter

        make: Callable[..., Any] = SummaryWriter
        self._writer = make(str(Path(event.folder) / "tensorboard"), purge_step=event.step + 1)
        text = json.dumps(settings(config, event), indent=1)
        self._writer.add_text("settings", f"```json\n{text}\n```", event.step)

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        """Write one scalar for each number."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def pictures(self, step: int, pictures: "Pictures") -> None:
        """Pictures as they are; TensorBoard plays a GIF."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        summary: Any = Summary
        for name, content in {**pictures.images, **pictures.videos}.items():
            image = summary.Image(encoded_image_string=content)
            self._writer.file_writer.add_summary(summary(value=[summary.Value(tag=name, image=image)]), step)
        self._writer.flush()

    def close(self) -> None:
        """Write everything out."""
        self._writer.close()


class WandB:
    """Weights & Biases; offline, in the run's folder, unless it is logged in."""

    def __init__(self, config: RunConfig, event: TrainStarted) -> None:
        import wandb

        self._wandb: Any = wandb
        key = os.environ.get("WANDB_API_KEY") or (Path.home() / ".netrc").exists()
        self._run = self._wandb.init(
            project=os.environ.get("WANDB_PROJECT", "uwm"),
            name=config.name,
            id=_identity(event.folder),
            resume="allow",
            mode=os.environ.get("WANDB_MODE") or ("online" if key else "offline"),
            dir=event.folder,
            config=settings(config, event),
            save_code=False,
        )

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        """A row of the run's history; rows before its last step are dropped there."""
        self._run.log(dict(values), step=step)

    def pictures(self, step: int, pictures: "Pictures") -> None:
        """Show stills and GIFs."""
        import io

        shown = {name: self._wandb.Image(_open_image(content)) for name, content in pictures.images.items()}
        played = {
            name: self._wandb.Video(io.BytesIO(content), format="gif") for name, content in pictures.videos.items()
        }
        self._run.log(shown | played, step=step)

    def close(self) -> None:
        """Write everything out."""
        self._run.finish()


class MLflow:
    """MLflow; in the run's folder, under `mlflow/`, unless MLFLOW_TRACKING_URI names a server."""

    def __init__(self, config: RunConfig, event: TrainStarted) -> None:
        import mlflow

        client: Any = mlflow.MlflowClient
        uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path(event.folder).absolute() / 'mlflow.db'}"
        self._client = client(tracking_uri=uri)
        self._run = self._find(config, event)
        history = self._client.get_metric_history(self._run, "train/loss")
        self._last = max((point.step for point in history), default=-1)

    def _find(self, config: RunConfig, event: TrainStarted) -> str:
        """The run of this folder: the one that is there, or a new one."""
        project = os.environ.get("MLFLOW_EXPERIMENT_NAME", "uwm")
        known = self._client.get_experiment_by_name(project)
        experiment = known.experiment_id if known else self._client.create_experiment(project)
        identity = _identity(event.folder)
        runs = self._client.search_runs([experiment], f"tags.uwm_folder = '{identity}'", max_results=1)
        if runs:
            return str(runs[0].info.run_id)
        run = self._client.create_run(experiment, run_name=config.name, tags={"uwm_folder": identity})
        self._client.log_dict(run.info.run_id, settings(config, event), "settings.json")
        return str(run.info.run_id)

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        """Write one metric for each number; steps that the run has already are left out, as they are the same."""
        if step <= self._last and any(name.startswith("train/") for name in values):
            return
        for name, value in values.items():
            self._client.log_metric(self._run, name, value, step=step)

    def pictures(self, step: int, pictures: "Pictures") -> None:
        """Store pictures as files in a folder of the step."""
        import tempfile

        with tempfile.TemporaryDirectory(prefix="uwm-") as folder:
            for name, content in {**pictures.images, **pictures.videos}.items():
                kind = "gif" if name in pictures.videos else "png"
                path = Path(folder) / f"{name.replace('/', '-')}.{kind}"
                path.write_bytes(content)
                self._client.log_artifact(self._run, str(path), f"step-{step:08d}")

    def close(self) -> None:
        """Say that the run has ended."""
        self._client.set_terminated(self._run)


OPENS: Mapping[str, Open] = {"tensorboard": TensorBoard, "wandb": WandB, "mlflow": MLflow}


def _identity(folder: str) -> str:
    """The same for all parts of a run, and another for every folder."""
    return hashlib.sha256(str(Path(folder).absolute()).encode()).hexdigest()[:16]


def _open_image(content: bytes) -> object:
    import io

    from PIL import Image

    return Image.open(io.BytesIO(content))
