"""Cached latents: the same loss as encoding online, incremental, resumable, refused when stale."""

import pickle
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr

from storage_schemas.catalog.commits import commit
from storage_schemas.episode import Episode, SegmentId
from storage_schemas.errors import UserError
from storage_schemas.location import locate
from storage_schemas.store.dataset import open_dataset
from storage_schemas.store.latents import latents_folder, load_spec
from storage_schemas.store.parts import write_part
from uwm.config import RunConfig
from uwm.data.augment import training_batch
from uwm.data.batch import RawBatch
from uwm.data.latents import LatentStore, open_latents
from uwm.data.loader import SegmentReader
from uwm.data.mixture import Member, open_member
from uwm.data.normalize import ActionNormalizer
from uwm.data.sampler import Pick
from uwm.latents.encode import encode_run
from uwm.latents.shards import EncodeReport, encode
from uwm.model.tokenizer import IdentityTokenizer, Tokenizer
from uwm.policies import build
from uwm.settings import replace as with_config
from uwm.train.trainer import train

CPU = torch.device("cpu")
SHAPE = (3, 16, 24)


class Posterior(IdentityTokenizer):
    """A tokenizer whose latents have a variance."""

    variance = True
    fingerprint = "posterior"

    def posterior(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.encode(images), torch.full_like(images, -2.0)


class Failing(IdentityTokenizer):
    """Dies after some calls, as a killed process does."""

    def __init__(self, calls: int) -> None:
        super().__init__()
        self.calls = calls

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        self.calls -= 1
        if self.calls < 0:
            raise KeyboardInterrupt
        return super().encode(images)


@pytest.fixture
def run(make_store: Callable[..., str], debug_run: Callable[..., RunConfig]) -> RunConfig:
    return debug_run(make_store(lengths=(12, 9)), "data.latents=k", "train.steps=3", "data.jitter=0.2")


def member(run: RunConfig, split: str | None = None) -> Member:
    return open_member(run.data.datasets[0], run.data, split=split)


def encoded(run: RunConfig, tokenizer: Tokenizer | None = None, variants: int = 2) -> EncodeReport:
    return encode(member(run), run.data, tokenizer or IdentityTokenizer(), variants=variants, device=CPU)


def opened(run: RunConfig, tokenizer: str = "identity") -> LatentStore:
    return open_latents(member(run, "train"), run.data, tokenizer, SHAPE, seed=0)


def read(run: RunConfig, *, cached: bool) -> RawBatch:
    dataset = open_dataset(run.data.datasets[0].uri)
    picks = [Pick(7, 0, SegmentId(0, 3)), Pick(8, 0, SegmentId(1, 7)), Pick(9, 0, SegmentId(1, 0))]
    return SegmentReader([dataset], run.data, [opened(run)] if cached else []).read(picks)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"augmentation": "none", "variants": 1},
        {"target": "change"},
        {"resize": (24, 32), "decode": "scaled"},
    ],
)
def test_the_loss_is_that_of_encoding_online_with_the_same_crops(run: RunConfig, changes: dict[str, object]) -> None:
    variants = int(str(changes.pop("variants", 3)))
    target = changes.pop("target", "absolute")
    diffusion = with_config(run.policy.diffusion, latent_target=target)
    run = with_config(run, data=with_config(run.data, **changes), policy=with_config(run.policy, diffusion=diffusion))
    encoded(run, variants=variants)
    cached = read(run, cached=True)
    online = replace(read(run, cached=False), draws=cached.draws)
    assert cached.frames.shape[2] == run.data.obs_frames
    torch.manual_seed(0)
    policy = build(run)
    losses = []
    for raw in (cached, online):
        batch = training_batch(raw, run.data, ActionNormalizer.identity(3), device=CPU)
        losses.append(policy.loss(batch, torch.Generator().manual_seed(1)).loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=2e-4), "they differ by the rounding of float16 only"


def test_variants_differ_and_belong_to_episodes(run: RunConfig) -> None:
    encoded(run, variants=3)
    store = opened(run)
    draws = [store.augmentation(0, variant) for variant in range(3)]
    assert len({array.tobytes() for array in draws}) == 3
    assert not np.array_equal(store.augmentation(0, 0), store.augmentation(1, 0))
    assert {store.variant(position) for position in range(60)} == {0, 1, 2}


def test_only_what_is_new_is_encoded(run: RunConfig, make_episode: Callable[..., Episode]) -> None:
    first = encoded(run)
    assert (first.encoded, first.present) == (2 * 2 * (12 + 9), 0)
    assert encoded(run).encoded == 0
    uri = run.data.datasets[0].uri
    commit(uri, write_part(uri, [make_episode("new", length=5)], run_id="later"))
    with pytest.raises(UserError, match=r"latents 'k' .* do not cover version 2"):
        opened(run)
    more = encoded(run)
    assert (more.encoded, more.present) == (2 * 2 * 5, first.encoded)
    opened(run)


def test_encoding_goes_on_where_it_was_killed(run: RunConfig, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        encoded(run, Failing(5))
    with pytest.raises(UserError, match="do not cover"):
        opened(run)
    resumed = encoded(run)
    assert resumed.present > 0
    assert resumed.encoded > 0
    straight = with_config(run, data=with_config(run.data, latents="straight"))
    encoded(straight)
    assert torch.equal(*(read(r, cached=True).latents for r in (run, straight)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"jitter": 0.1}, "jitter"),
        ({"crop": (16, 16)}, "crop"),
        ({"resize": (22, 30)}, "resize"),
        ({"fit": "stretch"}, "fit"),
        ({"augmentation": "none"}, "augmentation"),
    ],
)
def test_stale_latents_are_refused_by_name(run: RunConfig, change: dict[str, object], what: str) -> None:
    encoded(run)
    other = with_config(run, data=with_config(run.data, **change))
    with pytest.raises(UserError, match=f"latents 'k' of .* are stale: their {what} is"):
        opened(other)
    with pytest.raises(UserError, match="other latents 'k'"):
        encoded(other, variants=1)


def test_latents_of_another_tokenizer_are_refused(run: RunConfig) -> None:
    encoded(run)
    with pytest.raises(UserError, match="stale: their tokenizer is identity, not sdxl-1"):
        opened(run, "sdxl-1")


def test_missing_latents_name_the_command(run: RunConfig) -> None:
    with pytest.raises(UserError, match=r"has no latents 'k'.*uwm latents"):
        opened(run)


@pytest.mark.parametrize("name", ["a/b", "../x", ".x"])
def test_a_name_is_a_name(run: RunConfig, name: str) -> None:
    with pytest.raises(UserError, match="no name for latents"):
        opened(with_config(run, data=with_config(run.data, latents=name)))


def test_batch_augmentation_can_not_be_cached(run: RunConfig) -> None:
    with pytest.raises(UserError, match="augmentation"):
        encoded(with_config(run, data=with_config(run.data, augmentation="batch")))


def test_any_zarr_reader_opens_them_with_their_variance(run: RunConfig) -> None:
    encoded(run, Posterior(), variants=1)
    dataset = open_dataset(run.data.datasets[0].uri)
    folder = latents_folder(locate(dataset.uri), "k")
    spec = load_spec(folder)
    assert spec is not None
    assert spec.variance
    group = zarr.open_group(f"{folder.path}/{dataset.episodes.parts[0]}", mode="r")
    means, variances = np.asarray(group["mean"]), np.asarray(group["logvar"])
    assert means.shape == (1, 21, 2, *SHAPE)
    assert np.isfinite(means).all()
    assert (variances == -2).all()


def test_a_run_trains_on_declared_latents(run: RunConfig) -> None:
    reports = encode_run(run, variants=2)
    assert [report.name for report in reports] == ["k"]
    assert train(run).is_dir()


def test_batches_encoded_elsewhere_are_as_here(run: RunConfig, make_episode: Callable[..., Episode]) -> None:
    uri = run.data.datasets[0].uri
    for name in ("b1", "b2"):
        commit(uri, write_part(uri, [make_episode(name, length=5)], run_id="test"))

    class Elsewhere(Executor):
        batches = 0

        def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
            self.batches += 1
            fn(*pickle.loads(pickle.dumps(args)), **kwargs)  # noqa: S301 - a worker that dies before it can answer
            future: Future[Any] = Future()
            future.set_result(pickle.loads(pickle.dumps(fn(*args, **kwargs))))  # noqa: S301
            return future

    elsewhere = Elsewhere()
    other = with_config(run, data=with_config(run.data, latents="other"))
    (here,) = encode_run(run, variants=2, batch_episodes=100)
    (there,) = encode_run(other, variants=2, batch_episodes=1, executor=elsewhere)
    assert elsewhere.batches == 3, "one part each"
    assert (there.episodes, there.encoded + there.present) == (here.episodes, here.encoded)
    folders = [Path(latents_folder(locate(uri), name).path) for name in ("k", "other")]
    shards = [
        {path.relative_to(f): path.read_bytes() for path in f.glob("*/*/c/**/*") if path.is_file()} for f in folders
    ]
    assert shards[0]
    assert shards[0] == shards[1]
