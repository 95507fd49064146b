import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from uwm.eval import metrics


def random(seed: int, *shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@given(seed=st.integers(0, 1000), batch=st.integers(1, 4), steps=st.integers(1, 5), dims=st.integers(1, 4))
@settings(max_examples=40)
def test_action_errors_equal_a_loop_over_the_known_steps(seed: int, batch: int, steps: int, dims: int) -> None:
    predicted, true = random(seed, batch, steps, dims), random(seed + 1, batch, steps, dims)
    mask = random(seed + 2, batch, steps, dims) > 0.4
    for row in range(batch):
        known = (predicted - true)[row][mask[row]]
        expected = (known**2).mean() if len(known) else torch.tensor(0.0)
        assert metrics.action_mse(predicted, true, mask)[row].item() == pytest.approx(expected.item(), abs=1e-6)
        expected = known.abs().mean() if len(known) else torch.tensor(0.0)
        assert metrics.action_l1(predicted, true, mask)[row].item() == pytest.approx(expected.item(), abs=1e-6)
        errors, seen = (predicted - true)[row].abs(), mask[row]
        columns = [errors[seen[:, index], index] for index in range(dims)]
        profile = torch.stack([column.mean() if len(column) else torch.tensor(0.0) for column in columns])
        torch.testing.assert_close(metrics.action_profile(predicted, true, mask)[row].float(), profile)


@given(seed=st.integers(0, 1000), junk=st.sampled_from([math.nan, math.inf, 1e30]))
@settings(max_examples=25)
def test_what_is_masked_never_counts(seed: int, junk: float) -> None:
    true, predicted = random(seed, 3, 2, 4, 2, 3, 3), random(seed + 1, 3, 2, 4, 2, 3, 3)  # (B, V, C, N, h, w)
    mask = random(seed + 2, 3, 2, 2) > 0.5
    clean = metrics.latent_mse(predicted, true, mask)
    spoiled = predicted.masked_fill(~mask[:, :, None, :, None, None], junk)
    torch.testing.assert_close(metrics.latent_mse(spoiled, true, mask), clean)
    assert metrics.latent_mse(true, true, mask).eq(0).all()


def test_known_and_errors_of_a_sample_without_truth() -> None:
    mask = torch.tensor([[True, False], [False, False]])
    assert metrics.known(mask).tolist() == [True, False]
    values = torch.tensor([[2.0, 100.0], [3.0, 4.0]])
    assert metrics.masked_mean(values, mask).tolist() == [2.0, 0.0]


@pytest.mark.parametrize("mask", [torch.ones(2, 2), torch.ones(3, 2, dtype=torch.bool)])
def test_a_mask_that_does_not_fit_is_refused(mask: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        metrics.masked_mean(torch.ones(2, 2), mask)


def test_psnr_of_known_errors() -> None:
    assert metrics.psnr(torch.tensor([1.0, 0.01, 1e-4])).tolist() == pytest.approx([0, 20, 40])
    assert metrics.psnr(torch.tensor(0.0)).item() == pytest.approx(58.9, abs=0.05)


def test_pixel_error_is_of_what_can_be_shown() -> None:
    true = torch.ones(1, 1, 1, 3, 2, 2)
    mask = torch.ones(1, 1, 1, dtype=torch.bool)
    assert metrics.pixel_mse(true * 7, true, mask).item() == 0
    assert metrics.pixel_mse(true * 0.5, true, mask).item() == pytest.approx(0.25)
