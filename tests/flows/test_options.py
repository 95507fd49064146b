"""Options are declared once: whoever asks, by hand or on a schedule, can say the same and is understood alike."""

import json
from pathlib import Path
from typing import Any

import pytest

from flows.cli import run
from flows.cli.options import flag
from flows.deploy.site import deployments, load_site
from flows.ingest import ingest, watch
from flows.jobs.options import RUNNER_DEFAULTS, RunnerOptions
from pipelines.options import INGEST_DEFAULTS, IngestOptions
from storage_schemas.errors import UserError

CHANGED = {
    "format": "video",
    "mapping": "fractal",
    "collection": "kitchen",
    "camera": "wrist_image_left",
    "fps": 7.5,
    "rate": 12.5,
    "clip_steps": 40,
    "scene_cuts": True,
    "backend": "decord",
    "val_percent": 20,
    "reject": ["black", "static"],
    "batch_episodes": 128,
    "runner": "processes",
    "workers": 2,
    "cluster": None,
}


class Asked(Exception):  # noqa: N818 - no error: it carries what a command asked for
    """What the job was asked for."""


@pytest.fixture
def by_hand(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that gives `uwm ingest` some options and returns those that the job gets."""

    class Asking:
        def ingest(self, source: str, store: str, options: IngestOptions, runner: RunnerOptions) -> Any:
            raise Asked(options, runner)

    monkeypatch.setattr("flows.cli.ingest.jobs_of", lambda flow, quiet: Asking())

    def ask(**given: Any) -> tuple[IngestOptions, RunnerOptions]:
        words = []
        for name, value in given.items():
            words += [flag(name)]
            if value is not True:
                words += [",".join(value) if isinstance(value, list) else str(value)]
        with pytest.raises(Asked) as asked:
            run(["ingest", "raw", "store", *words])
        options, runner = asked.value.args
        return options, runner

    return ask


def on_schedule(tmp_path: Path, **given: Any) -> tuple[IngestOptions, RunnerOptions]:
    """What the flow of a watched folder gets when the site file says `given`."""
    lines = "\n".join(f"{name} = {json.dumps(value)}" for name, value in given.items())
    (tmp_path / "site.toml").write_text(f"[[watch]]\nname = 'a'\nsource = 'raw'\nstore = 'store'\n{lines}\n")
    parameters = deployments(load_site(tmp_path / "site.toml"))[0].parameters
    checked = watch.validate_parameters(dict(parameters))
    return checked["options"], checked["runner"]


def test_every_field_is_tried() -> None:
    assert set(CHANGED) == {*IngestOptions.model_fields, *RunnerOptions.model_fields}


def test_what_is_left_out_is_the_same_by_hand_and_on_a_schedule(tmp_path: Path, by_hand: Any) -> None:
    assert by_hand() == on_schedule(tmp_path) == (INGEST_DEFAULTS, RUNNER_DEFAULTS)


@pytest.mark.parametrize("name", [name for name, value in CHANGED.items() if value is not None])
def test_a_field_means_the_same_by_hand_and_on_a_schedule(tmp_path: Path, by_hand: Any, name: str) -> None:
    given = {name: CHANGED[name]}
    asked = by_hand(**given)
    assert asked == on_schedule(tmp_path, **given)
    assert asked != (INGEST_DEFAULTS, RUNNER_DEFAULTS)


def test_all_fields_together_and_a_cluster(tmp_path: Path, by_hand: Any) -> None:
    given = {name: value for name, value in CHANGED.items() if value is not None}
    assert by_hand(**given) == on_schedule(tmp_path, **given)
    cluster = {"cluster": "tcp://scheduler:8786"}
    assert by_hand(**cluster) == on_schedule(tmp_path, **cluster)


@pytest.mark.parametrize("flow", [ingest, watch])
def test_the_flows_take_the_options_as_they_are(flow: Any) -> None:
    schema = flow.parameters.definitions
    assert set(schema["IngestOptions"]["properties"]) == set(IngestOptions.model_fields)
    assert set(schema["RunnerOptions"]["properties"]) == set(RunnerOptions.model_fields)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"fps": 0}, "fps"),
        ({"clip_steps": 2}, "clip_steps"),
        ({"val_percent": 101}, "val_percent"),
        ({"backend": "vlc"}, "backend"),
        ({"runner": "threads", "cluster": "tcp://scheduler:8786"}, "not of threads"),
    ],
)
def test_what_makes_no_sense_is_refused_by_hand_and_on_a_schedule(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], given: dict[str, Any], message: str
) -> None:
    words = [word for name, value in given.items() for word in (flag(name), str(value))]
    assert run(["ingest", "raw", "store", *words]) == 2
    assert message.replace("_", "-") in capsys.readouterr().err
    with pytest.raises(UserError, match=message):
        on_schedule(tmp_path, **given)
