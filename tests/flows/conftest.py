"""A small dataset to train on, made without any source."""

from collections.abc import Callable
from pathlib import Path

import pytest

from storage_schemas.catalog.commits import commit
from storage_schemas.catalog.table import create_dataset
from storage_schemas.episode import Episode
from storage_schemas.schema import DatasetSpec
from storage_schemas.store.parts import write_part

CAMERAS = ("exterior_image_1_left", "exterior_image_2_left", "wrist_image_left")


@pytest.fixture
def away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, without a Prefect server and without a lineage of its own."""
    for name in ("PREFECT_API_URL", "PREFECT_PROFILE", "UWM_LINEAGE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "no-prefect"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def store(away: Path, make_episode: Callable[..., Episode]) -> Path:
    """Four episodes, half of them held out."""
    path = away / "data" / "droid"
    create_dataset(str(path), DatasetSpec(cameras=CAMERAS, action_dim=10, val_percent=50))
    names = "abcdef"
    episodes = [make_episode(name, cameras=CAMERAS, size=(36, 64), action_dim=10) for name in names]
    commit(str(path), write_part(str(path), episodes, run_id="test"))
    return path
