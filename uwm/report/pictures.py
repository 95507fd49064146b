"""An evaluation's examples as encoded pictures: images to compare, short videos to watch. Imports no torch.

Dimension letters: V views, H and W image size.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from storage_schemas.images import encoded, tiled
from uwm.eval.files import ExampleArrays, load_evaluation, load_examples

_GRAY = 128
_MILLISECONDS = 700


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Encoded pictures by name, `<mode>/<number>`."""

    images: dict[str, bytes] = field(default_factory=dict)
    """PNG: a row for each view; columns now, true next, predicted next; gray where not recorded."""
    videos: dict[str, bytes] = field(default_factory=dict)
    """GIF, from now to next: a row for each view; columns true and predicted. Their names end in `-video`."""


def load_pictures(folder: str) -> Pictures:
    """Pictures of the examples in an evaluation's folder; none when it kept none.

    Raises:
        UserError: when there is no evaluation, or its examples are damaged.
    """
    examples = load_examples(folder, load_evaluation(folder))
    return pictures_of(examples) if examples else Pictures()


def pictures_of(examples: ExampleArrays) -> Pictures:
    """Pictures of all examples, for every mode that predicts frames."""
    drawn = Pictures()
    for mode, frames in examples.frames.items():
        for index, predicted in enumerate(frames):
            now = _masked(examples.current[index], examples.current_mask[index])
            true = _masked(examples.true[index], examples.true_mask[index])
            drawn.images[f"{mode}/{index}"] = encoded(tiled(zip(now, true, predicted, strict=True)))
            moments = [tiled(zip(now, now, strict=True)), tiled(zip(true, predicted, strict=True))]
            drawn.videos[f"{mode}/{index}-video"] = _gif(moments)
    return drawn


def _masked(frames: NDArray[np.uint8], mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Frames (V, H, W, 3), gray where `mask` (V,) is false."""
    return np.where(mask[:, None, None, None], frames, np.uint8(_GRAY))


def _gif(frames: Sequence[NDArray[np.uint8]]) -> bytes:
    from PIL import Image

    first, *rest = (Image.fromarray(frame) for frame in frames)
    buffer = io.BytesIO()
    first.save(buffer, format="GIF", save_all=True, append_images=rest, duration=_MILLISECONDS, loop=0)
    return buffer.getvalue()
