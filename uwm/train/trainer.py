"""The one trainer: every network and every stage, from a configuration to its last checkpoint.

A run is a function of its configuration. The sample order, the augmentation and the noise of a step
follow from the seed and the step, so a run that was stopped and resumed is bit-identical on the CPU
to one that was not.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from storage_schemas.errors import UserError
from uwm.config import RunConfig
from uwm.data.actions import share_actions
from uwm.data.augment import training_batch
from uwm.data.batch import RawBatch
from uwm.data.loader import SegmentReader, batches
from uwm.data.mixture import mixture_sampler
from uwm.device import autocast
from uwm.policy import build
from uwm.train import log
from uwm.train.checkpoint import CheckpointState, TensorKind, save_checkpoint
from uwm.train.examine import Examiner
from uwm.train.optim import learning_rate, optimizer_tensors, trained_parameters
from uwm.train.setup import Build, Run, find_checkpoint, lock_folder, prepare, resolve_paths
from uwm.train.watch import Watch


def train(
    config: RunConfig,
    *,
    resume: bool = True,
    on_event: log.OnEvent = lambda event: None,
    stop: Callable[[], bool] = lambda: False,
    build: Build = build,
) -> Path:
    """Train a run to its end, going on from its latest checkpoint when there is one.

    Args:
        config: of the run; `train.threads` changes torch's thread count for the whole process.
        resume: go on from the run folder's latest checkpoint; if False, a folder with checkpoints is
            an error.
        on_event: called with every event, in this thread, after it was written to `metrics.jsonl`.
        stop: asked after every step; when it says True the run saves a checkpoint and returns early.
        build: makes the network of a configuration.

    Returns:
        The directory of the last checkpoint.

    Raises:
        UserError: when data, parent or tokenizer are missing, the folder holds another run, or the loss
            is not finite.
    """
    if config.train.threads:
        torch.set_num_threads(config.train.threads)
    config = resolve_paths(config)
    with lock_folder(Path(config.folder)):
        found = find_checkpoint(config, resume=resume)
        if found and found.state.step >= config.train.steps:
            on_event(log.TrainFinished(path=str(found.path), step=found.state.step, reused=True))
            return found.path
        run = prepare(config, found, build)
        metrics = log.MetricsFile(run.folder, step=run.step)

        def tell(event: log.TrainEvent) -> None:
            metrics(event)
            on_event(event)

        return _Loop(run, tell).until(config.train.steps, stop)


def step_generator(seed: int, step: int, device: torch.device) -> torch.Generator:
    """The source of all noise of the update that follows `step` done updates."""
    word = int(np.random.SeedSequence((seed, step)).generate_state(1, np.uint64)[0])
    return torch.Generator(device).manual_seed(word >> 1)


@dataclass
class _Meter:
    """Sums since the last report; tensors stay on the device until then."""

    steps: int = 0
    rate: float = 0.0
    norm: Tensor = field(default_factory=lambda: torch.zeros(()))
    waited: float = 0.0
    since: float = field(default_factory=time.perf_counter)
    sums: dict[str, Tensor] = field(default_factory=dict)

    def add(self, values: Mapping[str, Tensor], waited: float) -> None:
        self.steps += 1
        self.waited += waited
        for name, value in values.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value.clone()

    def means(self) -> dict[str, float]:
        """The means so far; waits for the device."""
        return {name: float(total) / self.steps for name, total in self.sums.items()}


class _Loop:
    """The steps of a run from where it stands."""

    def __init__(self, run: Run, tell: log.OnEvent) -> None:
        self.run = run
        self.tell = tell
        self.meter = _Meter()
        self.watch = Watch(run)
        self.examiner = Examiner(run) if run.config.train.eval_every else None

    def until(self, steps: int, stop: Callable[[], bool]) -> Path:
        """Train up to `steps`, or until `stop`; returns the last checkpoint."""
        run, config = self.run, self.run.config.train
        self.tell(_started(run))
        source = self._batches(steps)
        self.meter = _Meter()
        while run.step < steps and not stop():
            self._step(source)
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

    def _batches(self, steps: int) -> Iterator[RawBatch]:
        run, size = self.run, self.run.config.train.batch_size
        return batches(
            SegmentReader(
                [member.dataset for member in run.members],
                run.config.data,
                run.latents,
                [share_actions(member.dataset, member.rows) for member in run.members],
            ),
            mixture_sampler(run.members, run.config.train.seed),
            start=run.position,
            stop=run.position + (steps - run.step) * size,
            batch_size=size,
            workers=run.config.data.workers,
            prefetch=run.config.data.prefetch,
            pin=run.device.type == "cuda",
        )

    def _step(self, source: Iterator[RawBatch]) -> None:
        """One update; copies nothing to the host, unless every step shall."""
        run, config = self.run, self.run.config
        asked = time.perf_counter()
        raw = next(source)
        waited = time.perf_counter() - asked
        seed = config.train.seed
        batch = training_batch(raw, config.data, run.normalizer, seed=seed, device=run.device)
        with self.watch.counting():
            with autocast(run.device, run.dtype):
                output = run.learner.loss(batch, step_generator(seed, run.step, run.device))
            output.loss.backward()  # type: ignore[no-untyped-call]
        self.meter.norm = nn.utils.clip_grad_norm_(trained_parameters(run.model).values(), config.optim.clip_norm)
        self.meter.rate = learning_rate(config.optim, run.step, config.train.steps)
        for group in run.optimizer.param_groups:
            group["lr"] = self.meter.rate
        run.optimizer.step()
        run.optimizer.zero_grad(set_to_none=True)
        run.step += 1
        run.position += len(batch)
        run.saved = None
        if run.average:
            run.average.update(run.step)
        logs = {**output.logs, "loss": output.loss.detach()}
        if config.train.sync == "step":
            for value in logs.values():
                value.item()
        self.meter.add(logs, waited)
        self.watch.see(output, raw.dataset)

    def _report(self) -> None:
        """Tell how the steps since the last report went. Raises UserError when they diverged."""
        run, meter = self.run, self.meter
        means, grad_norm = meter.means(), float(meter.norm)
        seconds = time.perf_counter() - meter.since
        if not np.isfinite([*means.values(), grad_norm]).all():
            raise UserError(f"{run.config.name} diverged before step {run.step}: lower optim.lr or raise warmup_steps")
        rate = meter.steps * run.config.train.batch_size / seconds
        event = log.TrainProgress(
            step=run.step,
            steps=run.config.train.steps,
            loss=means["loss"],
            logs={name: value for name, value in means.items() if name != "loss"},
            lr=meter.rate,
            grad_norm=grad_norm,
            samples_per_second=rate,
            data_wait=meter.waited / seconds,
            detail=self.watch.read(rate),
        )
        run.metrics = {**means, "grad_norm": grad_norm}
        self.meter = _Meter()
        self.tell(event)

    def _evaluate(self, examiner: Examiner) -> None:
        """Measure this step's checkpoint; training notices nothing of it."""
        path = self._save()
        began = time.perf_counter()
        for event in examiner.examine(path):
            self.tell(event)
        self.meter.since += time.perf_counter() - began

    def _save(self) -> Path:
        """Save the state after `run.step` steps, once; the time it takes counts for no measurement."""
        run = self.run
        if run.saved:
            return run.saved
        if self.meter.steps:
            self._report()  # which keeps weights that are not finite from being saved
        began = time.perf_counter()
        run.saved = save_checkpoint(
            run.folder,
            config=run.config,
            normalizer=run.normalizer,
            state=_state(run),
            tensors=_tensors(run),
            keep=run.config.train.keep,
        )
        self.meter.since += time.perf_counter() - began
        self.tell(log.CheckpointSaved(path=str(run.saved), step=run.step))
        return run.saved


def _tensors(run: Run) -> dict[TensorKind, Mapping[str, Tensor]]:
    found: dict[TensorKind, Mapping[str, Tensor]] = {
        "model": run.model.state_dict(),
        "optim": optimizer_tensors(run.optimizer, run.model),
    }
    if run.average:
        found["ema"] = run.average.tensors(run.model)
    return found


def _state(run: Run) -> CheckpointState:
    return CheckpointState(
        name=run.config.name,
        stage=run.config.stage,
        step=run.step,
        position=run.position,
        seed=run.config.train.seed,
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
        batch_size=config.train.batch_size,
        device=str(run.device),
        precision="bf16" if run.dtype == torch.bfloat16 else "fp32",
        attention=run.attention,
        parameters=sum(parameter.numel() for parameter in trained_parameters(run.model).values()),
        tokenizer=run.tokenizer,
        parent=run.parent.path if run.parent else "",
        datasets=run.uses,
        code_revision=run.code_revision,
    )
