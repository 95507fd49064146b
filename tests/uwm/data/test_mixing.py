"""Different robots in one run: cameras by role, actions converted, padded and masked, a normalizer for each."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from robots import DELTAS, JOINTS, ROBOTS, MakeEpisode, write_robot

from storage_schemas.conventions import DROID_ACTION, DROID_CAMERAS
from storage_schemas.conversions import convert
from storage_schemas.episode import SegmentId
from storage_schemas.errors import UserError
from uwm.conditions import RunState
from uwm.config import DataConfig, DatasetRef
from uwm.data.augment import training_batch
from uwm.data.batch import RawBatch
from uwm.data.loader import SegmentReader
from uwm.data.mixture import Member, check_actions, check_cameras, mixture_normalizer, open_mixture
from uwm.data.pinning import pin_robots
from uwm.data.sampler import Pick
from uwm.data.usage import dataset_plans

MakeRobot = Callable[[str], str]
CPU = torch.device("cpu")


@pytest.fixture
def make_robot(tmp_path: Path, make_episode: MakeEpisode) -> MakeRobot:
    """A function that writes a store of a robot and returns its uri."""
    return lambda name: write_robot(tmp_path, name, make_episode)


def opened(*refs: DatasetRef, **changes: object) -> tuple[DataConfig, tuple[Member, ...]]:
    """A pinned configuration and its datasets."""
    sizes = {"resize": (24, 32), "crop": (16, 24), "action_horizon": 4, "next_start": 3}
    config = DataConfig.model_validate(sizes | {"datasets": refs} | changes)
    return pin_robots(config, open_mixture(config))


def read(config: DataConfig, members: tuple[Member, ...], *picks: Pick) -> RawBatch:
    reader = SegmentReader([m.dataset for m in members], config, refs=[m.ref for m in members])
    return reader.read(picks)


def test_actions_are_converted_padded_and_masked_number_by_number(make_robot: MakeRobot) -> None:
    config, members = opened(*(DatasetRef(uri=make_robot(name)) for name in ("droid", "deltas", "joints", "film")))
    assert config.action == DROID_ACTION
    assert config.action_dim == 10
    batch = read(config, members, *(Pick(n, n, SegmentId(0, 2)) for n in range(4)))
    stored = [member.dataset.array(0, "action")[2:6] for member in members]
    assert np.array_equal(batch.action[0], stored[0])
    assert batch.action_mask[:2].all()
    for part, source in zip(DROID_ACTION.parts, DELTAS.parts, strict=True):
        told = convert(stored[1][:, DELTAS.place(source.name)], source, part)
        np.testing.assert_array_equal(batch.action[1][:, DROID_ACTION.place(part.name)], told)
    assert batch.action_mask[2].tolist() == [[False] * 9 + [True]] * 4
    assert np.array_equal(batch.action[2][:, 9], stored[2][:, 6])
    assert not batch.action[2][:, :9].any()
    assert not batch.action_mask[3].any()
    assert batch.embodiment.tolist() == [1, 2, 3, 0]
    assert config.robots == ("droid", "deltas", "joints")


def test_each_robot_has_its_own_normalizer(make_robot: MakeRobot) -> None:
    config, members = opened(*(DatasetRef(uri=make_robot(name)) for name in ("droid", "deltas", "joints")))
    normalizer = mixture_normalizer(members)
    picks = [Pick(row, row % 3, SegmentId(row % 2, 0)) for row in range(6)]
    raw = read(config, members, *picks)
    batch = training_batch(raw, config, normalizer, device=CPU)
    for row in range(6):
        own = normalizer.of(config.robots[row % 3])
        expected = own.normalize(raw.action[row]).where(raw.action_mask[row], 0.0)
        torch.testing.assert_close(batch.action[row], expected)
    spread = {name: own.high[0] - own.low[0] for name, own in normalizer.robots.items()}
    assert spread["droid"] != spread["deltas"]
    assert (normalizer.of("joints").low[0], normalizer.of("joints").high[0]) == (-1.0, 1.0), "never known: left as is"
    assert normalizer.of("nobody") is normalizer
    assert type(normalizer).model_validate_json(normalizer.model_dump_json()) == normalizer


def test_converted_actions_bound_the_normalizer_as_they_are_read(make_robot: MakeRobot) -> None:
    config, members = opened(DatasetRef(uri=make_robot("deltas")), action="droid")
    for scale in ("min_max", "z_score", "quantile"):
        normalizer = mixture_normalizer(members, scale)
        assert not normalizer.robots
        lengths = members[0].lengths.tolist()
        picks = [Pick(0, 0, SegmentId(row, step)) for row, length in enumerate(lengths) for step in range(length)]
        actions = read(config, members, *picks).action[:, 0].double()
        np.testing.assert_allclose(normalizer.mean, actions.mean(0), atol=1e-6)
        low, high = {
            "min_max": (actions.amin(0), actions.amax(0)),
            "z_score": (actions.mean(0) - actions.std(0, correction=0), actions.mean(0) + actions.std(0, correction=0)),
            "quantile": tuple(torch.from_numpy(np.quantile(actions, [0.01, 0.99], axis=0, method="inverted_cdf"))),
        }[scale]
        np.testing.assert_allclose(normalizer.low, low, atol=1e-6)
        np.testing.assert_allclose(normalizer.high, high, atol=1e-6)


def test_one_robot_has_the_one_normalizer_of_before(make_robot: MakeRobot) -> None:
    config, members = opened(DatasetRef(uri=make_robot("droid")), DatasetRef(uri=make_robot("film")))
    normalizer = mixture_normalizer(members)
    actions = np.concatenate([members[0].dataset.array(row, "action") for row in (0, 1)])
    assert not normalizer.robots
    np.testing.assert_array_equal(np.float32(normalizer.low), actions.min(0))
    assert config.robots == ("droid",)


def test_cameras_go_by_name_and_then_by_role(make_robot: MakeRobot) -> None:
    config, members = opened(*(DatasetRef(uri=make_robot(name)) for name in ("droid", "deltas")))
    exterior, _, wrist = DROID_CAMERAS
    assert members[0].ref.cameras == {}
    assert members[1].ref.cameras == {exterior: "front", wrist: "hand"}
    batch = read(config, members, Pick(0, 1, SegmentId(0, 1)))
    dataset = members[1].dataset
    for view, camera in ((0, "front"), (2, "hand")):
        shown = torch.from_numpy(dataset.frames(0, camera, [0, 1, 4, 5])).permute(0, 3, 1, 2)
        assert torch.equal(batch.frames[0, view], shown)
    assert not batch.view_mask[0, 1].any()
    check_cameras(members, config.cameras)


def test_missing_views_show_others_or_nothing(make_robot: MakeRobot) -> None:
    ref = DatasetRef(uri=make_robot("deltas"))
    picks = [Pick(place, 0, SegmentId(0, 1)) for place in range(12)]
    plain = read(*opened(ref, action="droid"), *picks)
    assert plain.view_mask.any(2).tolist() == [[True, False, True]] * 12
    same = read(*opened(ref, action="droid", missing_views="same"), *picks)
    config, members = opened(ref, action="droid", missing_views="random")
    random = read(config, members, *picks)
    for batch in (same, random):
        assert torch.equal(batch.frames[:, ::2], plain.frames[:, ::2])
        assert batch.view_mask.all()
    assert torch.equal(same.frames[:, 1], plain.frames[:, 0])
    shown = [[torch.equal(frames[1], frames[view]) for view in (0, 2)] for frames in random.frames]
    assert {tuple(which) for which in shown} == {(True, False), (False, True)}
    again = read(config, members, *picks[5:])
    assert torch.equal(again.frames, random.frames[5:]), "a sample is the same in any batch"


def test_a_declared_mapping_counts_alone(make_robot: MakeRobot) -> None:
    exterior, other, wrist = DROID_CAMERAS
    uri = make_robot("deltas")
    _, members = opened(DatasetRef(uri=uri, cameras={other: "depth"}), action="droid")
    assert members[0].ref.cameras == {other: "depth"}
    for cameras, message in (
        ({"wrist": "hand"}, r"no camera 'wrist': did you mean 'wrist_image_left'"),
        ({wrist: "hnad"}, "no camera 'hnad': did you mean 'hand'"),
        ({wrist: "hand", exterior: "hand"}, "stands for two"),
    ):
        with pytest.raises(UserError, match=message):
            opened(DatasetRef(uri=uri, cameras=cameras))


def test_every_second_step(make_robot: MakeRobot) -> None:
    config, members = opened(DatasetRef(uri=make_robot("deltas"), stride=2))
    batch = read(config, members, Pick(0, 0, SegmentId(0, 2)), Pick(1, 0, SegmentId(1, 5)))
    stored = members[0].dataset.array(0, "action")[2:10].reshape(4, 2, 7)
    np.testing.assert_allclose(batch.action[0, :, :3], stored[:, :, :3].sum(1), atol=1e-6)
    np.testing.assert_array_equal(batch.action[0, :, 6], stored[:, 1, 6])
    shown = members[0].dataset.frames(0, "front", [0, 2, 8, 10])
    assert torch.equal(batch.frames[0, 0], torch.from_numpy(shown).permute(0, 3, 1, 2))
    assert batch.action_mask[1].all(1).tolist() == [True, True, True, False], "11 steps: the fourth pair lacks one"
    assert config.action is not None
    assert config.action.rate == 10.0
    assert config.embodiments[0].action == config.action
    with pytest.raises(UserError, match=r"joints.* is not|does not say what its actions mean, so 3 steps"):
        check_actions(opened(DatasetRef(uri=make_robot("undeclared"), stride=3))[1])


def test_undeclared_numbers_are_never_mixed_with_declared_ones(make_robot: MakeRobot) -> None:
    plain, droid = (DatasetRef(uri=make_robot(name)) for name in ("undeclared", "droid"))
    config, members = opened(plain)
    assert config.action is None
    assert not config.embodiments
    assert read(config, members, Pick(0, 0, SegmentId(0, 2))).action_mask.all()
    with pytest.raises(UserError, match="the first dataset with actions does not"):
        opened(plain, droid)
    _, members = opened(droid, plain)
    with pytest.raises(UserError, match="undeclared version 1 does not say what its actions mean"):
        check_actions(members)


def test_a_robot_without_one_action_of_the_runs_is_an_error_that_says_why(make_robot: MakeRobot) -> None:
    only = JOINTS.model_copy(update={"parts": JOINTS.parts[:1]})
    _, members = opened(DatasetRef(uri=make_robot("deltas")), action=only)
    with pytest.raises(UserError, match=r"no part of the run's actions: it has move \(3\).*the run takes joints \(6\)"):
        check_actions(members)


def test_the_parts_of_all_drop_nothing(make_robot: MakeRobot) -> None:
    names = ("droid", "deltas", "joints", "unknown", "film")
    config, members = opened(*(DatasetRef(uri=make_robot(name)) for name in names), actions_from="all")
    assert config.action is not None
    assert config.action.parts == (*DROID_ACTION.parts, JOINTS.parts[0], ROBOTS["unknown"].action.parts[0])  # type: ignore[union-attr]
    assert config.action_dim == 10 + 6 + 4
    for plan in dataset_plans(members, config):
        assert not plan.dropped
    batch = read(config, members, *(Pick(n, n, SegmentId(0, 2)) for n in range(5)))
    assert batch.action_mask[:, 0].sum(1).tolist() == [10, 10, 7, 4, 0]
    check_actions(members)


def test_the_table_names_all_that_a_dataset_has(make_robot: MakeRobot) -> None:
    names = ("droid", "deltas", "joints", "film")
    config, members = opened(*(DatasetRef(uri=make_robot(name)) for name in names))
    plans = dict(zip(names, dataset_plans(members, config), strict=True))
    exterior, other, wrist = DROID_CAMERAS
    parts = tuple(part.name for part in DROID_ACTION.parts)
    assert plans["droid"].same == parts
    assert plans["deltas"].cameras == {exterior: "front", wrist: "hand"}
    assert (plans["deltas"].lacks, plans["deltas"].dropped_cameras) == ((other,), ("depth",))
    assert [text.partition(" (")[0] for text in plans["deltas"].converted] == ["move", "turn", "hand"]
    assert plans["joints"].same == ()
    assert [text.partition(" (")[0] for text in plans["joints"].converted] == ["gripper"]
    assert (plans["joints"].masked, plans["joints"].dropped) == (parts[:2], ("joints",))
    assert (plans["film"].masked, plans["film"].action_steps) == (parts, 0)
    assert plans["film"].dropped_states == ("observation/position",)
    (seen,) = dataset_plans(members[:1], config.model_copy(update={"states": (RunState(name="observation/position"),)}))
    assert (seen.states, seen.lacks_states, seen.dropped_states) == (("observation/position",), (), ())
    for name, plan in plans.items():
        spec = ROBOTS[name]
        assert {*plan.cameras.values(), *plan.dropped_cameras} == set(spec.cameras)
        told = " ".join([*plan.same, *plan.converted, *plan.dropped])
        assert name == "film" or all(part.name in told for part in spec.action.parts)  # type: ignore[union-attr]
        assert plan.facts["steps"] == f"25, {plan.action_steps} with actions"
    assert plans["joints"].facts["actions dropped"] == "joints"
