"""Shared fixtures: where ground truth lies, and small episodes made on the spot."""

import os
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from s3_server import FaultProxy, moto_server

from storage_schemas.episode import Episode, EpisodeMeta

settings.register_profile("unhurried", deadline=None)  # a busy machine is no failure
settings.load_profile("unhurried")

ROOT = Path(__file__).resolve().parents[1]
S3_ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_REGION": "us-east-1",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "UWM_STORAGE_TIMEOUT": "1",
    "UWM_STORAGE_RETRIES": "3",
}


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


@pytest.fixture(scope="session")
def s3_proxy() -> Iterator[FaultProxy]:
    """A proxy before moto's S3."""
    with moto_server() as address, FaultProxy.serve(address) as proxy:
        yield proxy


@pytest.fixture
def s3(s3_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> FaultProxy:
    """A proxy that all libraries take for S3, with the empty bucket `bucket`; impatient, so that tests are short."""
    for name, value in S3_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_proxy.address)
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    for method, path in (("POST", "/moto-api/reset"), ("PUT", "/bucket")):
        request = urllib.request.Request(s3_proxy.backend + path, method=method)  # noqa: S310
        urllib.request.urlopen(request).close()  # noqa: S310
    s3_proxy.reset()
    return s3_proxy
