"""The one trainer: every network and every stage, from a configuration to its last checkpoint.

A run is a function of its configuration. The sample order, the augmentation and the noise of a step
follow from the seed and the step, so a run that was stopped and resumed is bit-identical on the CPU
to one that was not. Several processes give the weights of one, up to rounding: see `uwm.train.parallel`.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from uwm import events as log
from uwm.checkpoint import Checkpoint, CheckpointState, TensorKind, save_checkpoint
from uwm.config import RunConfig
from uwm.data.batch import Batch
from uwm.data.usage import dataset_plans, write_plans
from uwm.device import autocast
from uwm.policies import build
from uwm.train.diagnostics import Diagnostics
from uwm.train.distributed import World, join_world
from uwm.train.divergence import DivergenceCheck, write_divergence
from uwm.train.metrics import Metrics
from uwm.train.micro_batches import MicroBatchReader
from uwm.train.optim import learning_rate, optimizer_tensors, trained_parameters
from uwm.train.parallel import clip_gradients, whole
from uwm.train.periodic_evaluation import PeriodicEvaluation
from uwm.train.resume import check_same_run, find_checkpoint, lock_folder, resolve_paths
from uwm.train.setup import Build, Run, pin_versions, prepare, with_instructions


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
    with ExitStack() as locks, join_world(config.train.device) as world:
        start = world.from_main(lambda: _choose_start(config, world, locks, resume=resume, on_event=on_event))
        latest = start.checkpoint
        if latest and latest.state.step >= start.config.train.steps:
            on_event(log.TrainFinished(path=str(latest.path), step=latest.state.step, reused=True))
            return latest.path
        run = world.together(lambda: prepare(start.config, latest, build, world))
        return _Loop(run, _teller(run, on_event)).until(start.config.train.steps, stop)


@dataclass(frozen=True, kw_only=True)
class _Start:
    """What the main process decides for all before a run begins."""

    config: RunConfig
    """The configuration with paths resolved and, of a new run of several processes, dataset versions pinned."""
    checkpoint: Checkpoint | None
    """The checkpoint that the run goes on from."""


def _choose_start(config: RunConfig, world: World, locks: ExitStack, *, resume: bool, on_event: log.OnEvent) -> _Start:
    """Lock the run's folder and choose what the run starts from; its instructions are encoded then."""
    locks.enter_context(lock_folder(Path(config.folder)))
    latest = find_checkpoint(config, resume=resume)
    resolved = resolve_paths(config, latest)
    if latest:
        check_same_run(resolved, latest, world.size)
    elif world.size > 1:
        resolved = pin_versions(resolved)  # the others may see a newer version a moment later
    if resolved.data.language.is_heard and not (latest and latest.state.step >= resolved.train.steps):
        resolved = with_instructions(resolved, latest, on_event=on_event)
    return _Start(config=resolved, checkpoint=latest)


def _teller(run: Run, on_event: log.OnEvent) -> log.OnEvent:
    """Where a process sends its events; all processes tell each event together, for one that can't ends them all."""
    metrics = log.MetricsFile(run.folder, step=run.step) if run.world.main else None

    def tell(event: log.TrainEvent) -> None:
        if metrics:
            metrics(event)
        if metrics or isinstance(event, log.TrainStopped | log.TrainFinished):
            on_event(event)

    return lambda event: run.world.together(lambda: tell(event))


def step_generator(seed: int, step: int, device: torch.device) -> torch.Generator:
    """The source of all noise of the update that follows `step` done updates."""
    word = int(np.random.SeedSequence((seed, step)).generate_state(1, np.uint64)[0])
    # torch takes 63 bits
    return torch.Generator(device).manual_seed(word >> 1)


class _Loop:
    """The steps of a run from where it stands."""

    def __init__(self, run: Run, tell: log.OnEvent) -> None:
        self.run = run
        self.tell = tell
        self.metrics = Metrics()
        self.diagnostics = Diagnostics(run)
        self.divergence = DivergenceCheck(run.config.train.spike_window, run.config.train.spike_limit)
        self.evaluation = PeriodicEvaluation(run) if run.config.train.eval_every else None

    def until(self, steps: int, stop: Callable[[], bool]) -> Path:
        """Train up to `steps`, or until `stop`; returns the last checkpoint."""
        run, config = self.run, self.run.config.train
        started = _started(run)
        if run.world.main:
            write_plans(run.folder, started.plans)
        self.tell(started)
        reader = run.world.together(lambda: MicroBatchReader(run, steps, stop))
        self.metrics = Metrics()  # its clock starts now: opening the data is no part of the first step
        while run.step < steps:
            batches = reader.read()
            self.metrics.waited += reader.waited
            if not batches:
                break
            self._step(batches)
            # the first step too: who started the run sees at once that it works
            if run.step % config.log_every == 0 or run.step == 1:
                self.tell(self._progress())
            if run.step % config.save_every == 0:
                self._save()
            if self.evaluation and run.step % config.eval_every == 0:
                self._evaluate(self.evaluation)
        path = self._save()
        if run.step < steps:
            self.tell(log.TrainStopped(path=str(path), step=run.step))
        else:
            self.tell(log.TrainFinished(path=str(path), step=run.step, reused=False))
        return path

    def _step(self, batches: Iterator[Batch]) -> None:
        """One update from its micro-batches; copies nothing to the host, unless every step shall."""
        run, config = self.run, self.run.config
        for left, batch in zip(reversed(range(config.train.accumulate)), batches, strict=True):
            self._gradient(batch, last=left == 0)
        norm = clip_gradients(list(trained_parameters(run.model).values()), config.optim.clip_norm)
        for group in run.optimizer.param_groups:
            group["lr"] = learning_rate(config.optim, run.step, config.train.steps)
        run.optimizer.step()
        run.optimizer.zero_grad(set_to_none=True)
        run.step += 1
        run.position += run.samples
        run.saved = None
        if run.average:
            run.average.update(run.step)
        self.metrics.end_step(norm)

    def _gradient(self, batch: Batch, *, last: bool) -> None:
        """Add a micro-batch's gradient; with the step's last one all processes' gradients are brought together."""
        run, weight = self.run, 1 / self.run.config.train.accumulate
        with run.engine.reducing(last), self.diagnostics.counting():
            with autocast(run.device, run.dtype):
                output = run.engine.loss(batch, step_generator(run.config.train.seed, run.step, run.device))
            (output.loss * weight).backward()  # type: ignore[no-untyped-call]
        logs = {**output.logs, "loss": output.loss.detach()}
        if run.config.train.sync == "step":
            for value in logs.values():
                value.item()
        self.metrics.add(logs, weight)
        self.diagnostics.add(output, batch)

    def _progress(self) -> log.TrainProgress:
        """How the steps since the last report went. Raises UserError when they diverged."""
        run, steps = self.run, self.run.config.train.steps
        summary = self.metrics.read(run.world)
        divergence = self.divergence.check(run.step - self.metrics.steps + 1, summary.losses, summary.norms)
        if divergence:
            run.world.from_main(lambda: write_divergence(divergence, run))
        rate = self.metrics.steps * run.samples / summary.seconds
        event = log.TrainProgress(
            step=run.step,
            steps=steps,
            loss=summary.logs["loss"],
            logs={name: value for name, value in summary.logs.items() if name != "loss"},
            lr=learning_rate(run.config.optim, run.step - 1, steps),
            grad_norm=summary.norms[-1],
            samples_per_second=rate,
            data_wait=summary.waited,
            detail=self.diagnostics.read(rate / run.world.size, run.world),
        )
        run.metrics = {**summary.logs, "grad_norm": event.grad_norm}
        self.metrics = Metrics()
        return event

    def _evaluate(self, evaluation: PeriodicEvaluation) -> None:
        """Measure this step's checkpoint in the main process; training notices nothing of it."""
        path = self._save()
        began = time.perf_counter()

        events = self.run.world.from_main(lambda: list(evaluation.measure(path)))
        self.metrics.since += time.perf_counter() - began
        for event in events:
            self.tell(event)

    def _save(self) -> Path:
        """Save the state after `run.step` steps, once; the time it takes counts for no measurement."""
        run = self.run
        if run.saved:
            return run.saved
        # Measured first, so that weights that are not finite aren't saved; told last, for who listens may fail.
        events: list[log.TrainEvent] = [self._progress()] if self.metrics.steps else []
        began = time.perf_counter()
        tensors = _tensors(run)  # of all processes, so all take part
        run.saved = run.world.from_main(lambda: _write(run, tensors))
        self.metrics.since += time.perf_counter() - began
        for event in (*events, log.CheckpointSaved(path=str(run.saved), step=run.step)):
            self.tell(event)
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
    tensors: dict[TensorKind, Mapping[str, Tensor]] = {
        "model": run.model.state_dict(),
        "optim": optimizer_tensors(run.optimizer, run.model),
    }
    if run.average:
        tensors["ema"] = run.average.tensors(run.model)
    if run.world.size == 1:
        return tensors
    return {kind: _gather(named, run.world) for kind, named in tensors.items()}


def _gather(named: Mapping[str, Tensor], world: World) -> dict[str, Tensor]:
    """One tensor after the other, so that a device never holds more than one that is whole."""
    gathered = {}
    for name, value in named.items():
        tensor = whole(value.detach())  # every process takes part, in the same order
        if world.main:
            gathered[name] = tensor.cpu()
    return gathered


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
        share_beyond=run.share_beyond,
        plans=dataset_plans(run.members, config.data),
    )
