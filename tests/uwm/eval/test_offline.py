from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from storage_schemas.errors import UserError
from storage_schemas.store.dataset import open_dataset
from uwm.checkpoint import load_checkpoint
from uwm.config import RunConfig
from uwm.eval.baselines import COPIED, COPIED_TOKENIZED, MEAN_ACTION
from uwm.eval.files import load_evaluation, load_examples
from uwm.eval.offline import ORDER, evaluate
from uwm.eval.options import EvalOptions
from uwm.eval.result import Evaluation, Metric
from uwm.eval.setup import full_windows, open_evaluation_setup, spread
from uwm.policy import Mode
from uwm.train.trainer import train

LENGTHS = (12, 9, 2, 14, 20, 8, 11)
PIXELS = (Metric.PIXEL_MSE, Metric.PSNR)
MakeStore = Callable[..., str]
DebugRun = Callable[..., RunConfig]


@pytest.fixture
def store(make_store: MakeStore) -> str:
    return make_store(lengths=LENGTHS, val=50)


@pytest.fixture
def checkpoint(store: str, debug_run: DebugRun) -> str:
    return str(train(debug_run(store, "train.steps=1")))


def numbers(evaluation: Evaluation) -> str:
    return evaluation.model_copy(update={"seconds": 0.0}).to_json()


@given(lengths=st.lists(st.integers(1, 40), max_size=8), last=st.integers(0, 20), samples=st.integers(1, 60))
@settings(max_examples=100)
def test_windows_are_whole_different_and_evenly_spaced(lengths: list[int], last: int, samples: int) -> None:
    rows = np.arange(len(lengths)) * 3 + 1
    found = full_windows(rows, np.array(lengths, np.int64), last, samples)
    there_are = [(int(row), step) for row, length in zip(rows, lengths, strict=True) for step in range(length - last)]
    assert len(found) == min(samples, len(there_are))
    assert len(set(found)) == len(found)
    places = [there_are.index(tuple(segment)) for segment in found]
    gaps = np.diff(places)
    assert not len(gaps) or (gaps.min() > 0 and gaps.max() - gaps.min() <= 1)


def measure(checkpoint: str, store: str, **given: Any) -> Evaluation:
    """`evaluate` on the newest version, or on `version`."""
    options = EvalOptions(**{name: given.pop(name) for name in EvalOptions.model_fields if name in given})
    return evaluate(checkpoint, open_dataset(store, options.version), options, **given)


@given(st.integers(0, 500), st.integers(0, 50))
def test_spread_stays_inside(total: int, count: int) -> None:
    found = spread(total, count)
    assert len(set(found.tolist())) == len(found) == min(total, count)
    assert all(0 <= place < total for place in found.tolist())


def test_all_modes_are_measured_beside_their_baselines(store: str, checkpoint: str, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    out = str(tmp_path / "evaluation")
    found = measure(
        checkpoint, store, samples=10, batch_size=4, examples=3, out=out, progress=lambda *told: seen.append(told)
    )
    assert seen == [(4, 10), (8, 10), (10, 10)]
    assert list(dict.fromkeys(score.mode for score in found.scores)) == [mode.value for mode in ORDER]
    actions = {(metric, MEAN_ACTION) for metric in (Metric.ACTION_MSE, Metric.ACTION_L1)}
    frames = {(metric, name) for metric in PIXELS for name in (COPIED, COPIED_TOKENIZED)} | {
        (Metric.LATENT_MSE, COPIED)
    }
    expected = {"policy": actions, "inverse": actions, "forward": frames, "video": frames, "joint": actions | frames}
    for mode, kinds in expected.items():
        assert {(score.metric, score.baseline) for score in found.scores if score.mode == mode} == kinds
    assert {score.model.count for score in found.scores} == {10}
    assert {profile.mode for profile in found.actions} == {"policy", "inverse", "joint"}
    assert found.ceiling is not None
    assert found.ceiling.mean == pytest.approx(58.9, abs=0.1)  # the identity tokenizer loses nothing
    dataset = open_dataset(store)
    assert found.settings.dataset_id == dataset.table_id
    assert load_evaluation(out) == found
    arrays = load_examples(out, found)
    assert arrays is not None
    assert set(arrays.frames) == {"forward", "video", "joint"}
    assert set(arrays.actions) == {"policy", "inverse", "joint"}
    rows = {row.episode_id: index for index, row in enumerate(dataset.episodes.rows())}
    for index, example in enumerate(found.examples):
        true = dataset.array(rows[example.episode_id], "action")[example.step : example.step + 4]
        np.testing.assert_allclose(arrays.action[index], true, atol=1e-5)


def test_evaluating_again_gives_the_same_numbers(store: str, checkpoint: str) -> None:
    first = measure(checkpoint, store, samples=6, batch_size=4)
    assert numbers(measure(checkpoint, store, samples=6, batch_size=4)) == numbers(first)
    other = measure(checkpoint, store, samples=6, batch_size=4, seed=1)
    assert other.score("policy", Metric.ACTION_MSE) != first.score("policy", Metric.ACTION_MSE)
    pairs = zip(first.scores, other.scores, strict=True)
    assert all(one.reference == two.reference for one, two in pairs)  # baselines draw nothing


def test_baselines_are_what_they_say(store: str, checkpoint: str) -> None:
    found = measure(checkpoint, store, samples=1000, batch_size=64)
    dataset, loaded = open_dataset(store), load_checkpoint(checkpoint)
    training, held_out = (dataset.episodes.select(split=split) for split in ("train", "val"))
    mean = np.concatenate([dataset.array(int(row), "action") for row in training]).mean(axis=0)
    assert loaded.normalizer.normalize(torch.from_numpy(mean)).numpy() == pytest.approx(
        open_evaluation_setup(checkpoint, dataset, EvalOptions(samples=1, device="cpu")).mean_action.numpy(),
        abs=1e-5,
    )
    errors = []
    for row in held_out:
        action = dataset.array(int(row), "action")
        spec = loaded.config.data.segment_spec
        starts = range(len(action) - spec.last)
        errors += [np.abs(action[start : start + 4] - mean).mean(axis=0) for start in starts]
    assert found.segments == len(errors)
    profile = next(profile for profile in found.actions if profile.mode == "policy")
    assert profile.mean_action == pytest.approx(np.mean(errors, axis=0), rel=1e-4)


def test_action_free_data_asks_only_about_frames(make_store: MakeStore, checkpoint: str, tmp_path: Path) -> None:
    video = make_store("video", lengths=LENGTHS, val=50, known=False, cameras=("wrist",))
    out = str(tmp_path / "evaluation")
    found = measure(checkpoint, video, samples=6, batch_size=4, out=out)
    assert {score.mode for score in found.scores} == {"video", "joint"}
    assert not {Metric.ACTION_MSE, Metric.ACTION_L1} & {score.metric for score in found.scores}
    assert found.actions == ()
    arrays = load_examples(out, found)
    assert arrays is not None
    assert not arrays.action_mask.any()
    assert arrays.current_mask.tolist() == [[False, True]] * len(found.examples)


def test_bad_requests_end_in_one_line(store: str, checkpoint: str, make_store: MakeStore, tmp_path: Path) -> None:
    short = make_store("short", lengths=(4, 3, 4, 3, 4, 3, 4), val=50)
    no_val = make_store("no-val", lengths=(12,), val=0)
    calls: list[tuple[str, str, dict[str, object], str]] = [
        (str(tmp_path / "nothing"), store, {}, "does not exist"),
        (checkpoint, str(tmp_path / "nothing"), {}, "nothing"),
        (checkpoint, store, {"version": 99}, "99"),
        (checkpoint, store, {"collections": ("elsewhere",)}, "elsewhere"),
        (checkpoint, short, {}, "steps of one segment"),
        (checkpoint, no_val, {}, "no val episode"),
    ]
    for path, uri, options, words in calls:
        with pytest.raises(UserError, match=words) as caught:
            measure(path, uri, samples=4, **options)
        assert "\n" not in str(caught.value)


def test_a_tokenizer_is_no_policy(store: str, debug_run: DebugRun) -> None:
    tokenizer = train(debug_run(store, "stage=tokenizer", "train.steps=1", "autoencoder.width=4"))
    with pytest.raises(UserError, match="is a tokenizer"):
        measure(str(tokenizer), store)


def test_a_diverged_checkpoint_is_named(store: str, checkpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from uwm.model.uwm import UWMPolicy
    from uwm.policy import Sample

    def diverged(self: UWMPolicy, encoded: object, modes: list[Mode], generator: torch.Generator) -> dict[Mode, Sample]:
        return {mode: Sample(action=torch.full((1, 4, 3), torch.nan), next_obs=None) for mode in modes}

    monkeypatch.setattr(UWMPolicy, "sample_modes", diverged)
    with pytest.raises(UserError, match="diverged"):
        measure(checkpoint, store, samples=1)


def test_nothing_to_measure_is_an_error(make_store: MakeStore, debug_run: DebugRun) -> None:
    """A policy that predicts actions alone has no answer that data without actions could be compared with."""
    store = make_store("robot", lengths=LENGTHS, val=50)
    acting = str(train(debug_run(store, "policy=dp", "train.steps=1")))
    video = make_store("video", lengths=LENGTHS, val=50, known=False)
    with pytest.raises(
        UserError, match=r"nothing to measure: .* predicts \(policy\) is known in none of 4 val segments"
    ):
        measure(acting, video, samples=4)


def test_a_collection_that_is_not_there_is_named(store: str, checkpoint: str) -> None:
    (known,) = set(open_dataset(store).episodes.collections)
    with pytest.raises(UserError, match=f"has no collection elsewhere: it has {known}"):
        measure(checkpoint, store, collections=(known, "elsewhere"), samples=4)
