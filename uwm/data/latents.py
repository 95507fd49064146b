"""Cached latents: what a run reads in the place of frames, if it is what its tokenizer would give.

`uwm.latents` writes them. Every variant of an episode has one crop and one colour jitter per view, drawn from the
latents' seed and the episode's id, so the observation images of a sample can be cropped like its latents.

Dimension letters: K variants, V views, F frames, C, h, w latent channels, height and width.
"""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from storage_schemas.errors import DamagedError, UserError
from storage_schemas.store.dataset import Dataset, open_parts
from storage_schemas.store.latents import (
    LatentSpec,
    covered,
    latents_folder,
    load_spec,
)
from storage_schemas.store.shards import PartReader
from uwm.config import DataConfig
from uwm.data.mixture import Member

if TYPE_CHECKING:
    from uwm.model.tokenizer import Tokenizer


class LatentStore:
    """Reads the cached latents of one dataset version. Picklable; opens nothing until it reads."""

    def __init__(self, dataset: Dataset, name: str, spec: LatentSpec, *, seed: int) -> None:
        """Use `open_latents`. `seed` is the run's: it decides which variant a sample sees."""
        self._dataset = dataset
        self._folder = latents_folder(dataset.location, name)
        self._spec = spec
        self._seed = seed
        self._reader: PartReader | None = None

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_reader": None}

    @property
    def shape(self) -> tuple[int, int, int]:
        """C, h, w."""
        return self._spec.shape

    def variant(self, position: int) -> int:
        """The variant that the sample at a place of the run's order sees."""
        if self._spec.variants == 1:
            return 0
        return int(np.random.default_rng((self._seed, position, self._spec.variants)).integers(self._spec.variants))

    def augmentation(self, episode: int, variant: int) -> NDArray[np.float32]:
        """(V, 5) draws of the episode's variant, for the dataset's cameras in canonical order."""
        return self._spec.draws(self._dataset.episodes.episode_ids[episode], variant)

    def read(
        self,
        episode: int,
        variant: int,
        steps: NDArray[np.int64],
        ours: NDArray[np.int64],
        theirs: NDArray[np.int64],
        mask: NDArray[np.bool_],
        out: NDArray[np.float16],
    ) -> None:
        """Fill a sample's latents where there are frames.

        Args:
            episode: its row.
            variant: from `variant`.
            steps: (F,) steps of the frames, which may repeat but never descend.
            ours: places on the sample's view axis of the cameras that both have.
            theirs: the same on the dataset's, ascending.
            mask: (V, F) frames that there are.
            out: (V, F, C, h, w).

        Raises:
            DamagedError: when a latent is missing.
        """
        known = mask[ours]
        views = np.flatnonzero(known.any(axis=1))
        places = np.flatnonzero(known.any(axis=0))
        if not len(views) or not len(places):
            return
        episodes = self._dataset.episodes
        once, which = np.unique(steps[places], return_inverse=True)
        reads = self._spec.read(episodes.parts[episode], variant, episodes.starts[episode] + once, theirs[views])
        chunks = [chunk for shard in self._open().stream(reads) for chunk in shard]
        if any(chunk is None or len(chunk) != self._spec.chunk_bytes for chunk in chunks):
            raise DamagedError(f"a latent of episode {episodes.episode_ids[episode]} is missing in {self._folder.uri}")
        values = np.frombuffer(b"".join(c for c in chunks if c is not None), "<f2")
        values = values.reshape(len(once), len(views), *self._spec.shape)[which]  # (places, views, C, h, w)
        out[ours[views][:, None], places] = values.swapaxes(0, 1)

    def _open(self) -> PartReader:
        if self._reader is None:
            self._reader = open_parts(self._folder)
        return self._reader


def open_latents(
    member: Member, config: DataConfig, tokenizer: str, latent: tuple[int, int, int], seed: int
) -> LatentStore:
    """The latents that a run declares, if they are what it would encode itself.

    Args:
        member: dataset version and chosen episodes.
        config: with `latents`, their name.
        tokenizer: fingerprint of the run's.
        latent: C, h, w of the run's.
        seed: of the run.

    Raises:
        UserError: when there are no such latents, they were made from something else, or don't cover the version.
    """
    name, dataset = config.latents, member.dataset
    folder = latents_folder(dataset.location, name)
    spec = load_spec(folder)
    if spec is None:
        raise UserError(f"{dataset.uri} has no latents {name!r}: encode them with `uwm latents`")
    expected = describe(dataset, config, tokenizer, latent, variance=spec.variance)
    if reason := spec.difference(expected):
        raise UserError(f"latents {name!r} of {dataset.uri} are stale: {reason}; encode others with `uwm latents`")
    if not covered(folder, dataset.version, member.ref.collections):
        raise UserError(
            f"latents {name!r} of {dataset.uri} do not cover version {dataset.version}: run `uwm latents` again"
        )
    return LatentStore(dataset, name, spec, seed=seed)


def describe(
    dataset: Dataset,
    config: DataConfig,
    tokenizer: str,
    latent: tuple[int, int, int],
    *,
    variance: bool,
    variants: int = 1,
    seed: int = 0,
) -> LatentSpec:
    """What the latents of a dataset are made from under a run's settings.

    Raises:
        UserError: when one augmentation is shared by a batch, which can't be encoded ahead.
    """
    if config.augmentation == "batch":
        raise UserError("latents belong to samples: set data.augmentation to sample or none")
    return LatentSpec(
        table_id=dataset.table_id,
        tokenizer=tokenizer,
        cameras=dataset.spec.cameras,
        encoded=tuple(camera for camera in dataset.spec.cameras if camera in config.cameras),
        shape=latent,
        variance=variance,
        variants=variants,
        seed=seed,
        resize=config.resize,
        crop=config.crop,
        fit=config.fit,
        augmentation="none" if config.augmentation == "none" else "sample",
        jitter=config.jitter if config.augmentation == "sample" else 0.0,
        decode=config.decode,
    )


def latent_shape(config: DataConfig, tokenizer: "Tokenizer") -> tuple[int, int, int]:
    """C, h, w of the latents of a run's images. Raises UserError when the crop is not divisible."""
    height, width = config.crop
    if height % tokenizer.downsample or width % tokenizer.downsample:
        raise UserError(f"data.crop {height}x{width} is not divisible by {tokenizer.downsample}")
    return tokenizer.channels, height // tokenizer.downsample, width // tokenizer.downsample
