"""Ask a trained policy one question about a few held-out segments and save what it answers.

Dimension letters: B batch, V views, N next frames, S action steps, A action dimensions, H and W image
size.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from storage_schemas.documents import write_document
from storage_schemas.errors import UserError
from storage_schemas.images import encoded, tiled
from storage_schemas.location import Location, locate
from storage_schemas.store.dataset import Dataset
from uwm.data.batch import Batch
from uwm.device import Precision
from uwm.eval.options import SAMPLE_DEFAULTS, SampleOptions
from uwm.eval.setup import EvaluationSetup, ModeSampler, open_evaluation_setup
from uwm.policy import Mode

ACTIONS_FILE = "actions.json"
_GAP = 4
_BATCH = 16


@dataclass(frozen=True, kw_only=True)
class SampleFiles:
    """What `sample` wrote."""

    strips: tuple[str, ...]
    """One PNG per segment: a row for each camera, columns now, true, predicted; gray where not recorded."""
    actions: str
    """JSON: the segments, their true actions and the predicted ones, in the store's units."""


def parse_mode(name: str) -> Mode:
    """The mode of a name.

    Raises:
        UserError: when there is no such mode; names all there are.
    """
    try:
        return Mode(name)
    except ValueError as error:
        raise UserError(f"unknown mode {name!r}: it is one of {', '.join(Mode)}") from error


@torch.no_grad()
def sample(
    checkpoint: str,
    dataset: Dataset,
    mode: str,
    out: str,
    options: SampleOptions = SAMPLE_DEFAULTS,
    *,
    precision: Precision = "fp32",
) -> SampleFiles:
    """Sample one mode on evenly spaced held-out segments and save images and actions.

    Args:
        checkpoint: checkpoint directory or run folder.
        dataset: opened at the version that is asked for.
        mode: one of the five.
        out: folder or URI to write to.
        options: which segments, and how they are sampled.
        precision: of the weights.

    Raises:
        UserError: when the mode is unknown, the checkpoint can't answer it, or checkpoint or dataset are
            missing or unfit.
    """
    question = parse_mode(mode)
    setup = open_evaluation_setup(checkpoint, dataset, options, precision=precision)
    if question not in setup.policy.modes:
        raise UserError(f"this checkpoint has no mode {mode}: it has {', '.join(sorted(setup.policy.modes))}")
    folder = locate(out)
    strips: list[str] = []
    records: list[dict[str, object]] = []
    for places, batch in setup.batches(_BATCH):
        answer = ModeSampler(setup.policy, batch, (options.seed, int(places[0]))).ask([question])[question]
        images = None if answer.next_obs is None else setup.policy.decode(answer.next_obs)
        actions = None if answer.action is None else setup.physical(answer.action)
        for row, index in enumerate(places.tolist()):
            predicted = None if images is None else images[row]
            strips.append(_write_strip(folder / f"{mode}-{index:03d}.png", batch, row, predicted))
            records.append(_record(setup, batch, row, index, None if actions is None else actions[row]))
    content = {"mode": mode, "seed": options.seed, "action_names": setup.action_names, "segments": records}
    write_document(folder / ACTIONS_FILE, content)
    return SampleFiles(strips=tuple(strips), actions=(folder / ACTIONS_FILE).uri)


def _record(setup: EvaluationSetup, batch: Batch, row: int, index: int, predicted: Tensor | None) -> dict[str, object]:
    true = setup.physical(batch.action[row : row + 1])[0]
    mask = batch.action_mask[row]
    known = bool(mask.any() and (mask == mask[0]).all())  # the whole chunk, in the dimensions that the robot has
    return {
        **setup.example(index).model_dump(),
        "true": [_numbers(*step) for step in zip(true, mask, strict=True)] if known else None,
        "predicted": None if predicted is None else predicted.tolist(),
    }


def _numbers(values: Tensor, known: Tensor) -> list[float | None]:
    return [value if there else None for value, there in zip(values.tolist(), known.tolist(), strict=True)]


def _write_strip(location: Location, batch: Batch, row: int, predicted: Tensor | None) -> str:
    """Write the pictures of one segment; `predicted` is (V, N, 3, H, W)."""
    seen = batch.obs_mask[row, :, -1] | batch.next_mask[row, :, -1]  # (V,)
    columns = [_shown(batch.obs[row, :, -1], batch.obs_mask[row, :, -1])]
    columns.append(_shown(batch.next_obs[row, :, -1], batch.next_mask[row, :, -1]))
    if predicted is not None:
        columns.append(_shown(predicted[:, -1], seen))
    grid = np.stack([column[seen.cpu().numpy()] for column in columns], axis=1)  # (views seen, columns, H, W, 3)
    location.write_bytes(encoded(tiled(grid, gap=_GAP)))
    return location.uri


def _shown(images: Tensor, mask: Tensor) -> NDArray[np.uint8]:
    """Images (V, 3, H, W) in [0, 1] as bytes (V, H, W, 3), gray where `mask` (V,) is false."""
    visible = images.clamp(0, 1).where(mask[:, None, None, None], 0.5)
    return visible.mul(255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
