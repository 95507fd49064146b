"""The demo's three stages, one step each, with the networks that the demo trains."""

from collections.abc import Callable
from pathlib import Path

import pytest

from storage_schemas.errors import UserError
from uwm.checkpoint import load_checkpoint, load_policy
from uwm.config import RunConfig
from uwm.overrides import apply_overrides
from uwm.recipes import get_recipe
from uwm.train.trainer import train


def stage(name: str, folder: Path, *pairs: str) -> RunConfig:
    settings = (
        "data.cameras=left,wrist",
        "data.action_dim=3",
        "train.steps=1",
        "train.batch_size=2",
        "train.threads=1",
        "optim.warmup_steps=1",
        f"output={folder / name}",
    )
    return apply_overrides(get_recipe(f"demo_{name}"), [*settings, *pairs])


def test_tokenizer_then_cotraining_then_finetuning(tmp_path: Path, make_store: Callable[..., str]) -> None:
    robot, video = make_store("robot"), make_store("video", (8,), known=False)
    data, tokenizer = f"data.datasets.0.uri={robot}", f"policy.tokenizer.path={tmp_path / 'tokenizer'}"
    first = train(stage("tokenizer", tmp_path, data))
    second = train(stage("pretrain", tmp_path, data, f"data.datasets.1.uri={video}", tokenizer))
    task = (data, "data.datasets.0.collections=lab", f"init_from={second}")
    third = train(stage("finetune", tmp_path, *task))

    one, two, three = (load_checkpoint(path) for path in (first, second, third))
    assert two.state.tokenizer_checkpoint is not None
    assert two.state.tokenizer_checkpoint.identity == one.identity
    assert three.config.policy.tokenizer == two.config.policy.tokenizer, "finetuning takes its parent's tokenizer"
    assert three.state.parent is not None
    assert three.state.parent.identity == two.identity
    assert [use.action_steps for use in two.state.datasets] == [23, 0]
    assert load_policy(tmp_path / "finetune", "cpu").config == three.config

    other = train(stage("tokenizer", tmp_path, data, "train.seed=1", f"output={tmp_path / 'other'}"))
    with pytest.raises(UserError, match="another tokenizer"):
        train(stage("finetune", tmp_path, *task, f"policy.tokenizer.path={other}", f"output={tmp_path / 'mixed'}"))
    with pytest.raises(UserError, match="its tokenizer"):
        train(stage("pretrain", tmp_path, data, f"data.datasets.1.uri={video}", f"policy.tokenizer.path={other}"))


@pytest.mark.parametrize("name", ["uwm", "uwm_paper", "demo_pretrain"])
def test_image_tokenizer_and_patch_sizes_divide(name: str) -> None:
    config = get_recipe(name)
    downsample = 8 if config.policy.tokenizer.kind == "sdxl" else config.autoencoder.downsample
    latent = (config.data.next_frames, *(side // downsample for side in config.data.crop))
    assert all(side % downsample == 0 for side in config.data.crop)
    assert all(side % patch == 0 for side, patch in zip(latent, config.policy.patch, strict=True))
