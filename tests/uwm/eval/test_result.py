from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from storage_schemas.errors import UserError
from uwm.eval.files import EXAMPLES_FILE, RESULT_FILE, ExampleArrays, load_evaluation, load_examples, save_evaluation
from uwm.eval.result import Estimate, Evaluation, Metric, ModeName, Verdict, compare, estimate
from uwm.policy import Mode


def test_modes_are_those_of_the_policy() -> None:
    assert set(get_args(ModeName)) == {mode.value for mode in Mode}


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=20), st.integers(1, 5))
@settings(max_examples=50)
def test_estimate_is_never_more_certain_than_independent_segments(values: list[float], clusters: int) -> None:
    array = np.array(values)
    found = estimate(array, np.arange(len(array)) % clusters)
    plain = array.std(ddof=1) / np.sqrt(len(array))
    assert found.mean == pytest.approx(array.mean(), abs=1e-9)
    assert found.error >= plain - 1e-9
    assert found.count == len(array)


def test_segments_of_one_episode_are_no_independent_evidence() -> None:
    values = np.repeat([0.0, 1.0, 0.0, 1.0], 25)
    alone = estimate(values, np.arange(100))
    together = estimate(values, np.repeat(np.arange(4), 25))
    assert together.error > 4 * alone.error


@pytest.mark.parametrize(
    ("metric", "shift", "verdict"),
    [
        (Metric.ACTION_MSE, -1.0, Verdict.BETTER),
        (Metric.ACTION_MSE, 1.0, Verdict.WORSE),
        (Metric.PSNR, 1.0, Verdict.BETTER),
        (Metric.PSNR, -1.0, Verdict.WORSE),
        (Metric.PSNR, 0.0, Verdict.UNRESOLVED),
    ],
)
def test_verdict_knows_which_direction_is_good(metric: Metric, shift: float, verdict: Verdict) -> None:
    rng = np.random.default_rng(0)
    reference = rng.normal(10, 3, 40)
    noise = rng.normal(0, 0.1, 40)
    score = compare("policy", metric, "b", reference + shift + noise - noise.mean(), reference, np.arange(40))
    assert score.verdict is verdict


def test_gain_is_the_share_of_error_removed_however_hard_the_episodes_are() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat([0, 1], 20)
    reference = np.where(groups == 0, 0.1, 1.0) * rng.uniform(0.9, 1.1, 40)
    score = compare("forward", Metric.LATENT_MSE, "b", 0.7 * reference * rng.uniform(0.95, 1.05, 40), reference, groups)
    assert score.gain.mean == pytest.approx(1 - score.model.mean / score.reference.mean)
    assert score.gain.error < 0.02
    assert score.verdict is Verdict.BETTER


@pytest.mark.parametrize(("model", "verdict"), [(0.0, Verdict.UNRESOLVED), (0.1, Verdict.WORSE)])
def test_a_baseline_without_error_can_only_be_met(model: float, verdict: Verdict) -> None:
    score = compare("video", Metric.PIXEL_MSE, "b", np.full(6, model), np.zeros(6), np.arange(6))
    assert score.verdict is verdict


def test_one_segment_decides_nothing() -> None:
    score = compare("policy", Metric.PSNR, "b", np.array([30.0]), np.array([20.0]), np.array([0]))
    assert score.verdict is Verdict.UNRESOLVED


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_number_that_is_not_finite_is_refused(value: float) -> None:
    with pytest.raises(ValidationError):
        Estimate(mean=value, error=0.0, count=1)
    with pytest.raises(ValueError, match="finite"):
        estimate(np.array([value, 1.0]), np.array([0, 1]))


def test_evaluation_survives_its_file(tmp_path: Path, evaluation: Evaluation, arrays: ExampleArrays) -> None:
    saved = save_evaluation(str(tmp_path / "e"), evaluation, arrays)
    assert load_evaluation(str(tmp_path / "e")) == saved
    assert {path.name for path in (tmp_path / "e").iterdir()} == {RESULT_FILE, EXAMPLES_FILE}
    loaded = load_examples(str(tmp_path / "e"), saved)
    assert loaded is not None
    assert loaded.arrays().keys() == arrays.arrays().keys()
    for name, values in arrays.arrays().items():
        np.testing.assert_array_equal(loaded.arrays()[name], values)


def test_evaluation_without_examples(tmp_path: Path, evaluation: Evaluation) -> None:
    saved = save_evaluation(str(tmp_path), evaluation.model_copy(update={"examples": ()}))
    assert load_examples(str(tmp_path), saved) is None


def test_damaged_results_are_named(tmp_path: Path, evaluation: Evaluation, arrays: ExampleArrays) -> None:
    folder = str(tmp_path)
    with pytest.raises(UserError, match="uwm evaluate"):
        load_evaluation(folder)
    saved = save_evaluation(folder, evaluation, arrays)
    (tmp_path / EXAMPLES_FILE).write_bytes(b"other")
    with pytest.raises(UserError, match="does not belong"):
        load_examples(folder, saved)
    (tmp_path / EXAMPLES_FILE).unlink()
    with pytest.raises(UserError, match=r"no examples\.npz"):
        load_examples(folder, saved)
    for text in ("{", '{"format": 2}', "[]", '{"segments": NaN}'):
        (tmp_path / RESULT_FILE).write_text(text)
        with pytest.raises(UserError, match="damaged or of another version"):
            load_evaluation(folder)


def test_examples_that_disagree_are_refused(arrays: ExampleArrays) -> None:
    good = arrays.arrays()
    with pytest.raises(ValueError, match="elsewhere"):
        ExampleArrays.from_arrays(good | {"action": good["action"][:1]})
    with pytest.raises(ValueError, match="dimensions"):
        ExampleArrays.from_arrays(good | {"true": good["true"][0]})
    with pytest.raises(TypeError):
        ExampleArrays.from_arrays(good | {"frames/forward": good["true"]})
    with pytest.raises(TypeError):
        ExampleArrays.from_arrays({name: values for name, values in good.items() if name != "action"})
