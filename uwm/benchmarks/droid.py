"""The published DROID configuration as something to measure: full-size network, a VAE of SDXL's sizes, one episode.

Weights are random, which costs the same as trained ones.
"""

from pathlib import Path
from typing import Any

from storage_schemas.catalog.commits import commit
from storage_schemas.catalog.table import create_dataset
from storage_schemas.conventions import DROID_ACTION_DIM
from storage_schemas.schema import DatasetSpec
from storage_schemas.store.parts import write_part
from storage_schemas.synthetic import generate
from uwm.config import DatasetRef, RunConfig, TokenizerConfig
from uwm.recipes import get_recipe
from uwm.settings import replace

_STEPS = 4
"""Length of the one episode: as short as possible, for all of it is encoded first."""


def droid_run(recipe: str, root: Path) -> RunConfig:
    """A recipe at DROID's sizes on a generated store under `root`, with cached latents named `bench`."""
    from diffusers import AutoencoderKL

    blocks = 4
    vae: Any = AutoencoderKL(  # type: ignore[no-untyped-call]
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=4,
        scaling_factor=0.13025,
    )
    vae.save_pretrained(root / "vae")
    run = get_recipe(recipe)
    uri = str(root / "store")
    create_dataset(uri, DatasetSpec(cameras=run.data.cameras, action_dim=DROID_ACTION_DIM, val_percent=0))
    commit(uri, write_part(uri, generate(1, _STEPS), run_id="bench"))
    data = replace(run.data, datasets=[DatasetRef(uri=uri)], latents="bench", next_start=1)  # steps 0, 1 and 2, 3
    tokenizer = TokenizerConfig(kind="sdxl", path=str(root / "vae"))
    return replace(run, data=data, policy=replace(run.policy, tokenizer=tokenizer))


def published_sizes(config: RunConfig) -> RunConfig:
    """The run with the published images: 240x320 cut to 224x224, which gives 171 tokens."""
    paper = get_recipe("uwm_paper").data
    return replace(config, data=replace(config.data, resize=paper.resize, crop=paper.crop, fit=paper.fit))
