"""The demo's three stages, one step each, with the networks that the demo trains."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from storage_schemas.catalog.commits import commit
from storage_schemas.episode import Episode
from storage_schemas.errors import UserError
from storage_schemas.store.parts import write_part
from uwm.bundle import export
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


def test_runs_that_were_copied_together_and_whose_parent_is_gone_still_work(
    tmp_path: Path, make_store: Callable[..., str]
) -> None:
    runs, elsewhere = tmp_path / "runs", tmp_path / "elsewhere"
    data = f"data.datasets.0.uri={make_store('robot')}"
    task = (data, "data.datasets.0.collections=lab", "optim.schedule=constant")
    train(stage("tokenizer", runs, data))
    both = (data, f"data.datasets.1.uri={make_store('video', (8,), known=False)}")
    train(stage("pretrain", runs, *both, f"policy.tokenizer.path={runs / 'tokenizer'}"))
    train(stage("finetune", runs, *task, f"init_from={runs / 'pretrain'}"))
    runs.rename(elsewhere)
    before = load_policy(elsewhere / "finetune", "cpu").policy.state_dict()

    second = train(stage("finetune", elsewhere, *task, "train.steps=2", f"init_from={elsewhere / 'pretrain'}"))
    assert load_checkpoint(second).state.step == 2
    shutil.rmtree(elsewhere / "pretrain")
    export(second, tmp_path / "bundle")
    third = train(stage("finetune", elsewhere, *task, "train.steps=3", f"init_from={elsewhere / 'pretrain'}"))
    child = load_checkpoint(third)
    assert child.state.step == 3
    assert child.state.parent == load_checkpoint(second).state.parent
    assert load_policy(third, "cpu").policy.state_dict().keys() == before.keys()
    with pytest.raises(UserError, match="its parent"):
        train(stage("finetune", elsewhere, *task, "train.steps=4", f"init_from={tmp_path / 'other'}"))


def test_a_store_that_was_moved_is_known_by_its_log(tmp_path: Path, make_store: Callable[..., str]) -> None:
    robot, steady = Path(make_store("robot")), "optim.schedule=constant"
    train(stage("tokenizer", tmp_path, f"data.datasets.0.uri={robot}", steady))
    moved = robot.rename(tmp_path / "moved")
    resumed = train(stage("tokenizer", tmp_path, f"data.datasets.0.uri={moved}", "train.steps=2", steady))
    assert [use.uri for use in load_checkpoint(resumed).state.datasets] == [str(moved)]
    other = make_store("other")
    with pytest.raises(UserError, match=r"other is another dataset than the one that .* was trained on"):
        train(stage("tokenizer", tmp_path, f"data.datasets.0.uri={other}", "train.steps=3", steady))


def test_another_dataset_in_a_stores_place_is_named_as_such(
    tmp_path: Path, make_store: Callable[..., str], make_episode: Callable[..., Episode]
) -> None:
    """Also when it never had the version that the run was trained on."""
    robot, steady = make_store("robot"), "optim.schedule=constant"
    commit(robot, write_part(robot, [make_episode("later")], run_id="test"))
    config = stage("tokenizer", tmp_path, f"data.datasets.0.uri={robot}", steady)
    assert load_checkpoint(train(config)).state.datasets[0].version == 2
    shutil.rmtree(robot)
    make_store("robot")
    with pytest.raises(UserError, match=r"robot is another dataset than the one that .* was trained on"):
        train(stage("tokenizer", tmp_path, f"data.datasets.0.uri={robot}", steady, "train.steps=2"))
