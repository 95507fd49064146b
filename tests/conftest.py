"""Shared fixtures: where ground truth lies, and small episodes made on the spot."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from storage_schemas.episode import Episode, EpisodeMeta

ROOT = Path(__file__).resolve().parents[1]


def _root(variable: str, default: str) -> Path:
    path = Path(os.environ.get(variable) or ROOT / default).resolve()
    if not path.is_dir():
        pytest.skip(f"{path} is absent: set {variable} to a folder of the same layout")
    return path


@pytest.fixture(scope="session")
def fixtures_root() -> Path:
    """Data sets with ground truth, by the genuine writers."""
    return _root("UWM_FIXTURES", "../shared/fixtures")


@pytest.fixture(scope="session")
def golden_root() -> Path:
    """Golden numbers of the published networks."""
    return _root("UWM_GOLDEN", "../shared/golden")


@pytest.fixture
def make_episode() -> Callable[..., Episode]:
    """A function that makes a small episode with smooth random frames and actions."""

    def make(
        name: str = "a",
        *,
        length: int = 24,
        cameras: tuple[str, ...] = ("left", "wrist"),
        size: tuple[int, int] = (24, 32),
        action_dim: int = 3,
        known: bool = True,
        collection: str = "lab",
        seed: int = 0,
        version: int = 0,
    ) -> Episode:
        rng = np.random.default_rng([seed, *name.encode()])
        height, width = size
        y, x = np.mgrid[0:height, 0:width]
        frames = {}
        for camera in cameras:
            phase = rng.uniform(0, 6, size=3)
            wave = np.sin(x[..., None] / 5 + phase) + np.cos(y[..., None] / 4 + phase)  # (H, W, 3)
            drift = np.linspace(0, 40, length)[:, None, None, None]
            frames[camera] = np.clip(110 + 40 * wave[None] + drift, 0, 255).astype(np.uint8)
        action = (
            rng.uniform(-1, 1, size=(length, action_dim)).astype(np.float32)
            if known
            else np.zeros((length, action_dim), np.float32)
        )
        return Episode(
            meta=EpisodeMeta(
                episode_id=f"episode-{name}",
                source_uri=f"memory://{name}",
                source_format="test",
                source_fingerprint=f"{seed}.{version}",
                collection=collection,
                fps=15.0,
                language=("do it",),
                success=True,
            ),
            action=action,
            action_mask=np.full(length, known),
            frames=frames,
            state={"observation/position": rng.normal(size=(length, 2)).astype(np.float32)},
        )

    return make
