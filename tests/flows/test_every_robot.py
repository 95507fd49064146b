"""One run over robots of four formats and video: every policy learns, and the table says what became of what."""

from pathlib import Path

import numpy as np
import pytest
from hdf5_maker import write_aloha

from flows.jobs.ingest import run_ingest
from flows.jobs.train import make_config, run_training
from storage_schemas.store.dataset import open_dataset
from uwm.data.usage import PLANS_FILE
from uwm.events import load_metrics

SOURCES = {
    "droid": "droid_rlds/droid_100",
    "lerobot": "lerobot_v3/panda_sim",
    "libero": "libero_hdf5/libero_object",
    "video": "videos/carphone*.mp4",
}
POLICIES = {
    "uwm": (),
    "pad": ("policy=pad",),
    "dp": ("policy=dp",),
    "dp_unet": ("policy=dp_unet", "policy.widths=16,32"),
    "gr1": ("policy=gr1", "policy.obs_encoder.kind=vit_small", "policy.decoder.patch=8", "policy.decoder.heads=2"),
}
STEPS = 20


@pytest.fixture(scope="module")
def stores(fixtures_root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A dataset of each format."""
    folder = tmp_path_factory.mktemp("stores")
    sources = {name: str(fixtures_root / path) for name, path in SOURCES.items()}
    for number in range(3):
        write_aloha(folder / "aloha" / f"episode_{number}.hdf5", steps=40, seed=number)
    sources["aloha"] = str(folder / "aloha")
    for name, source in sources.items():
        run_ingest(source, str(folder / "stores" / name))
    return {name: str(folder / "stores" / name) for name in sources}


def mixture(stores: dict[str, str]) -> tuple[str, ...]:
    uris = [f"data.datasets.{number}.uri={uri}" for number, uri in enumerate(stores.values())]
    cameras = "data.cameras=exterior_image_1_left,wrist_image_left"
    return (*uris, cameras, "data.actions_from=all", f"train.steps={STEPS}", "train.batch_size=5")


@pytest.mark.slow
@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_learns_from_all_of_them(policy: str, stores: dict[str, str], away: Path) -> None:
    config = make_config("debug", (*mixture(stores), *POLICIES[policy], "train.log_every=1", f"output={away / policy}"))
    run_training(config)
    losses = [entry.loss for entry in load_metrics(str(away / policy))]
    assert len(losses) == STEPS
    assert np.isfinite(losses).all()


def test_the_table_says_what_becomes_of_every_part(
    stores: dict[str, str], away: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config("debug", (*mixture(stores), "policy=dp", "train.steps=1", f"output={away / 'run'}"))
    run_training(config)
    shown = (away / "run" / PLANS_FILE).read_text()
    for uri in stores.values():
        dataset = open_dataset(uri)
        text = next(part for part in shown.split("\n\n") if part.startswith(uri))
        if dataset.spec.action is not None and dataset.episodes.action_steps.any():
            for part in dataset.spec.action.parts:
                assert part.name in text
        for camera in dataset.spec.cameras:
            assert camera in text
        for field in dataset.schema(0).state:
            assert field.name in text
