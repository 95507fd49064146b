"""Plots and thumbnails as bytes, each plot once for a light and once for a dark page."""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from storage_schemas.images import encoded
from uwm.report.curves import Series

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_THUMBNAIL = 320
"""Width in pixels beyond which a thumbnail is reduced."""


@dataclass(frozen=True, kw_only=True)
class Theme:
    """The colours of a page."""

    ink: str
    muted: str
    grid: str
    cycle: tuple[str, ...]


LIGHT = Theme(ink="#1f2328", muted="#6b7280", grid="#e5e7eb", cycle=("#2563a8", "#c2571a", "#2f7d4f", "#8a4f9e"))
DARK = Theme(ink="#e6e8eb", muted="#9aa3ad", grid="#2d333b", cycle=("#6cb0f0", "#f0965a", "#6fc793", "#c996dc"))


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An image with what it shows in words; without `dark` both pages show the same bytes."""

    caption: str
    light: bytes
    dark: bytes | None = None
    media_type: Literal["image/svg+xml", "image/png"] = "image/svg+xml"


@dataclass(frozen=True, kw_only=True)
class ActionLine:
    """One chunk of actions (S, A) to draw, or a constant (A,)."""

    label: str
    values: NDArray[np.floating]
    style: Literal["truth", "model", "baseline"] = "model"


def loss_curves(title: str, series: Mapping[str, Series]) -> Picture:
    """Training losses over steps: the logged values faintly, their running mean on top.

    The axis is logarithmic when the values span more than a factor of five and are all positive.
    """
    shown = dict(series)

    def draw(figure: "Figure", theme: Theme) -> None:
        axes = figure.add_subplot()
        for colour, (name, one) in zip(_cycle(theme, len(shown)), shown.items(), strict=True):
            axes.plot(one.steps, one.values, color=colour, alpha=0.25, linewidth=0.8)
            smooth = one.smooth(max(3, len(one.values) // 25))
            axes.plot(smooth.steps, smooth.values, color=colour, linewidth=1.6, label=_literal(name.replace("_", " ")))
        _scale(axes, [one.values for one in shown.values()])
        axes.set_xlabel("training step")
        _dress(axes, theme)
        if shown:
            axes.legend(frameon=False, labelcolor=theme.ink, fontsize=8.5)

    return _both(f"Training loss of {title}.", draw, (4.2, 2.7))


def _scale(axes: "Axes", values: Sequence[NDArray[np.float64]]) -> None:
    from matplotlib.ticker import LogLocator, StrMethodFormatter

    if not values:
        return
    everything = np.concatenate(values)
    if everything.min() > 0 and everything.max() > 5 * everything.min():
        axes.set_yscale("log")
        axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(StrMethodFormatter("{x:g}"))
        axes.set_ylabel("loss (log)")
    else:
        axes.set_ylabel("loss")


def action_multiples(caption: str, names: Sequence[str], lines: Sequence[ActionLine], fps: float) -> Picture:
    """One small plot for every action dimension over the chunk's time, in the store's units.

    Args:
        caption: what is shown.
        names: of the A dimensions.
        lines: what to draw, in the order of the legend.
        fps: steps per second.
    """
    columns = min(5, len(names))
    rows = -(-len(names) // columns)
    steps = max((len(line.values) for line in lines if line.values.ndim == 2), default=1)
    seconds = np.arange(steps) / fps

    def draw(figure: "Figure", theme: Theme) -> None:
        grid = figure.subplots(rows, columns, sharex=True, squeeze=False)
        for index, axes in enumerate(grid.flat):
            if index >= len(names):
                axes.set_visible(False)
                continue
            _action_lines(axes, lines, index, seconds, theme)
            axes.set_title(_literal(names[index]), fontsize=9, color=theme.ink, loc="left")
            _frame(axes)
            _dress(axes, theme)
            if index >= len(names) - columns:
                axes.set_xlabel("s")
        handles, labels = grid.flat[0].get_legend_handles_labels()
        legend = figure.legend(handles, labels, loc="outside upper left", ncols=len(labels), frameon=False, fontsize=9)
        for text in legend.get_texts():
            text.set_color(theme.ink)

    return _both(caption, draw, (2.15 * columns, 1.55 * rows + 0.5))


def _action_lines(
    axes: "Axes", lines: Sequence[ActionLine], dimension: int, seconds: NDArray[np.floating], theme: Theme
) -> None:
    colours = iter(_cycle(theme, len(lines)))
    for line in lines:
        values = np.broadcast_to(line.values, (len(seconds), line.values.shape[-1]))[:, dimension]
        if line.style == "truth":
            axes.plot(seconds, values, color=theme.ink, linewidth=1.8, label=_literal(line.label))
        elif line.style == "baseline":
            axes.plot(
                seconds, values, color=theme.muted, linewidth=1.1, linestyle=(0, (4, 3)), label=_literal(line.label)
            )
        else:
            axes.plot(seconds, values, color=next(colours), linewidth=1.4, label=_literal(line.label))


def _frame(axes: "Axes") -> None:
    """Few ticks with plain numbers, and no magnifying of what is constant up to rounding."""
    from matplotlib.ticker import MaxNLocator, ScalarFormatter

    axes.margins(y=0.15)
    low, high = axes.get_ylim()
    least = 0.05 * max(abs(low), abs(high), 1e-3)
    if high - low < least:
        axes.set_ylim((low + high - least) / 2, (low + high + least) / 2)
    axes.xaxis.set_major_locator(MaxNLocator(3))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(ScalarFormatter(useOffset=False))


def _literal(text: str) -> str:
    return text.replace("$", r"\$")  # a name is never a formula


def _cycle(theme: Theme, count: int) -> list[str]:
    return [theme.cycle[index % len(theme.cycle)] for index in range(count)]


def _dress(axes: "Axes", theme: Theme) -> None:
    axes.set_facecolor("none")
    axes.grid(color=theme.grid, linewidth=0.7)
    axes.set_axisbelow(True)
    for name, spine in axes.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color(theme.grid)
    axes.tick_params(colors=theme.muted, labelsize=8, length=0, which="both")
    axes.xaxis.label.set(color=theme.muted, fontsize=8.5)
    axes.yaxis.label.set(color=theme.muted, fontsize=8.5)


def _both(caption: str, draw: Callable[["Figure", Theme], None], size: tuple[float, float]) -> Picture:
    return Picture(caption=caption, light=_svg(draw, LIGHT, size), dark=_svg(draw, DARK, size))


def _svg(draw: Callable[["Figure", Theme], None], theme: Theme, size: tuple[float, float]) -> bytes:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    # Real text is small, sharp and in the reader's font; with a fixed salt the same numbers give the same bytes.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "uwm"}):
        figure = Figure(figsize=size, layout="constrained", facecolor="none")
        draw(figure, theme)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def thumbnail(image: NDArray[np.uint8]) -> bytes:
    """A PNG of an image (H, W, 3), reduced to `MAX_THUMBNAIL` pixels of width."""
    from PIL import Image

    picture = Image.fromarray(image)
    if picture.width > MAX_THUMBNAIL:
        height = max(1, round(picture.height * MAX_THUMBNAIL / picture.width))
        picture = picture.resize((MAX_THUMBNAIL, height), Image.Resampling.LANCZOS)
    return encoded(np.asarray(picture))
