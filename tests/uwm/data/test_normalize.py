"""Action bounds: inverse, range, constants, JSON."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from uwm.data.normalize import ActionNormalizer, ActionRange, NormalizerSource, Scale, fit_normalizer

number = st.floats(-1e3, 1e3, width=32)
source = NormalizerSource(uri="a", version=1)


def of(actions: np.ndarray) -> ActionNormalizer:
    return fit_normalizer([range_of(actions)], actions.shape[1])


def range_of(actions: np.ndarray) -> ActionRange:
    if not len(actions):
        return ActionRange(count=0, low=(), high=(), total=(), source=source)
    low, high, total = (tuple(values.tolist()) for values in (actions.min(0), actions.max(0), actions.sum(0)))
    squares = tuple((actions**2).sum(0).tolist())
    return ActionRange(count=len(actions), low=low, high=high, total=total, squares=squares, source=source)


@given(st.lists(st.tuples(number, number), min_size=1, max_size=20))
def test_training_range_fills_the_unit_range_and_comes_back(rows: list[tuple[float, float]]) -> None:
    actions = np.array(rows, np.float64)
    normalizer = of(actions)
    normalized = normalizer.normalize(torch.from_numpy(actions))
    assert torch.isfinite(normalized).all()
    assert normalized.abs().max() <= 1 + 1e-9
    for column in range(2):
        if np.ptp(actions[:, column]) > 1e-2:
            assert normalized[:, column].min().item() == pytest.approx(-1)
            assert normalized[:, column].max().item() == pytest.approx(1)
    np.testing.assert_allclose(normalizer.denormalize(normalized).numpy(), actions, rtol=1e-9, atol=1e-9)


def test_constant_dimension_is_zero_and_stays_exact() -> None:
    normalizer = of(np.array([[0.25, 1.0], [0.25, 3.0]]))
    action = torch.tensor([[0.25, 2.0], [0.75, 1.0]])
    normalized = normalizer.normalize(action)
    assert normalized.tolist() == [[0.0, 0.0], [0.5, -1.0]]
    assert torch.equal(normalizer.denormalize(normalized), action)


def test_ranges_of_several_datasets_are_joined() -> None:
    found = fit_normalizer([range_of(np.array(rows)) for rows in ([[0.0], [2.0]], [[-4.0]], [])], 1)
    assert (found.low, found.high, found.count) == ((-4.0,), (2.0,), 3)
    assert found.mean[0] == pytest.approx(-2 / 3)
    assert found.normalized_mean().tolist() == pytest.approx([(-2 / 3 + 1) / 3])
    assert len(found.sources) == 2


def test_without_known_actions_nothing_changes() -> None:
    normalizer = fit_normalizer([], 2)
    action = torch.tensor([[0.3, -5.0]])
    assert torch.equal(normalizer.normalize(action), action)
    assert normalizer.count == 0


def test_json_round_trip() -> None:
    normalizer = of(np.random.default_rng(0).normal(size=(5, 3)))
    assert ActionNormalizer.model_validate_json(normalizer.model_dump_json()) == normalizer


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        '{"low": [0], "high": [1, 2], "mean": [0], "count": 1}',
        '{"low": [2], "high": [1], "mean": [0], "count": 1}',
        '{"low": [NaN], "high": [1], "mean": [0], "count": 1}',
    ],
)
def test_bad_json_is_refused(text: str) -> None:
    with pytest.raises(ValidationError):
        ActionNormalizer.model_validate_json(text)


def test_dimensions_must_agree() -> None:
    with pytest.raises(ValueError, match="2 dimensions"):
        fit_normalizer([range_of(np.zeros((1, 3)))], 2)
    assert math.isfinite(of(np.zeros((1, 3))).normalize(torch.zeros(3)).sum())


@given(st.lists(st.tuples(number, number), min_size=2, max_size=40))
def test_percentiles_and_deviation_are_numpys(rows: list[tuple[float, float]]) -> None:
    actions = np.array(rows, np.float32).astype(np.float64)
    low, high = np.quantile(actions, [0.01, 0.99], axis=0, method="inverted_cdf")
    scaled = scale_of(actions, "quantile")
    np.testing.assert_array_equal([scaled.low, scaled.high], [low, high])
    scaled = scale_of(actions, "z_score")
    spread = np.abs(actions).max() ** 2 * 1e-9 + 1e-9
    np.testing.assert_allclose(((np.array(scaled.high) - scaled.low) / 2) ** 2, actions.var(0), atol=spread, rtol=1e-6)
    for normalizer in (scaled, scale_of(actions, "quantile")):
        back = normalizer.denormalize(normalizer.normalize(torch.from_numpy(actions)))
        np.testing.assert_allclose(back.numpy(), actions, rtol=1e-6, atol=1e-6)
        assert ActionNormalizer.model_validate_json(normalizer.model_dump_json()) == normalizer


@pytest.mark.parametrize("scale", ["min_max", "quantile", "z_score"])
def test_constant_dimension_is_zero_in_every_scale(scale: Scale) -> None:
    normalizer = scale_of(np.array([[0.25, 1.0], [0.25, 3.0], [0.25, 2.0]]), scale)
    assert normalizer.normalize(torch.tensor([0.25, 2.0]))[0].item() == pytest.approx(0, abs=1e-6)
    assert normalizer.scale == scale


def test_datasets_weigh_by_their_steps_in_percentiles() -> None:
    many, few = np.zeros((300, 1)), np.full((100, 1), 5.0)
    ranges = [range_of(many), range_of(few)]
    sampled = fit_normalizer(ranges, 1, "quantile", [many[:3], few])
    whole = fit_normalizer(ranges, 1, "quantile", [many, few])
    assert (sampled.low, sampled.high) == (whole.low, whole.high) == ((0.0,), (5.0,))


def scale_of(actions: np.ndarray, scale: Scale) -> ActionNormalizer:
    return fit_normalizer([range_of(actions)], actions.shape[1], scale, [actions])
