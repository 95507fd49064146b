"""Small stores and networks for the learning tests."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from tiny_clip import write_clip

from storage_schemas.catalog.commits import commit
from storage_schemas.catalog.table import create_dataset
from storage_schemas.episode import Episode
from storage_schemas.schema import DatasetSpec
from storage_schemas.store.parts import write_part
from uwm.config import RunConfig
from uwm.eval.files import ExampleArrays
from uwm.eval.result import ActionProfile, Estimate, Evaluation, Example, Metric, Settings, compare
from uwm.overrides import apply_overrides
from uwm.recipes import get_recipe

CAMERAS = ("left", "wrist")


@pytest.fixture
def make_store(tmp_path: Path, make_episode: Callable[..., Episode]) -> Callable[..., str]:
    """A function that writes a dataset of episodes of the given lengths and returns its uri."""

    def make(
        name: str = "store",
        lengths: Sequence[int] = (12, 9, 2),
        *,
        action_dim: int = 3,
        val: int = 0,
        **options: object,
    ) -> str:
        uri = str(tmp_path / name)
        create_dataset(uri, DatasetSpec(cameras=CAMERAS, action_dim=action_dim, val_percent=val))
        episodes = [
            make_episode(f"{name}-{number}", length=length, action_dim=action_dim, seed=number, **options)
            for number, length in enumerate(lengths)
        ]
        commit(uri, write_part(uri, episodes, run_id="test"))
        return uri

    return make


@pytest.fixture
def debug_run(tmp_path: Path) -> Callable[..., RunConfig]:
    """A function that makes the debug recipe's configuration of a policy for a store of `make_store`."""

    def make(uri: str, *pairs: str, output: str = "run", policy: str = "uwm") -> RunConfig:
        settings = (
            f"data.datasets.0.uri={uri}",
            f"data.cameras={','.join(CAMERAS)}",
            "data.action_dim=3",
            "data.action_horizon=4",
            "data.next_start=3",
            "data.resize=20,28",
            "data.crop=16,24",
            "train.threads=1",
            f"output={tmp_path / output}",
        )
        recipe = "debug" if policy == "uwm" else f"debug_{policy}"
        return apply_overrides(get_recipe(recipe), [*settings, *pairs])

    return make


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny CLIP."""
    pytest.importorskip("transformers", reason="the extra `language` is not installed")
    folder = tmp_path_factory.mktemp("clip")
    write_clip(folder)
    return folder


@pytest.fixture
def arrays() -> ExampleArrays:
    """Two examples of two views: the second view of the first and all actions of the second are unknown."""
    rng = np.random.default_rng(0)
    frames = {name: rng.integers(0, 256, (2, 2, 6, 8, 3), dtype=np.uint8) for name in ("now", "true", "own", "forward")}
    action = rng.normal(size=(2, 4, 3)).astype(np.float32)
    return ExampleArrays(
        current=frames["now"],
        current_mask=np.array([[True, False], [True, True]]),
        true=frames["true"],
        true_mask=np.array([[True, False], [True, True]]),
        reconstruction=frames["own"],
        action=action,
        action_mask=np.stack([np.ones((4, 3), np.bool_), np.zeros((4, 3), np.bool_)]),
        mean_action=action.mean(axis=(0, 1)),
        frames={"forward": frames["forward"], "video": frames["forward"]},
        actions={"inverse": action + 1, "policy": action - 1},
    )


@pytest.fixture
def evaluation() -> Evaluation:
    """A result with a better, a worse and an open score."""
    rng = np.random.default_rng(1)
    reference, groups = rng.uniform(0.1, 0.2, 12), np.arange(12) % 3
    wobble = rng.normal(0, 1e-3, 12)
    wobble -= wobble.mean()
    return Evaluation(
        settings=Settings(
            checkpoint="runs/x/checkpoints/step-00000004",
            checkpoint_identity="0123",
            run="x",
            stage="pretrain",
            step=4,
            weights="ema",
            parameters=1234,
            dataset_uri="data/x",
            dataset_version=2,
            dataset_id="4567",
            split="val",
            cameras=CAMERAS,
            action_names=("a", "b", "c"),
            image_size=(6, 8),
            next_start=3,
            next_frames=2,
            fps=15.0,
            seed=0,
            batch_size=4,
            sample_steps=10,
            requested=12,
        ),
        segments=12,
        episodes=3,
        short_episodes=1,
        scores=(
            compare("forward", Metric.LATENT_MSE, "copied last frame", 0.5 * reference + wobble, reference, groups),
            compare("forward", Metric.PSNR, "copied last frame", reference + 20 + wobble, reference + 22, groups),
            compare("inverse", Metric.ACTION_MSE, "mean action", reference + wobble, reference, groups),
        ),
        actions=(ActionProfile(mode="inverse", model=(0.1, 0.2, 0.3), mean_action=(0.2, 0.2, 0.2)),),
        ceiling=Estimate(mean=27.0, error=0.5, count=12),
        examples=(
            Example(episode_id="a", source_uri="file#record=0", collection="lab", step=0, language="<b>lift</b>"),
            Example(episode_id="b", source_uri="file#record=1", collection="lab", step=3),
        ),
        seconds=1.5,
    )
