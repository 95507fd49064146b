"""Pictures that say what they are: frame numbers, corners and a disc that survive compression and scaling."""

from typing import Any

import numpy as np

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
CELLS = 4
COLOURS = {"R": (220, 30, 30), "G": (30, 200, 30), "B": (30, 30, 220), "W": (230, 230, 230)}


def number_of(frame: Pixels) -> int:
    """The number in the 4 x 4 bright and dark cells of a frame: bit b in row b // 4, column b % 4."""
    height, width = frame.shape[:2]
    gray = frame.astype(np.float32).mean(axis=-1)
    number = 0
    for bit in range(CELLS * CELLS):
        row, column = divmod(bit, CELLS)
        rows = slice(round((row + 0.3) * height / CELLS), max(1, round((row + 0.7) * height / CELLS)))
        columns = slice(round((column + 0.3) * width / CELLS), max(1, round((column + 0.7) * width / CELLS)))
        number |= int(gray[rows, columns].mean() > 127) << bit
    return number


def paint_number(number: int, height: int, width: int) -> Pixels:
    """A frame that `number_of` reads."""
    rows, columns = np.arange(height) * CELLS // height, np.arange(width) * CELLS // width
    bits = number >> (rows[:, None] * CELLS + columns[None]) & 1
    return np.repeat(np.where(bits, 235, 20).astype(np.uint8)[..., None], 3, axis=2)


def corners_of(frame: Pixels) -> str:
    """The colours of top left, top right, bottom left and bottom right, as letters of R, G, B and W."""
    height, width = frame.shape[:2]
    high, wide = max(1, height // 8), max(1, width // 8)
    patches = (
        frame[: high, : wide], frame[: high, -wide:],
        frame[-high:, : wide], frame[-high:, -wide:],
    )  # fmt: skip
    means = [patch.reshape(-1, 3).mean(axis=0) for patch in patches]
    return "".join(min(COLOURS, key=lambda letter: float(np.abs(mean - COLOURS[letter]).sum())) for mean in means)


def disc_is_round(frame: Pixels) -> bool:
    """Whether the red disc is as wide as it is high."""
    red, green, blue = np.moveaxis(frame.astype(np.int16), -1, 0)
    rows, columns = np.nonzero((red > 120) & (green < 100) & (blue < 100))
    height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
    return bool(abs(height - width) <= 0.1 * max(height, width) + 1)
