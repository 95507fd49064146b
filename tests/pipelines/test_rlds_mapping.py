"""RLDS of other robots than DROID's, by a declared mapping."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from oxe import FRACTAL, bridge, declaration, fractal

from pipelines.checks.quality import BadDataError
from pipelines.ingest import ingest
from pipelines.names import MAPPINGS
from pipelines.options import IngestOptions
from pipelines.source import SourceRef
from pipelines.sources import rlds_mapping
from pipelines.sources.registry import open_source
from pipelines.sources.rlds_mapping import load_mapping
from storage_schemas.conventions import DROID_ACTION, DROID_CAMERAS, DROID_FPS, DROID_STATES, DROID_VIEWS, droid_action
from storage_schemas.episode import Episode
from storage_schemas.errors import UserError
from storage_schemas.store.dataset import open_dataset

Make = Callable[..., Any]

OWN = """
fps = 10
language = ["observation/told"]

[[cameras]]
field = "observation/image"
name = "head"
role = "exterior"

[[action]]
field = "action/world_vector"
name = "move"
quantity = "position_delta"
dim = 3

[[action]]
field = "action/rotation_delta"
recorded = "axis_angle"
name = "turn"
quantity = "rotation_delta"
representation = "quaternion_xyzw"
dim = 4
"""


def episodes(source: Path, mapping: str | None) -> list[Episode]:
    reader = open_source(str(source), IngestOptions(mapping=mapping))
    refs = [ref for ref in reader.refs() if isinstance(ref, SourceRef)]
    found = [episode for ref in refs for episode in reader.read(ref)]
    return [episode for episode in found if isinstance(episode, Episode)]


def test_every_shipped_mapping_has_its_name() -> None:
    folder = Path(rlds_mapping.__file__).parent / "mappings"
    assert sorted(path.stem for path in folder.iterdir()) == sorted(MAPPINGS)
    assert all(load_mapping(name).space.dim for name in MAPPINGS)


def test_droids_mapping_is_what_its_conventions_say() -> None:
    mapping = load_mapping("droid")
    assert (mapping.space, mapping.state_fields) == (DROID_ACTION, DROID_STATES)
    assert (mapping.views, mapping.fps) == (DROID_VIEWS, DROID_FPS)
    assert tuple(camera.camera for camera in mapping.cameras) == DROID_CAMERAS
    rng = np.random.default_rng(0)
    velocity, gripper = rng.uniform(-1, 1, (50, 6)).astype(np.float32), rng.uniform(0, 1, (50, 1)).astype(np.float32)
    given = {"action_dict/cartesian_velocity": velocity, "action_dict/gripper_position": gripper}
    np.testing.assert_array_equal(mapping.action_of(given), droid_action(velocity, gripper))


@pytest.mark.parametrize("declared", [False, True])
def test_fractal(tmp_path: Path, write_rlds: Make, declared: bool) -> None:
    features = fractal()
    source = write_rlds(tmp_path / "set", [features, fractal(seed=1)], name="fractal20220817_data")
    if declared:
        (source / "features.json").write_text(json.dumps(declaration(features, 6)))
    first, _ = episodes(source, "fractal")
    names = ("world_vector", "rotation_delta", "gripper_closedness_action")
    parts = [np.array(features[f"steps/action/{name}"], np.float32).reshape(6, -1) for name in names]
    np.testing.assert_array_equal(first.action, np.concatenate(parts, axis=1))
    assert first.action_mask.all()
    assert set(first.frames) == {"image"}
    assert (first.meta.language, first.meta.fps, first.meta.success) == (("pick can 0",), 3.0, None)
    assert (first.meta.collection, first.meta.source_format) == ("fractal20220817_data", "rlds")
    assert {name: values.shape[1] for name, values in first.state.items()}.items() >= FRACTAL.items()
    assert first.state["action/terminate_episode"].dtype == np.int64
    spec = open_source(str(source), IngestOptions(mapping="fractal")).spec()
    assert spec.action is not None
    assert (spec.action.rate, spec.action.labels[-1]) == (3.0, "gripper_closedness_action")
    assert spec.role("image") == "exterior"
    pose = spec.state("observation/base_pose_tool_reached")
    assert pose is not None
    assert pose.part("quaternion").quantity == "other", "its order is not documented"


def test_bridge_masks_the_cameras_that_an_episode_has_not(tmp_path: Path, write_rlds: Make) -> None:
    source = write_rlds(tmp_path / "set", [bridge(views=1), bridge(seed=1, views=4)], name="bridge_dataset")
    store = str(tmp_path / "store")
    report = ingest(str(source), store, IngestOptions(mapping="bridge"))
    assert (report.added, report.source_format) == (2, "rlds")
    dataset = open_dataset(store)
    assert dataset.spec.cameras == ("image_0", "image_1", "image_2", "image_3")
    assert [dataset.spec.role(camera) for camera in dataset.spec.cameras] == ["exterior"] * 3 + ["wrist"]
    assert sorted(len(row.cameras) for row in dataset.episodes.rows()) == [1, 4]
    assert {row.collection for row in dataset.episodes.rows()} == {"bridge_dataset"}, "its paths are not DROID's"
    assert all(row.success is None for row in dataset.episodes.rows())
    space = dataset.spec.action
    assert space is not None
    assert (space.part("gripper_position").open, space.part("gripper_position").closed) == (1.0, 0.0)
    assert ingest(str(source), store, IngestOptions(mapping="bridge")).present == 2


def test_a_mapping_of_ones_own(tmp_path: Path, write_rlds: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    features = fractal() | {"steps/observation/told": [b"by hand"] * 6}
    source = write_rlds(tmp_path / "set", [features])
    (tmp_path / "own.toml").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    options = IngestOptions(mapping="own.toml")
    assert options.mapping == str(tmp_path / "own.toml"), "workers run elsewhere"
    (episode,) = episodes(source, "own.toml")
    assert episode.action.shape == (6, 7)
    turned = np.array(features["steps/action/rotation_delta"], np.float64).reshape(6, 3)
    np.testing.assert_allclose(2 * np.arccos(np.abs(episode.action[:, 6])), np.linalg.norm(turned, axis=1), atol=1e-5)
    assert (set(episode.frames), episode.meta.language, episode.meta.fps) == ({"head"}, ("by hand",), 10.0)


def test_without_a_mapping_its_fields_are_listed(tmp_path: Path, write_rlds: Make) -> None:
    source = write_rlds(tmp_path / "set", [fractal()])
    for options in (IngestOptions(), IngestOptions(format="rlds"), IngestOptions(format="droid-rlds")):
        with pytest.raises(UserError) as caught:
            open_source(str(source), options)
        text = str(caught.value)
        assert all(word in text for word in ("--mapping", "bridge, droid, fractal", "docs/formats.md"))
        assert "images: observation/image;" in text
        assert "action/world_vector (3)" in text
        assert "texts: observation/natural_language_instruction" in text
        assert "\n" not in text
    with pytest.raises(UserError, match=r"without action: .*action/world_vector \(3\)"):
        open_source(str(source), IngestOptions(mapping="bridge"))
    with pytest.raises(UserError, match="use --format rlds"):
        open_source(str(source), IngestOptions(mapping="fractal", format="droid-rlds"))


def test_a_field_of_another_width_is_refused(tmp_path: Path, write_rlds: Make) -> None:
    source = write_rlds(tmp_path / "set", [bridge() | {"steps/action": [0.5] * 48}])
    with pytest.raises(BadDataError, match="action has 8 numbers a step, the mapping says 7"):
        episodes(source, "bridge")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fps = ", "is no TOML"),
        ("fps = 5.0", "cameras: Field required"),
        (OWN.replace("10", "0"), "fps: Input should be greater than 0"),
        (OWN.replace("dim = 3", "dim = 2"), "position_delta has 3 numbers, not 2"),
        (OWN.replace("dim = 3", "dim = 3\nstart = 1"), "leaves numbers of action/world_vector out"),
        (OWN.replace("action/rotation_delta", "action/world_vector"), "have the same numbers of action/world_vector"),
        (OWN.replace('"turn"', '"move"'), "two parts have the same name"),
        (OWN.replace("role", "roll"), "cameras.0.roll: Extra inputs"),
        (OWN + '\n[[cameras]]\nfield = "x/head"', "two cameras have the same name"),
    ],
)
def test_a_mapping_that_makes_no_sense_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "own.toml"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        load_mapping(str(path))
    assert "\n" not in str(caught.value)


def test_a_mapping_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no mapping .*absent: name one of bridge, droid, fractal"):
        load_mapping(str(tmp_path / "absent"))
    (tmp_path / "large").write_bytes(b"#" * (2 << 20))
    with pytest.raises(UserError, match="larger than"):
        load_mapping(str(tmp_path / "large"))
