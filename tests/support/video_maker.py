"""Writes valid videos of any container, codec, rate, start and orientation, whose frames carry their number."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from painted import Pixels, paint_number


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A video to write."""

    format: str
    codec: str
    rate: Fraction = Fraction(30)
    numbers: Sequence[int] = tuple(range(1, 61))
    times: Sequence[Fraction] | None = None
    """Seconds at which the frames appear; steady at `rate` when None."""
    start: Fraction = Fraction(0)
    size: tuple[int, int] = (96, 128)
    """Height and width."""
    matrix: tuple[int, ...] | None = None
    """Nine numbers of a display matrix."""
    options: dict[str, str] = field(default_factory=dict)
    mux: dict[str, str] = field(default_factory=dict)
    suffix: str = ""


def pixel_format(codec: str) -> str:
    formats = [item.name for item in av.Codec(codec, "w").video_formats or ()]
    for name in ("yuv420p", "yuvj420p", "yuv422p", "yuv444p", "rgb24", "bgr24", "bgr0", "rgba", "rgb8", "gray"):
        if name in formats:
            return name
    return formats[0] if formats else "yuv420p"


def write(path: Path, recipe: Recipe, pictures: Sequence[Pixels] | None = None) -> Path:
    """Write the video; frames show their numbers, or `pictures`."""
    ticks = Fraction(1, 90000) if recipe.times or recipe.start else 1 / recipe.rate
    with path.open("wb") as file, av.open(file, "w", format=recipe.format, options=recipe.mux) as container:
        stream: Any = container.add_stream(recipe.codec, rate=recipe.rate, options=recipe.options)
        stream.height, stream.width = recipe.size
        stream.pix_fmt = pixel_format(recipe.codec)
        stream.codec_context.time_base = ticks
        if recipe.matrix:
            stream.set_display_matrix(recipe.matrix)
        for index, number in enumerate(recipe.numbers):
            pixels = paint_number(number, *recipe.size) if pictures is None else pictures[index]
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24").reformat(
                format=stream.pix_fmt
            )
            time = recipe.times[index] if recipe.times else index / recipe.rate
            frame.pts, frame.time_base = round((time + recipe.start) / ticks), ticks
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path
