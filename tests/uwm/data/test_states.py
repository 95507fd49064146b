"""States as observation: what is read of them, what is masked, and what becomes [-1, 1]."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from storage_schemas.catalog.commits import commit
from storage_schemas.catalog.table import create_dataset
from storage_schemas.episode import Episode, SegmentId
from storage_schemas.errors import UserError
from storage_schemas.schema import DatasetSpec
from storage_schemas.spaces import Part, Space, StateField
from storage_schemas.store.parts import write_part
from uwm.conditions import RunState
from uwm.config import DataConfig, DatasetRef
from uwm.data.augment import evaluation_batch
from uwm.data.batch import RawBatch
from uwm.data.condition import ConditionTable, state_plans
from uwm.data.loader import SegmentReader
from uwm.data.mixture import mixture_normalizer, open_mixture
from uwm.data.sampler import Pick
from uwm.data.states import StateTable, resolve_states
from uwm.data.usage import dataset_plans
from uwm.settings import replace

CAMERAS = ("left", "wrist")
JOINTS = Space(parts=(Part(name="joint_position", quantity="joint_position", dim=2, unit="rad"),))
Write = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path, make_episode: Callable[..., Episode]) -> Write:
    """A function that writes a dataset whose episodes have the given states, and returns its uri."""

    def make(name: str, *states: dict[str, NDArray[Any]], declared: Space | None = None) -> str:
        uri = str(tmp_path / name)
        fields = (StateField(name="joints", space=declared),) if declared else ()
        create_dataset(uri, DatasetSpec(cameras=CAMERAS, action_dim=3, val_percent=0, states=fields))
        episodes = []
        for number, state in enumerate(states):
            length = len(next(iter(state.values()))) if state else 6
            made = make_episode(f"{name}-{number}", length=length, seed=number)
            episodes.append(
                Episode(
                    meta=made.meta, action=made.action, action_mask=made.action_mask, frames=made.frames, state=state
                )
            )
        commit(uri, write_part(uri, episodes, run_id="test"))
        return uri

    return make


def config(*uris: str, states: object) -> DataConfig:
    values = {
        "datasets": [DatasetRef(uri=uri) for uri in uris],
        "cameras": CAMERAS,
        "action_dim": 3,
        "action_horizon": 2,
        "next_start": 1,
        "resize": (16, 24),
        "crop": (16, 24),
        "states": states,
    }
    plain = DataConfig.model_validate(values)
    return DataConfig.model_validate(values | {"states": resolve_states(open_mixture(plain), plain.states)})


def read(data: DataConfig, *segments: tuple[int, int, int], tables: bool = False) -> RawBatch:
    """The samples of (dataset, episode, step)."""
    members = open_mixture(data)
    plans = [state_plans(member.dataset, member.ref, data) for member in members]
    own = [
        StateTable(member.dataset, member.rows, {plan.field: plan.dim for plan in each if plan.field})
        for member, each in zip(members, plans, strict=True)
    ]
    shared = [ConditionTable(states=table) for table in pickle.loads(pickle.dumps(own))]  # noqa: S301
    reader = SegmentReader([member.dataset for member in members], data, condition=shared if tables else ())
    return reader.read([Pick(0, dataset, SegmentId(row, step)) for dataset, row, step in segments], images=False)


def wave(length: int, dim: int, kind: str = "float32") -> NDArray[Any]:
    return (10 * np.sin(np.arange(length * dim).reshape(length, dim))).astype(kind)


@pytest.mark.parametrize("tables", [False, True])
def test_states_are_those_of_the_observations_steps(write: Write, tables: bool) -> None:
    joints, clock = wave(6, 2), np.arange(1 << 60, (1 << 60) + 6)[:, None]
    data = config(write("robot", {"joints": joints, "clock": clock}), states=["clock", "joints"])
    raw = read(data, (0, 0, 3), (0, 0, 0), tables=tables)
    assert raw.state.shape == (2, 2, 3)
    assert raw.state_mask.all()
    np.testing.assert_array_equal(raw.state[0, :, 1:], joints[2:4].astype(np.float64))
    np.testing.assert_array_equal(raw.state[0, :, 0], clock[2:4, 0].astype(np.float64))
    np.testing.assert_array_equal(raw.state[1, :, 1:], joints[[0, 0]].astype(np.float64), "before the start it stands")


@pytest.mark.parametrize("tables", [False, True])
def test_what_an_episode_or_a_dataset_lacks_is_masked(write: Write, tables: bool) -> None:
    holes = wave(6, 2)
    holes[2, 1] = np.nan
    data = config(write("robot", {"joints": holes}, {}), write("video", {}), states=["joints"])
    raw = read(data, (0, 0, 2), (0, 1, 2), (1, 0, 2), tables=tables)
    assert raw.state_mask[0].tolist() == [[True, True], [True, False]]
    assert not raw.state_mask[1:].any()
    assert not raw.state[~raw.state_mask].any()


def test_the_range_of_all_training_data_becomes_one(write: Write) -> None:
    first, second = np.linspace(-4, 2, 12, dtype=np.float32).reshape(6, 2), np.full((6, 2), 7, np.int64)
    data = config(
        write("robot", {"joints": first, "other": wave(6, 1)}), write("arm", {"joints": second}), states=["joints"]
    )
    members = open_mixture(data)
    normalizer = mixture_normalizer(members, states=data.states)
    (bounds,) = normalizer.states
    assert bounds.low == pytest.approx((-4, first[0, 1]))
    assert bounds.high == (7, 7)
    batch = evaluation_batch(read(data, (0, 0, 1), (1, 0, 5)), data, normalizer, device=torch.device("cpu"))
    assert batch.state.dtype == torch.float32
    assert batch.state[0, 0].tolist() == pytest.approx([-1, -1])
    assert batch.state[1].tolist() == [[1, 1], [1, 1]]


def test_a_constant_becomes_zero_and_the_unknown_stays_zero(write: Write) -> None:
    data = config(write("robot", {"joints": np.full((6, 2), 3, np.float32)}, {}), states=["joints"])
    normalizer = mixture_normalizer(open_mixture(data), states=data.states)
    batch = evaluation_batch(read(data, (0, 0, 1), (0, 1, 1)), data, normalizer, device=torch.device("cpu"))
    assert not batch.state.any()
    assert batch.state_mask[0].all()
    assert not batch.state_mask[1].any()


def test_without_states_a_batch_has_none(write: Write) -> None:
    raw = read(config(write("robot", {"joints": wave(6, 2)}), states=()), (0, 0, 3))
    assert raw.state.shape == (1, 2, 0)
    assert raw.language.shape == (1, 0)


def test_what_the_numbers_mean_comes_from_the_data(write: Write) -> None:
    plain, declared = write("plain", {"joints": wave(6, 2)}), write("said", {"joints": wave(6, 2)}, declared=JOINTS)
    assert config(declared, plain, states=["joints"]).states == (RunState(name="joints", space=JOINTS),)
    assert config(plain, states=["joints:2"]).state_dim == 2


@pytest.mark.parametrize(
    ("states", "message"),
    [
        (["joint"], "no dataset of the run has the state 'joint' of data.states: did you mean 'joints'?"),
        (["joints:3"], "the state joints has 2 numbers, not 3: choose other collections"),
        (["mixed"], "the state mixed has 1 or 2 numbers, not 1: choose other collections"),
    ],
)
def test_what_can_not_be_meant_is_refused(write: Write, states: list[str], message: str) -> None:
    uri = write("robot", {"joints": wave(6, 2), "mixed": wave(6, 1)}, {"mixed": wave(6, 2)})
    with pytest.raises(UserError, match=message):
        config(uri, states=states)


def test_another_meaning_under_the_same_name_is_masked(write: Write) -> None:
    poses = Space(parts=(Part(name="joint_position", quantity="joint_position", dim=2, unit="m"),))
    here, there = (write(name, {"joints": wave(6, 2)}, declared=space) for name, space in (("a", JOINTS), ("b", poses)))
    nobody = write("c", {"joints": wave(6, 2)})
    raw = read(config(here, there, nobody, states=["joints"]), (0, 0, 3), (1, 0, 3), (2, 0, 3))
    assert raw.state_mask.flatten(1).all(1).tolist() == [True, False, False]
    assert not raw.state[1:].any()


@pytest.mark.parametrize("tables", [False, True])
def test_what_is_written_otherwise_is_converted(write: Write, tables: bool) -> None:
    degrees = Space(parts=(Part(name="arm", quantity="joint_position", dim=2, unit="rad", scale=0.5),))
    stored, twice = wave(6, 2), 2 * wave(6, 2)
    data = config(
        write("a", {"joints": stored}, declared=JOINTS),
        write("b", {"joints": twice}, declared=degrees),
        states=["joints"],
    )
    raw = read(data, (0, 0, 3), (1, 0, 3), tables=tables)
    assert raw.state_mask.all()
    np.testing.assert_allclose(raw.state[1], stored[2:4], rtol=1e-6)
    (bounds,) = mixture_normalizer(open_mixture(data), states=data.states).states
    assert bounds.low == pytest.approx(tuple(stored.min(axis=0)), rel=1e-6)
    assert bounds.high == pytest.approx(tuple(stored.max(axis=0)), rel=1e-6)


def test_a_dataset_says_which_of_its_fields_is_meant(write: Write) -> None:
    here, there = write("a", {"joints": wave(6, 2)}), write("b", {"arm": wave(6, 2), "joints": wave(6, 1)})
    for fields, known in (({"joints": "arm"}, True), ({"joints": ""}, False)):
        plain = config(here, states=["joints"])
        refs = (*plain.datasets, DatasetRef(uri=there, states=fields))
        data = replace(plain, datasets=refs)
        data = replace(data, states=resolve_states(open_mixture(data), data.states))
        members = open_mixture(data)
        reader = SegmentReader([member.dataset for member in members], data, refs=[member.ref for member in members])
        raw = reader.read([Pick(0, 1, SegmentId(0, 3))], images=False)
        assert raw.state_mask.all() == known
        if known:
            np.testing.assert_array_equal(raw.state[0], wave(6, 2)[2:4].astype(np.float64))


def test_the_table_says_what_becomes_of_states_and_instructions(write: Write) -> None:
    here, there = write("a", {"joints": wave(6, 2), "clock": wave(6, 1)}), write("b", {"clock": wave(6, 1)})
    data = config(here, there, states=["joints"])
    first, second = dataset_plans(open_mixture(data), data)
    assert (first.states, first.lacks_states, first.dropped_states) == (("joints",), (), ("clock",))
    assert (second.states, second.lacks_states, second.dropped_states) == ((), ("joints",), ("clock",))
    assert first.facts["instructions"] == "in 1 of 1 episodes, not heard"
