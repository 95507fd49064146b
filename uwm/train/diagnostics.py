"""What a run shows besides its loss: losses by dataset and by mode, parameter norm, MFU.

Nothing here is copied to the host before a report, which waits for the device anyway.

**Losses by mode.** Training draws the noise of both modalities independently, so no step belongs to a mode. But a
sample whose next observation is nearly pure noise asks what the mode `policy` asks, and so on. `MODE_BUCKETS` says
which samples count for which mode, and which modality's error:

| mode | action | next observation | error of |
|---|---|---|---|
| policy | any | last third of the schedule | action |
| inverse | any | first third | action |
| forward | first third | any | next observation |
| video | last third, or absent | any | next observation |
| joint | within a tenth of each other | | both |
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from uwm.data.batch import Batch
from uwm.policy import LossOutput, Mode, SampleLosses
from uwm.train.distributed import World
from uwm.train.optim import trained_parameters
from uwm.train.parallel import whole
from uwm.train.setup import Run

PEAK_FLOPS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "RTX A6000": 155e12,
    "A10G": 125e12,
    "A10": 125e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}
"""Dense bf16 tensor-core FLOP/s by a part of the device's name, from the vendor's data sheets; first match counts."""

MODE_BUCKETS: Mapping[Mode, Callable[[Tensor, Tensor], Tensor]] = {
    Mode.POLICY: lambda action, next_obs: next_obs >= 2 / 3,
    Mode.INVERSE: lambda action, next_obs: next_obs < 1 / 3,
    Mode.FORWARD: lambda action, next_obs: action < 1 / 3,
    Mode.VIDEO: lambda action, next_obs: action >= 2 / 3,
    Mode.JOINT: lambda action, next_obs: (action - next_obs).abs() < 0.1,
}
_PREDICTS = {
    Mode.POLICY: ("action",),
    Mode.INVERSE: ("action",),
    Mode.FORWARD: ("next_obs",),
    Mode.VIDEO: ("next_obs",),
    Mode.JOINT: ("action", "next_obs"),
}


@dataclass(frozen=True, kw_only=True)
class ErrorSums:
    """What a process adds to the mean errors of all, name by name."""

    errors: tuple[float, ...]
    samples: tuple[float, ...]


class Buckets:
    """Sums of per-sample errors by name; a name without samples since the last reading is left out.

    Args:
        datasets: names of the run's datasets, in their order.
    """

    def __init__(self, datasets: Sequence[str]) -> None:
        self._datasets = tuple(datasets)
        self._sums: dict[str, Tensor] = {}  # name -> (2,) sum and count

    def add(self, output: LossOutput, dataset: Tensor) -> None:
        """Take a batch's losses in; `dataset` (B,) is the batch's."""
        parts = {"action": output.action, "next_obs": output.next_obs}
        known = {name: part for name, part in parts.items() if part is not None}
        owner = dataset.to(output.loss.device, non_blocking=True)
        for name, part in known.items():
            for index, label in enumerate(self._datasets):
                self._take(f"dataset/{label}/{name}_loss", part, owner == index)
        noise = [part.noise for part in known.values() if part.noise is not None]
        for mode, chooses in MODE_BUCKETS.items() if len(noise) == len(parts) else ():
            for name in _PREDICTS[mode]:
                self._take(f"mode/{mode}/{name}_loss", known[name], chooses(*noise))

    def _take(self, name: str, part: SampleLosses, chosen: Tensor) -> None:
        weight = (chosen & part.known).to(part.error)
        values = torch.stack([(weight * part.error).sum(), weight.sum()])
        self._sums[name] = self._sums[name] + values if name in self._sums else values

    def read(self, world: World) -> dict[str, float]:
        """The means since the last reading, over all processes; waits for the device."""
        if not self._sums:
            return {}
        errors, samples = torch.stack(list(self._sums.values())).T.tolist()
        total = world.sum(ErrorSums(errors=tuple(errors), samples=tuple(samples)))
        rows = zip(self._sums, total.errors, total.samples, strict=True)
        self._sums = {}
        return {name: error / count for name, error, count in rows if count}


class Diagnostics:
    """Collects what a run's steps show besides their loss.

    Args:
        run: that is trained.
    """

    def __init__(self, run: Run) -> None:
        self._parameters = list(trained_parameters(run.model).values())
        self._buckets = Buckets(_labels([use.uri for use in run.uses]))
        self._peak = peak_flops(run.device) if run.dtype == torch.bfloat16 else None
        self._samples = run.config.train.batch_size
        self._counter: FlopCounterMode | None = None

    def counting(self) -> AbstractContextManager[object]:
        """Around the forward and backward pass: the first step's operations are counted where a peak is known."""
        if self._peak is None or self._counter is not None:
            return nullcontext()
        self._counter = flop_counter()
        return self._counter

    def add(self, output: LossOutput, batch: Batch) -> None:
        """Take in what a batch lost."""
        self._buckets.add(output, batch.dataset)

    def read(self, samples_per_second: float, world: World) -> dict[str, float]:
        """Everything since the last reading.

        Args:
            samples_per_second: of this process and its device.
            world: the processes to sum over.
        """
        norm = whole(nn.utils.get_total_norm([parameter.detach() for parameter in self._parameters]))
        values = {"parameter_norm": float(norm)}
        if self._peak and self._counter:
            values["flops_per_sample"] = self._counter.get_total_flops() / self._samples
            values["mfu"] = values["flops_per_sample"] * samples_per_second / self._peak
        return values | self._buckets.read(world)


def flop_counter() -> FlopCounterMode:
    """Counts matrix products and convolutions, forward and backward; a frozen tokenizer's and recomputed ones too."""
    return FlopCounterMode(display=False)


def peak_flops(device: torch.device) -> float | None:
    """The device's dense bf16 FLOP/s; None when it is no GPU of `PEAK_FLOPS`."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAK_FLOPS.items() if part in name), None)


def _labels(uris: Sequence[str]) -> list[str]:
    """Short names: the last part of each uri, numbered where two are alike."""
    names = [uri.rstrip("/").rpartition("/")[2] or "dataset" for uri in uris]
    count = Counter(names)
    return [name if count[name] == 1 else f"{name}-{index}" for index, name in enumerate(names)]
