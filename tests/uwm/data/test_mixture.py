"""Mixtures: exact shares, pinned versions, training episodes only."""

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage_schemas.errors import UserError
from storage_schemas.store.dataset import Dataset, open_dataset
from uwm.config import DataConfig, DatasetRef, RunConfig
from uwm.data.mixture import (
    MixtureSampler,
    Quotas,
    check_actions,
    check_cameras,
    dataset_normalizer,
    mixture_normalizer,
    mixture_sampler,
    open_mixture,
)
from uwm.data.normalize import NormalizerSource, Scale
from uwm.data.sampler import SegmentSampler
from uwm.train.trainer import train

MakeStore = Callable[..., str]
DebugRun = Callable[..., RunConfig]

weights = st.lists(st.sampled_from([0.1, 0.25, 1.0, 1.5, 3.0, 7.0]), min_size=1, max_size=5)


@given(weights, st.integers(0, 3))
def test_shares_are_exact_after_every_period(weights: list[float], period: int) -> None:
    quotas = Quotas(weights)
    first = period * quotas.period
    found = Counter(quotas.place(first + i)[0] for i in range(quotas.period))
    for dataset, weight in enumerate(weights):
        assert found[dataset] / quotas.period == pytest.approx(weight / sum(weights))


@given(weights)
def test_every_dataset_counts_its_own_samples_and_never_strays(weights: list[float]) -> None:
    quotas = Quotas(weights)
    counts = [0] * len(weights)
    for position in range(300):
        dataset, earlier = quotas.place(position)
        assert earlier == counts[dataset]
        counts[dataset] += 1
        for count, weight in zip(counts, weights, strict=True):
            assert abs(count - (position + 1) * weight / sum(weights)) < len(weights)


@pytest.mark.parametrize("weights", [[], [1.0, 0.0], [-1.0]])
def test_weights_are_positive(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="positive"):
        Quotas(weights)


def test_mixture_draws_each_dataset_without_replacement() -> None:
    samplers = [SegmentSampler(np.arange(1), np.array([size]), (0, size)) for size in (7, 5)]
    mixture = MixtureSampler(samplers, [2.0, 1.0])
    picks = [mixture.pick(position) for position in range(36)]
    assert [pick.position for pick in picks] == list(range(36))
    for dataset, size in enumerate((6, 4)):
        own = [pick.segment for pick in picks if pick.dataset == dataset]
        for epoch in range(len(own) // size):
            assert len(set(own[epoch * size : (epoch + 1) * size])) == size


def test_an_empty_dataset_is_no_part_of_a_mixture() -> None:
    with pytest.raises(ValueError, match="segments"):
        MixtureSampler([SegmentSampler(np.arange(1), np.array([1]), (0,))], [1.0])


def config(*refs: DatasetRef, **changes: object) -> DataConfig:
    values: dict[str, object] = {"datasets": refs, "cameras": ("left",), "action_dim": 3}
    return DataConfig.model_validate(values | changes)


def test_versions_are_pinned_and_shares_kept(make_store: Callable[..., str]) -> None:
    robot, video = make_store("robot"), make_store("video", (8,), known=False)
    members = open_mixture(config(DatasetRef(uri=robot, weight=3.0), DatasetRef(uri=video)))
    assert [member.ref.version for member in members] == [member.dataset.version for member in members]
    sampler = mixture_sampler(members, 0)
    assert Counter(sampler.pick(i).dataset for i in range(40)) == {0: 30, 1: 10}
    assert [member.known_actions for member in members] == [23, 0]
    other = open_mixture(config(DatasetRef(uri=robot), action_dim=5))
    assert other[0].known_actions == 0, "actions of another space are not used"


def test_normalizer_covers_training_episodes_only(make_store: Callable[..., str]) -> None:
    uri = make_store("robot", (9,) * 30, val=50)
    (member,) = open_mixture(config(DatasetRef(uri=uri)))
    splits = member.dataset.episodes.splits
    assert {splits[row] for row in member.rows} == {"train"}
    assert 0 < len(member.rows) < 30
    actions = np.concatenate([member.dataset.array(int(row), "action") for row in member.rows])
    found = mixture_normalizer([member])
    assert found.count == len(actions)
    np.testing.assert_allclose(found.low, actions.min(0))
    np.testing.assert_allclose(found.high, actions.max(0))
    np.testing.assert_allclose(found.mean, actions.mean(0, dtype=np.float64), atol=1e-6)
    assert found.sources[0].uri == uri
    assert found.sources[0].version == member.dataset.version


def test_without_actions_the_normalizer_is_the_identity(make_store: Callable[..., str]) -> None:
    members = open_mixture(config(DatasetRef(uri=make_store("video", (8,), known=False))))
    assert mixture_normalizer(members).count == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cameras": ("top",)}, "none of the cameras"),
        ({"collections": ("elsewhere",)}, "no collection elsewhere"),
        ({"version": 99}, "99"),
    ],
)
def test_unusable_datasets_are_refused_in_one_line(
    make_store: Callable[..., str], changes: dict[str, object], message: str
) -> None:
    ref = {"uri": make_store("robot")} | {key: value for key, value in changes.items() if key != "cameras"}
    data = config(DatasetRef.model_validate(ref), cameras=changes.get("cameras", ("left",)))
    with pytest.raises(UserError, match=message) as caught:
        open_mixture(data)
    assert "\n" not in str(caught.value)


def test_a_run_without_data_says_what_to_set() -> None:
    with pytest.raises(UserError, match=r"data\.datasets\.0\.uri"):
        open_mixture(config())


@pytest.mark.parametrize("scale", ["min_max", "quantile", "z_score"])
def test_a_splits_normalizer_is_keyed_and_opens_no_image(
    make_store: Callable[..., str], monkeypatch: pytest.MonkeyPatch, scale: Scale
) -> None:
    uri = make_store("robot", (12, 9, 8, 7, 6, 5), val=40)
    dataset = open_dataset(uri)
    monkeypatch.setattr(Dataset, "chunks", None)
    found = {split: dataset_normalizer(uri, split=split, scale=scale) for split in ("train", "val", None)}
    for split, normalizer in found.items():
        rows = dataset.episodes.select(split=split)
        actions = np.concatenate([dataset.array(row, "action") for row in rows])
        assert normalizer.count == len(actions)
        assert normalizer.sources == (NormalizerSource(uri=uri, version=1, split=split),)
        centre = (np.array(normalizer.low) + normalizer.high) / 2
        if scale == "z_score":
            np.testing.assert_allclose(centre, actions.mean(0), atol=1e-6)
        elif scale == "quantile":
            low = np.quantile(actions, 0.01, axis=0, method="inverted_cdf")
            np.testing.assert_allclose(normalizer.low, low, atol=1e-6)
        else:
            np.testing.assert_allclose(normalizer.low, actions.min(0), atol=1e-6)
    assert found["train"] != found["val"]


def test_actions_of_another_dimension_are_an_error_that_names_both(make_store: MakeStore, debug_run: DebugRun) -> None:
    other = make_store("other", (12, 9), action_dim=5)
    with pytest.raises(UserError, match=r"other version 1 has 5-dim actions, the run takes 3"):
        train(debug_run(other))
    silent = debug_run(make_store("silent", (12, 9), action_dim=5, known=False))
    check_actions(open_mixture(silent.data))  # without actions, nothing is lost


def test_a_misspelt_camera_is_named_with_the_nearest(make_store: MakeStore, debug_run: DebugRun) -> None:
    store = make_store()  # left and wrist
    with pytest.raises(UserError, match=r"'wirst' in data\.cameras: did you mean 'wrist'\?; there are left, wrist"):
        train(debug_run(store, "data.cameras=left,wirst"))
    more = open_mixture(debug_run(store, "data.cameras=left,wrist,right").data)
    check_cameras(more, ("left", "wrist", "right"))  # a place for what it is finetuned on later


def test_one_wrong_collection_among_several_is_named(make_store: MakeStore, debug_run: DebugRun) -> None:
    store = make_store()
    (known,) = set(open_dataset(store).episodes.collections)
    with pytest.raises(UserError, match=f"has no collection elsewhere: it has {known}"):
        train(debug_run(store, f"data.datasets.0.collections={known},elsewhere"))


def test_a_policy_that_only_acts_needs_a_known_action(make_store: MakeStore, debug_run: DebugRun) -> None:
    film = make_store("film", known=False)
    with pytest.raises(UserError, match=r"nothing to learn from: policy dp learns from actions, .*film"):
        train(debug_run(film, "policy.kind=dp"))
    train(debug_run(film, "train.steps=1"))  # a policy that predicts frames learns from them
