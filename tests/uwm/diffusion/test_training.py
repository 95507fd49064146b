"""What a training step noises, leaves out, and divides its loss by."""

import pytest
import torch

from uwm.data.batch import MicroBatch
from uwm.diffusion.schedule import alphas_cumprod
from uwm.diffusion.training import Noised, masked_mse, noise_modality
from uwm.policies import UwmDiffusionConfig

CONFIG = UwmDiffusionConfig(prediction="sample", absent_embedding=True)
ALPHAS_CUMPROD = alphas_cumprod(CONFIG)
CHANCES = [(0.0, 0.0), (0.5, 0.0), (0.3, 0.3)]


def noise(clean: torch.Tensor, known: torch.Tensor, draws: torch.Generator, chance: tuple[float, float]) -> Noised:
    return noise_part(clean, known, draws, chance, micro_batch_of(known, 0, 1))


def noise_part(
    clean: torch.Tensor,
    known: torch.Tensor,
    draws: torch.Generator,
    chance: tuple[float, float],
    micro_batch: MicroBatch,
) -> Noised:
    return noise_modality(
        clean,
        known,
        generator=draws,
        config=CONFIG,
        alphas_cumprod=ALPHAS_CUMPROD,
        micro_batch=micro_batch,
        dropped=chance[0],
        given=chance[1],
    )


def micro_batch_of(known: torch.Tensor, first: int, parts: int) -> MicroBatch:
    count = float(known.sum()) / parts
    return MicroBatch(first=first, samples=len(known), known_actions=count, known_frames=count)


@pytest.mark.parametrize("chance", CHANCES)
def test_what_chance_leaves_out_changes_no_loss_on_average(chance: tuple[float, float]) -> None:
    """Of networks that predict zero the loss is the mean square of what is known, also in batches of two samples.

    Divided by what was left, the loss would be too small: batches of which nothing is left would count as zero.
    """
    clean = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [7.0, 8.0]]])  # (B, S, A)
    known = torch.tensor([[True, True], [True, False]])[..., None]
    draws, losses, kept = torch.Generator().manual_seed(0), [], []
    for _ in range(2000):
        noised = noise(clean, known, draws, chance)
        count = noised.count(float(known.sum()))
        losses.append(masked_mse(torch.zeros_like(clean), noised.target, noised.counted, count))
        kept.append(noised.counted.flatten(1).any(1).float().mean())
    expected = clean[known.expand_as(clean)].square().mean()
    torch.testing.assert_close(torch.stack(losses).mean(), expected, atol=0, rtol=0.06)
    assert float(torch.stack(kept).mean()) == pytest.approx(noised.kept, abs=0.03)


@pytest.mark.parametrize("chance", CHANCES)
@pytest.mark.parametrize("parts", [2, 4])
def test_micro_batches_leave_out_what_the_whole_does(chance: tuple[float, float], parts: int) -> None:
    clean = torch.randn(8, 3, 2, generator=torch.Generator().manual_seed(1))
    known = (torch.arange(24).view(8, 3, 1) % 5 > 1) & (torch.arange(8) < 5).view(8, 1, 1)  # the last three nothing
    whole = noise(clean, known, torch.Generator().manual_seed(2), chance)
    loss = masked_mse(torch.zeros_like(clean), whole.target, whole.counted, whole.count(float(known.sum())))
    losses = []
    for first in range(0, 8, 8 // parts):
        rows, micro_batch = slice(first, first + 8 // parts), micro_batch_of(known, first, parts)
        part = noise_part(clean[rows], known[rows], torch.Generator().manual_seed(2), chance, micro_batch)
        for name in ("noisy", "target", "timestep", "present", "counted", "known"):
            assert torch.equal(getattr(part, name), getattr(whole, name)[rows]), name
        count = part.count(micro_batch.known_actions)
        losses.append(masked_mse(torch.zeros_like(part.target), part.target, part.counted, count))
    torch.testing.assert_close(torch.stack(losses).mean(), loss)
    assert loss > 0


def test_dropped_samples_are_absent_and_given_ones_are_clean() -> None:
    clean, known = torch.ones(400, 3, 2), torch.ones(400, 3, 1, dtype=torch.bool)
    found = noise(clean, known, torch.Generator().manual_seed(0), (0.3, 0.3))
    absent, bare = found.timestep == CONFIG.train_timesteps, found.timestep == -1
    assert torch.equal(found.present, ~absent)
    assert torch.equal(found.counted.flatten(1).any(1), ~absent & ~bare)
    assert torch.equal(found.noisy[bare], clean[bare])
    assert absent.sum() == pytest.approx(120, abs=30)
    assert bare.sum() == pytest.approx(0.7 * 120, abs=30)


def test_nothing_known_is_no_loss() -> None:
    nothing = torch.zeros(2, 3, 1, dtype=torch.bool)
    values = torch.ones(2, 3, 2)
    for count in (0.0, 4.0):
        assert masked_mse(values, 0 * values, nothing, count) == 0
