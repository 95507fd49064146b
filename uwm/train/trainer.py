"""The one trainer: every network and every stage, from a configuration to its last checkpoint.

A run is a function of its configuration. The sample order, the augmentation and the noise of a step
follow from the seed and the step, so a run that was stopped and resumed is bit-identical on the CPU
to one that was not. Several processes give the weights of one, up to rounding: see `uwm.train.parallel`.
"""

import json
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from uwm import events as log
from uwm.checkpoint import Checkpoint, CheckpointState, TensorKind, load_checkpoint, save_checkpoint
from uwm.config import RunConfig
from uwm.data.augment import training_batch
from uwm.data.batch import Batch
from uwm.device import autocast
from uwm.policies import build
from uwm.train.diagnostics import Watch
from uwm.train.distributed import World, join_world
from uwm.train.divergence import DivergenceGuard, write_divergence
from uwm.train.metrics import Meter
from uwm.train.micro_batches import Share, ShareReader
from uwm.train.optim import learning_rate, optimizer_tensors, trained_parameters
from uwm.train.parallel import clip_gradients, whole
from uwm.train.periodic_evaluation import Examiner
from uwm.train.resume import find_checkpoint, lock_folder, resolve_paths
from uwm.train.setup import Build, Run, pin_versions, prepare


def train(
    config: RunConfig,
    *,
    resume: bool = True,
    on_event: log.OnEvent = lambda event: None,
    stop: Callable[[], bool] = lambda: False,
    build: Build = build,
) -> Path:
    """Train a run to its end, going on from its latest checkpoint when there is one.

    Under torchrun every process calls this with the same configuration, and they train one model together.

    Args:
        config: of the run; `train.threads` changes torch's thread count for the whole process.
        resume: go on from the run folder's latest checkpoint; if False, a folder with checkpoints is
            an error.
        on_event: called with every event, in this thread, after it was written to `metrics.jsonl`; of several
            processes the main one hears all, the others how the run ended.
        stop: asked before every step; when it says True in any process the run saves a checkpoint and returns early.
        build: makes the network of a configuration.

    Returns:
        The directory of the last checkpoint.

    Raises:
        UserError: when data, parent or tokenizer are missing, the folder holds another run, or the loss
            is not finite or jumps; the same in all processes.
    """
    if config.train.threads:
        torch.set_num_threads(config.train.threads)
    with ExitStack() as held, join_world(config.train.device) as world:
        config, found = _begin(config, world, held, resume=resume)
        if found and found.state.step >= config.train.steps:
            on_event(log.TrainFinished(path=str(found.path), step=found.state.step, reused=True))
            return found.path
        run = world.together(lambda: prepare(config, found, build, world))
        return _Loop(run, _teller(run, on_event)).until(config.train.steps, stop)


def _begin(config: RunConfig, world: World, held: ExitStack, *, resume: bool) -> tuple[RunConfig, Checkpoint | None]:
    """Hold the run's folder and choose what the run starts from: the main process decides for all."""
    found: Checkpoint | None = None

    def choose() -> str:
        nonlocal found
        chosen = resolve_paths(config)
        held.enter_context(lock_folder(Path(chosen.folder)))
        found = find_checkpoint(chosen, resume=resume, processes=world.size)
        if world.size > 1 and not found:
            chosen = pin_versions(chosen)  # the others may see a newer version a moment later
        return json.dumps([chosen.model_dump(mode="json"), str(found.path) if found else ""])

    settings, path = json.loads(world.from_main(choose))
    found = world.together(lambda: load_checkpoint(path) if path and not world.main else found)
    return RunConfig.model_validate(settings), found


def _teller(run: Run, on_event: log.OnEvent) -> log.OnEvent:
    """Where a process sends its events."""
    if not run.world.main:
        return lambda event: on_event(event) if isinstance(event, log.TrainStopped | log.TrainFinished) else None
    metrics = log.MetricsFile(run.folder, step=run.step)

    def tell(event: log.TrainEvent) -> None:
        metrics(event)
        on_event(event)

    return tell


def step_generator(seed: int, step: int, device: torch.device) -> torch.Generator:
    """The source of all noise of the update that follows `step` done updates."""
    word = int(np.random.SeedSequence((seed, step)).generate_state(1, np.uint64)[0])
    return torch.Generator(device).manual_seed(word >> 1)


class _Loop:
    """The steps of a run from where it stands."""

    def __init__(self, run: Run, tell: log.OnEvent) -> None:
        self.run = run
        self.tell = tell
        self.meter = Meter()
        self.watch = Watch(run)
        self.guard = DivergenceGuard(run.config.train.spike_window, run.config.train.spike_limit)
        self.examiner = Examiner(run) if run.config.train.eval_every else None

    def until(self, steps: int, stop: Callable[[], bool]) -> Path:
        """Train up to `steps`, or until `stop`; returns the last checkpoint."""
        run, config = self.run, self.run.config.train
        self.tell(_started(run))
        reader = run.world.together(lambda: ShareReader(run, steps, stop))
        self.meter = Meter()
        while run.step < steps:
            shares = reader.read()
            self.meter.waited += reader.waited
            if not shares:
                break
            self._step(shares)
            if run.step % config.log_every == 0 or run.step == 1:
                self._report()
            if run.step % config.save_every == 0:
                self._save()
            if self.examiner and run.step % config.eval_every == 0:
                self._evaluate(self.examiner)
        path = self._save()
        if run.step < steps:
            self.tell(log.TrainStopped(path=str(path), step=run.step))
        else:
            self.tell(log.TrainFinished(path=str(path), step=run.step, reused=False))
        return path

    def _step(self, shares: list[Share]) -> None:
        """One update; copies nothing to the host, unless every step shall."""
        run, config = self.run, self.run.config
        seed = config.train.seed
        for left, (raw, share) in zip(reversed(range(len(shares))), shares, strict=True):
            batch = training_batch(raw, config.data, run.normalizer, seed=seed, device=run.device)
            self._gradient(replace(batch, share=share), raw.dataset, 1 / len(shares), last=left == 0)
        norm = clip_gradients(list(trained_parameters(run.model).values()), config.optim.clip_norm)
        self.meter.rate = learning_rate(config.optim, run.step, config.train.steps)
        for group in run.optimizer.param_groups:
            group["lr"] = self.meter.rate
        run.optimizer.step()
        run.optimizer.zero_grad(set_to_none=True)
        run.step += 1
        run.position += run.samples
        run.saved = None
        if run.average:
            run.average.update(run.step)
        self.meter.step(norm)

    def _gradient(self, batch: Batch, dataset: Tensor, weight: float, *, last: bool) -> None:
        """Add a share's gradient; with the step's last one all processes' gradients are brought together."""
        run = self.run
        with run.engine.sharing(last), self.watch.counting():
            with autocast(run.device, run.dtype):
                output = run.engine.loss(batch, step_generator(run.config.train.seed, run.step, run.device))
            (output.loss * weight).backward()  # type: ignore[no-untyped-call]
        logs = {**output.logs, "loss": output.loss.detach()}
        if run.config.train.sync == "step":
            for value in logs.values():
                value.item()
        self.meter.share(logs, weight)
        self.watch.see(output, dataset)

    def _report(self) -> None:
        """Tell how the steps since the last report went. Raises UserError when they diverged."""
        run, meter = self.run, self.meter
        reading = meter.read(run.world)
        divergence = self.guard.check(run.step - meter.steps + 1, reading.losses, reading.norms)
        if divergence:
            run.world.from_main(lambda: write_divergence(divergence, run))
        rate = meter.steps * run.samples / reading.seconds
        event = log.TrainProgress(
            step=run.step,
            steps=run.config.train.steps,
            loss=reading.logs["loss"],
            logs={name: value for name, value in reading.logs.items() if name != "loss"},
            lr=meter.rate,
            grad_norm=reading.norms[-1],
            samples_per_second=rate,
            data_wait=reading.waited,
            detail=self.watch.read(rate / run.world.size, run.world.sum),
        )
        run.metrics = {**reading.logs, "grad_norm": event.grad_norm}
        self.meter = Meter()
        self.tell(event)

    def _evaluate(self, examiner: Examiner) -> None:
        """Measure this step's checkpoint in the main process; training notices nothing of it."""
        path = self._save()
        began = time.perf_counter()

        def examine() -> str:
            for event in examiner.examine(path):
                self.tell(event)
            return ""

        self.run.world.from_main(examine)
        self.meter.since += time.perf_counter() - began

    def _save(self) -> Path:
        """Save the state after `run.step` steps, once; the time it takes counts for no measurement."""
        run = self.run
        if run.saved:
            return run.saved
        if self.meter.steps:
            self._report()  # which keeps weights that are not finite from being saved
        began = time.perf_counter()
        tensors = _tensors(run)  # of all processes, so all take part
        run.saved = Path(run.world.from_main(lambda: str(_write(run, tensors))))
        self.meter.since += time.perf_counter() - began
        self.tell(log.CheckpointSaved(path=str(run.saved), step=run.step))
        return run.saved


def _write(run: Run, tensors: Mapping[TensorKind, Mapping[str, Tensor]]) -> Path:
    return save_checkpoint(
        run.folder,
        config=run.config,
        normalizer=run.normalizer,
        state=_state(run),
        tensors=tensors,
        keep=run.config.train.keep,
    )


def _tensors(run: Run) -> dict[TensorKind, Mapping[str, Tensor]]:
    """What a checkpoint holds, whole; only the main process, which writes it, keeps what was sharded."""
    found: dict[TensorKind, Mapping[str, Tensor]] = {
        "model": run.model.state_dict(),
        "optim": optimizer_tensors(run.optimizer, run.model),
    }
    if run.average:
        found["ema"] = run.average.tensors(run.model)
    if run.world.size == 1:
        return found
    return {kind: _gather(named, run.world) for kind, named in found.items()}


def _gather(named: Mapping[str, Tensor], world: World) -> dict[str, Tensor]:
    """One tensor after the other, so that a device never holds more than one that is whole."""
    found = {}
    for name, value in named.items():
        tensor = whole(value.detach())
        if world.main:
            found[name] = tensor.cpu()
    return found


def _state(run: Run) -> CheckpointState:
    return CheckpointState(
        name=run.config.name,
        stage=run.config.stage,
        step=run.step,
        position=run.position,
        seed=run.config.train.seed,
        batch=run.samples,
        datasets=run.uses,
        parent=run.parent,
        tokenizer=run.tokenizer,
        tokenizer_checkpoint=run.tokenizer_checkpoint,
        code_revision=run.code_revision,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        metrics=run.metrics,
    )


def _started(run: Run) -> log.TrainStarted:
    config = run.config
    return log.TrainStarted(
        name=config.name,
        stage=config.stage,
        folder=str(run.folder),
        step=run.step,
        steps=config.train.steps,
        batch_size=run.samples,
        device=str(run.device),
        precision="bf16" if run.dtype == torch.bfloat16 else "fp32",
        attention=run.attention,
        parameters=sum(parameter.numel() for parameter in trained_parameters(run.model).values()),
        tokenizer=run.tokenizer,
        parent=run.parent.path if run.parent else "",
        datasets=run.uses,
        code_revision=run.code_revision,
        processes=run.world.size,
    )
