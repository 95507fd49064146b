"""Training: resumes to the bit, stops in order, refuses what does not fit."""

from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

from storage_schemas.errors import UserError
from uwm.checkpoint import load_checkpoint
from uwm.config import RunConfig
from uwm.events import (
    CheckpointSaved,
    TrainEvent,
    TrainFinished,
    TrainProgress,
    TrainStarted,
    TrainStopped,
    load_metrics,
)
from uwm.policy import LossOutput
from uwm.train.trainer import step_generator, train

MakeRun = Callable[..., RunConfig]
MakeStore = Callable[..., str]


class StopAt:
    """Asks a run to stop after some steps."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.events: list[TrainEvent] = []

    def hear(self, event: TrainEvent) -> None:
        self.events.append(event)

    def __call__(self) -> bool:
        return any(isinstance(event, TrainProgress) and event.step >= self.step for event in self.events)


def same_tensors(one: Path, two: Path, kinds: Sequence[Any] = ("model", "ema", "optim")) -> None:
    first, second = load_checkpoint(one), load_checkpoint(two)
    for kind in kinds:
        a, b = first.tensors(kind), second.tensors(kind)
        assert a.keys() == b.keys()
        for name, value in a.items():
            assert torch.equal(value, b[name]), f"{kind} {name}"


@pytest.mark.parametrize("workers", [0, 2])
def test_two_steps_and_two_are_four_to_the_bit(
    make_store: MakeStore, debug_run: MakeRun, make_builder: Callable[[], Any], workers: int
) -> None:
    uri, first, second = make_store(), make_builder(), make_builder()
    straight = train(debug_run(uri, output="straight"), build=first)
    stop = StopAt(2)
    halved = debug_run(uri, f"data.workers={workers}", output="halved")
    half = train(halved, on_event=stop.hear, stop=stop, build=second)
    assert load_checkpoint(half).state.step == 2
    assert load_checkpoint(half).state.position == 8, "batches that were only prefetched do not count"
    resumed = train(debug_run(uri, output="halved"), build=second)
    same_tensors(straight, resumed)
    assert load_checkpoint(resumed).state.position == 16
    seen = [batch for learner in second.built for batch in learner.seen]
    assert len(seen) == len(first.built[0].seen) == 4
    for one, two in zip(first.built[0].seen, seen, strict=True):
        pairs = [(getattr(one, f.name), getattr(two, f.name)) for f in fields(one)]
    assert all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)


def test_the_real_model_resumes_to_the_bit_when_steps_are_raised(make_store: MakeStore, debug_run: MakeRun) -> None:
    robot, video = make_store("robot"), make_store("video", (8,), known=False)
    mixture = (f"data.datasets.1.uri={video}",)
    straight = train(debug_run(robot, *mixture, output="straight"))
    train(debug_run(robot, *mixture, "train.steps=2", output="halved"))
    same_tensors(straight, train(debug_run(robot, *mixture, output="halved")))


def test_events_and_metrics_tell_the_run(make_store: MakeStore, debug_run: MakeRun, builder: Any) -> None:
    uri, events = make_store(), []
    config = debug_run(uri, "train.steps=5", "train.log_every=2")
    path = train(config, on_event=events.append, build=builder)
    started = events[0]
    assert isinstance(started, TrainStarted)
    assert (started.step, started.steps, started.device) == (0, 5, "cpu")
    assert started.datasets[0].uri == uri
    assert started.datasets[0].segments == 20
    assert [event.step for event in events if isinstance(event, CheckpointSaved)] == [2, 4, 5]
    progress = [event for event in events if isinstance(event, TrainProgress)]
    assert [event.step for event in progress] == [1, 2, 4, 5]
    assert all(0 <= event.data_wait <= 1 and event.samples_per_second > 0 for event in progress)
    assert progress[-1].lr == config.optim.lr
    assert events[-1] == TrainFinished(path=str(path), step=5, reused=False)
    assert load_metrics(config.folder) == tuple(progress)
    assert load_checkpoint(path).state.metrics["loss"] == progress[-1].loss


def test_a_complete_run_is_reused_and_says_so(make_store: MakeStore, debug_run: MakeRun, builder: Any) -> None:
    config, events = debug_run(make_store()), []
    path = train(config, build=builder)
    assert train(config, on_event=events.append, build=builder) == path
    assert events == [TrainFinished(path=str(path), step=4, reused=True)]
    assert len(builder.built) == 1


def test_stop_before_the_first_step_leaves_a_checkpoint_that_resumes(
    make_store: MakeStore, debug_run: MakeRun, make_builder: Callable[[], Any]
) -> None:
    uri, events = make_store(), []
    path = train(debug_run(uri), on_event=events.append, stop=lambda: True, build=make_builder())
    assert events[-1] == TrainStopped(path=str(path), step=0)
    straight = train(debug_run(uri, output="other"), build=make_builder())
    same_tensors(train(debug_run(uri), build=make_builder()), straight)


def test_progress_that_was_lost_leaves_the_log(make_store: MakeStore, debug_run: MakeRun, builder: Any) -> None:
    config = debug_run(make_store(), "train.save_every=100", "train.steps=6")

    def crash(event: TrainEvent) -> None:
        if isinstance(event, TrainProgress) and event.step == 5:
            raise RuntimeError("power cut")

    stop = StopAt(2)
    train(config, on_event=stop.hear, stop=stop, build=builder)
    with pytest.raises(RuntimeError, match="power"):
        train(config, on_event=crash, build=builder)
    with (Path(config.folder) / "metrics.jsonl").open("a") as file:
        file.write('{"event": "train_pro')
    train(config, build=builder)
    assert [event.step for event in load_metrics(config.folder)] == [1, 2, 3, 4, 5, 6]
    lines = (Path(config.folder) / "metrics.jsonl").read_text().splitlines()
    assert sum('"train_progress"' in line for line in lines) == 6


def test_versions_stay_pinned_over_a_resume(
    make_store: MakeStore, debug_run: MakeRun, make_builder: Callable[[], Any]
) -> None:
    uri = make_store()
    stop = StopAt(2)
    half = train(debug_run(uri), on_event=stop.hear, stop=stop, build=make_builder())
    pinned = load_checkpoint(half).state.datasets[0].version
    straight = train(debug_run(uri, output="straight"), build=make_builder())
    make_store(lengths=(12, 9, 2, 30))  # appends an episode
    resumed = train(debug_run(uri), build=make_builder())
    assert load_checkpoint(resumed).state.datasets[0].version == pinned
    same_tensors(resumed, straight)
    newer = load_checkpoint(train(debug_run(uri, output="newer"), build=make_builder()))
    assert newer.state.datasets[0].version > pinned


def test_finetuning_takes_weights_and_bounds_of_its_parent(
    make_store: MakeStore, debug_run: MakeRun, make_builder: Callable[[], Any]
) -> None:
    uri, builder = make_store(), make_builder()
    parent = train(debug_run(uri, output="parent"), build=make_builder())
    pairs = ("stage=finetune", f"init_from={parent.parent.parent}", "name=child", "data.datasets.0.weight=2")
    child = train(debug_run(make_store("other"), *pairs, output="child"), stop=lambda: True, build=builder)
    found, expected = load_checkpoint(child), load_checkpoint(parent)
    assert found.state.parent is not None
    assert found.state.parent.identity == expected.identity
    assert found.normalizer == expected.normalizer
    averaged = expected.tensors("ema")
    assert all(torch.equal(value, averaged[name]) for name, value in found.tensors("model").items())
    train(debug_run(uri, "train.steps=6", output="parent"), build=make_builder())
    with pytest.raises(UserError, match="its parent"):
        train(debug_run(make_store("other"), *pairs, output="child"), build=builder)


def test_a_parent_without_actions_gives_no_bounds(
    make_store: MakeStore, debug_run: MakeRun, make_builder: Callable[[], Any]
) -> None:
    parent = train(debug_run(make_store("video", (8,), known=False), output="parent"), build=make_builder())
    assert load_checkpoint(parent).normalizer.count == 0
    child = train(debug_run(make_store(), f"init_from={parent}", "stage=finetune", output="c"), build=make_builder())
    assert load_checkpoint(child).normalizer.count == 23


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (("optim.lr=0.5",), "optim.lr: 0.001 -> 0.5"),
        (("train.batch_size=2",), "train.batch_size"),
        (("data.datasets.0.version=0",), "data.datasets.0.version"),
        (("optim.schedule=cosine",), "optim.schedule"),
        (("stage=finetune",), "init_from"),
        (("init_from=nowhere",), r"its parent \(init_from\): none -> nowhere"),
    ],
)
def test_another_run_in_the_same_folder_is_refused(
    make_store: MakeStore, debug_run: MakeRun, builder: Any, pairs: tuple[str, ...], message: str
) -> None:
    uri = make_store()
    train(debug_run(uri, "train.steps=1"), build=builder)
    with pytest.raises(UserError, match=message) as caught:
        train(debug_run(uri, *pairs), build=builder)
    assert "\n" not in str(caught.value)


def test_a_moved_end_of_the_cosine_is_refused(make_store: MakeStore, debug_run: MakeRun, builder: Any) -> None:
    uri, cosine = make_store(), "optim.schedule=cosine"
    train(debug_run(uri, cosine, "train.steps=2"), build=builder)
    with pytest.raises(UserError, match="decay_steps"):
        train(debug_run(uri, cosine, "train.steps=4"), build=builder)
    train(debug_run(uri, cosine, "train.steps=2", "optim.decay_steps=4", output="other"), build=builder)
    train(debug_run(uri, cosine, "train.steps=4", output="other"), build=builder)


def test_what_changes_no_result_may_change(make_store: MakeStore, debug_run: MakeRun, builder: Any) -> None:
    uri = make_store()
    train(debug_run(uri, "train.steps=1"), build=builder)
    path = train(debug_run(uri, "train.log_every=9", "train.save_every=9", "train.keep=9"), build=builder)
    assert load_checkpoint(path).state.step == 4


def test_starting_over_never_destroys(make_store: MakeStore, debug_run: MakeRun, builder: Any) -> None:
    config = debug_run(make_store())
    train(config, resume=False, build=builder)
    with pytest.raises(UserError, match="already holds checkpoints"):
        train(config, resume=False, build=builder)


def test_another_dataset_at_the_same_place_is_refused(make_store: MakeStore, debug_run: MakeRun, builder: Any) -> None:
    uri = make_store()
    train(debug_run(uri, "train.steps=1"), build=builder)
    Path(uri).rename(f"{uri}-gone")
    make_store()
    with pytest.raises(UserError, match="another dataset"):
        train(debug_run(uri), build=builder)


def test_one_trainer_at_a_time(make_store: MakeStore, debug_run: MakeRun, builder: Any) -> None:
    config = debug_run(make_store())

    def again(event: TrainEvent) -> None:
        with pytest.raises(UserError, match="another process trains"):
            train(config, build=builder)

    train(config, on_event=again, build=builder)


def test_divergence_is_told_and_never_saved(
    make_store: MakeStore, debug_run: MakeRun, make_builder: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    builder = make_builder()

    def build(config: RunConfig) -> Any:
        learner = builder(config)
        real = learner.loss

        def loss(batch: Any, generator: torch.Generator) -> LossOutput:
            output = real(batch, generator)
            factor = float("nan") if learner.calls > 3 else 1.0
            return LossOutput(loss=output.loss * factor, logs=output.logs)

        learner.loss = loss
        return learner

    config = debug_run(make_store(), "train.log_every=100", "train.save_every=2")
    with pytest.raises(UserError, match="diverged at step 4: the loss is nan"):
        train(config, build=build)
    assert load_checkpoint(config.folder).state.step == 2


def test_noise_follows_from_seed_and_step() -> None:
    device = torch.device("cpu")
    draws = {
        (seed, step): torch.randn(4, generator=step_generator(seed, step, device)).tolist()
        for seed in range(3)
        for step in range(3)
    }
    assert len({tuple(values) for values in draws.values()}) == 9
    assert torch.randn(4, generator=step_generator(1, 2, device)).tolist() == draws[1, 2]


def test_training_leaves_the_global_generator_alone(make_store: MakeStore, debug_run: MakeRun, builder: Any) -> None:
    config = debug_run(make_store())
    torch.manual_seed(0)
    train(config, build=builder)
    first = load_checkpoint(config.folder)
    torch.manual_seed(1)
    other = debug_run(config.data.datasets[0].uri, output="other")
    same_tensors(first.path, train(other, build=builder))


def test_unknown_device_is_a_user_error(make_store: MakeStore, debug_run: MakeRun, builder: Any) -> None:
    for name in ("gpu", "cuda:9"):
        with pytest.raises(UserError, match=name):
            train(debug_run(make_store(), f"train.device={name}"), build=builder)


def test_a_changed_tokenizer_is_refused(make_store: MakeStore, debug_run: MakeRun, builder: Any) -> None:
    def other(config: RunConfig) -> Any:
        learner = builder(config)
        learner.tokenizer_fingerprint = "another"
        return learner

    uri = make_store()
    train(debug_run(uri, "train.steps=1"), build=builder)
    with pytest.raises(UserError, match="another tokenizer"):
        train(debug_run(uri), build=other)
