"""Episodes to measure on: photo-like, moving smoothly, with a sensor's noise; or those of a given dataset.

At JPEG quality 95 a frame of 180x320 takes about 27 kB, as DROID's do, and LZ4 finds nothing in it.
"""

import numpy as np
from numpy.typing import NDArray

from storage_schemas.conventions import DROID_ACTION_DIM, DROID_CAMERAS
from storage_schemas.episode import EncodedFrames, Episode, EpisodeMeta
from storage_schemas.store.dataset import Dataset
from storage_schemas.store.frames import encode_frames

_DETAIL = ((40, 60.0), (10, 30.0), (3, 15.0), (1, 8.0))
"""Blur in pixels and strength in gray levels of the layers of a scene."""
_NOISE = 2.0


def scene(generator: np.random.Generator, steps: int, height: int, width: int) -> NDArray[np.uint8]:
    """A scene that drifts, (steps, height, width, 3)."""
    from scipy.ndimage import gaussian_filter

    still = np.full((height, width, 3), 128, np.float32)
    for blur, strength in _DETAIL:
        layer = gaussian_filter(generator.standard_normal((height, width, 3), np.float32), (blur, blur, 0))
        still += strength * layer / layer.std()
    frames = np.empty((steps, height, width, 3), np.uint8)
    for step in range(steps):
        moved = np.roll(still, (step // 3, step), (0, 1))
        noise = _NOISE * generator.standard_normal(moved.shape, np.float32)
        frames[step] = np.clip(moved + noise, 0, 255)
    return frames


def generate(episodes: int, steps: int, *, height: int = 180, width: int = 320, seed: int = 0) -> list[Episode]:
    """Episodes of three views whose frames are JPEGs, as those of DROID's RLDS are."""
    episodes_made = []
    for number in range(episodes):
        generator = np.random.default_rng((seed, number))
        frames = {
            camera: EncodedFrames(
                height=height,
                width=width,
                jpegs=tuple(encode_frames(scene(generator, steps, height, width), "jpeg")),
            )
            for camera in DROID_CAMERAS
        }
        episodes_made.append(_episode(f"bench-{seed}-{number}", generator, steps, frames))
    return episodes_made


def take(dataset: Dataset, episodes: int) -> list[Episode]:
    """The first episodes of a dataset that have all cameras in one size, with their JPEG bytes as stored."""
    taken = []
    for row in range(len(dataset)):
        sizes = {tuple(size) for size in dataset.episodes.sizes[row].tolist()}
        if len(sizes) == 1 and (0, 0) not in sizes and dataset.schema(row).codec == "jpeg":
            (height, width), steps = sizes.pop(), int(dataset.episodes.lengths[row])
            frames = {
                camera: EncodedFrames(
                    height=height, width=width, jpegs=tuple(dataset.encoded(row, camera, range(steps)))
                )
                for camera in dataset.spec.cameras
            }
            taken.append(_episode(f"taken-{row}", np.random.default_rng(row), steps, frames))
        if len(taken) == episodes:
            break
    return taken


def _episode(name: str, generator: np.random.Generator, steps: int, frames: dict[str, EncodedFrames]) -> Episode:
    return Episode(
        meta=EpisodeMeta(
            episode_id=name,
            source_uri=f"generated://{name}",
            source_format="generated",
            source_fingerprint=name,
            collection="bench",
            fps=15.0,
        ),
        action=generator.uniform(-1, 1, (steps, DROID_ACTION_DIM)).astype(np.float32),
        action_mask=np.ones(steps, np.bool_),
        frames=frames,
    )
