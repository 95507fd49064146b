"""Augmentation: per sample, reproducible, and blind to the rest of the batch."""

from dataclasses import fields

import pytest
import torch
from batches import raw_batch

from uwm.config import DataConfig
from uwm.data.augment import evaluation_batch, jitter_colours, training_batch
from uwm.data.batch import Batch, RawBatch
from uwm.data.loader import uniform_draws
from uwm.data.normalize import ActionNormalizer

CPU = torch.device("cpu")
NORMALIZER = ActionNormalizer(low=(0.0, 0.0), high=(4.0, 4.0), mean=(2.0, 2.0), count=9)


def config(**changes: object) -> DataConfig:
    sizes = {
        "resize": (20, 30),
        "crop": (16, 24),
        "obs_frames": 1,
        "next_frames": 2,
        "action_dim": 2,
        "action_horizon": 3,
    }
    return DataConfig.model_validate(sizes | {"cameras": ("a", "b")} | changes)


def raw(positions: list[int], seed: int = 0) -> RawBatch:
    """Samples whose content is a function of their position, with the draws that the loader would give them."""
    rows = [torch.Generator().manual_seed(position) for position in positions]
    count = len(positions)
    view_mask = torch.ones(count, 2, 3, dtype=torch.bool)
    view_mask[:, 1, 2] = False
    action_mask = torch.tensor([True, True, False])[:, None].repeat(count, 1, 2)
    frames = torch.stack([torch.randint(256, (2, 3, 3, 20, 30), dtype=torch.uint8, generator=row) for row in rows])
    frames[~view_mask] = 0
    return raw_batch(
        frames=frames,
        view_mask=view_mask,
        action=torch.ones(count, 3, 2) * action_mask,
        action_mask=action_mask,
        position=torch.tensor(positions),
        draws=uniform_draws(seed, positions, (2, 5)),
    )


def train(positions: list[int], seed: int = 0, **changes: object) -> Batch:
    return training_batch(raw(positions, seed), config(**changes), NORMALIZER, device=CPU)


def sample(batch: Batch, row: int) -> list[torch.Tensor]:
    return [value[row] for field in fields(batch) if isinstance(value := getattr(batch, field.name), torch.Tensor)]


def test_a_sample_is_the_same_in_any_batch() -> None:
    together, alone, elsewhere = train([3, 4, 5]), train([4]), train([9, 4])
    for one, two, three in zip(sample(together, 1), sample(alone, 0), sample(elsewhere, 1), strict=True):
        assert torch.equal(one, two)
        assert torch.equal(one, three)


def test_same_seed_same_batch_other_seed_another() -> None:
    assert torch.equal(train([1, 2]).obs, train([1, 2]).obs)
    assert not torch.equal(train([1, 2]).obs, train([1, 2], seed=1).obs)


def crops(batch: Batch, source: RawBatch) -> list[tuple[int, int]]:
    """Where each sample's and view's first frame was cut from."""
    found = []
    for row in range(len(batch)):
        for view in range(2):
            image = (batch.obs[row, view, 0] * 255).round().to(torch.uint8)
            places = [
                (y, x)
                for y in range(5)
                for x in range(7)
                if torch.equal(source.frames[row, view, 0, :, y : y + 16, x : x + 24], image)
            ]
            assert len(places) == 1
            found += places
    return found


def test_crops_differ_between_samples_and_views_and_reach_every_corner() -> None:
    positions = list(range(200))
    found = crops(train(positions, jitter=0), raw(positions))
    assert {y for y, _ in found} == set(range(5))
    assert {x for _, x in found} == set(range(7))
    assert len(set(found[:20])) > 5


def test_frames_of_a_view_share_crop_and_jitter() -> None:
    source = raw([7])
    still = source.frames[:, :, :1].expand_as(source.frames) * source.view_mask[..., None, None, None]
    same = RawBatch(**{f.name: getattr(source, f.name) for f in fields(source)} | {"frames": still})
    batch = training_batch(same, config(), NORMALIZER, device=CPU)
    assert torch.equal(batch.obs[:, 0, 0], batch.next_obs[:, 0, 0])
    assert torch.equal(batch.next_obs[:, 0, 0], batch.next_obs[:, 0, 1])


def test_published_option_draws_once_for_a_batch() -> None:
    found = crops(train([1, 2, 3], jitter=0, augmentation="batch"), raw([1, 2, 3]))
    assert len(set(found)) == 1


def test_no_augmentation_is_evaluation() -> None:
    batch = train([1, 2], augmentation="none")
    expected = evaluation_batch(raw([1, 2]), config(), NORMALIZER, device=CPU)
    assert torch.equal(batch.obs, expected.obs)
    assert crops(expected, raw([1, 2])) == [(2, 3)] * 4


def test_masked_stays_zero_and_actions_are_normalized() -> None:
    batch = train([1, 2], jitter=0.9)
    assert batch.next_obs[:, 1, 1].abs().max() == 0
    assert not batch.next_mask[:, 1, 1].any()
    assert batch.next_mask[:, 0].all()
    assert torch.equal(batch.action[:, :2], torch.full((2, 2, 2), -0.5))
    assert torch.equal(batch.action[:, 2], torch.zeros(2, 2)), "an unknown action is zero, also where zero isn't"
    assert not batch.action_mask[:, 2].any()
    for images in (batch.obs, batch.next_obs):
        assert images.min() >= 0
        assert images.max() <= 1
        assert images.dtype == torch.float32


def test_draws_are_uniform_and_independent() -> None:
    draws = uniform_draws(3, range(4000), (2,))
    assert draws.min() >= 0
    assert draws.max() < 1
    assert draws.mean().item() == pytest.approx(0.5, abs=0.02)
    assert abs(torch.corrcoef(draws.T)[0, 1].item()) < 0.05


def test_jitter_factors_of_one_change_nothing() -> None:
    images = torch.rand(2, 2, 1, 3, 4, 5)
    torch.testing.assert_close(jitter_colours(images, torch.ones(2, 2, 3)), images)


@pytest.mark.parametrize(
    ("kind", "factors"), [("brightness", (0.5, 1, 1)), ("contrast", (1, 0, 1)), ("gray", (1, 1, 0))]
)
def test_jitter_means_what_it_says(kind: str, factors: tuple[float, ...]) -> None:
    image = torch.rand(1, 1, 1, 3, 4, 5)
    out = jitter_colours(image, torch.tensor(factors, dtype=torch.float32).expand(1, 1, 3))
    luma = torch.einsum("c,bvfchw->bvfhw", torch.tensor([0.299, 0.587, 0.114]), image)[:, :, :, None]
    expected = {
        "brightness": image * 0.5,
        "contrast": luma.mean(dim=(-2, -1), keepdim=True).expand_as(image),
        "gray": luma.expand_as(image),
    }
    torch.testing.assert_close(out, expected[kind])
