"""What the frames, actions and times of an episode show that a decoder does not object to.

Frames are judged by sketches, their mean brightness in a grid of blocks: cheap enough for every frame, blind to
compression noise, and sensitive to an arm that moves in a corner. Letters: T steps, N sampled frames,
R = 12 rows and C = 16 columns of the grid, D numbers of a step.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pipelines.checks.duplicates import SAMPLES
from pipelines.checks.quality import BadDataError
from pipelines.names import CHECKS
from storage_schemas.conventions import DROID_ACTION, DROID_ROBOT
from storage_schemas.episode import EncodedFrames, Episode, Frames
from storage_schemas.spaces import Part, Space

COVERED = 0.9
"""Share of an episode's frames from which on a finding is about the episode as a whole."""

_LOOKS = {"black", "static", "idle", "duplicate"}
"""Checks that need frames."""
_DARK = 20.0
"""Brightest block, of 255, of a black frame."""
_STILL = 2.0
"""Largest change of a block, of 255, that compression explains."""
_SAME_ACTION = 1e-3
_IDLE_SECONDS = 2.0
_DARK_SECONDS = 0.5
_GAP_SECONDS, _GAP_FRAMES = 0.5, 5
_LEAST_STEPS = 2
_MARGIN = 0.05
_UNIT_VELOCITIES = (*DROID_ACTION.parts[:2], *DROID_ROBOT.parts[:2])
_FAR = 1e3
"""No normalised or metric action is as large as this."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is wrong with, or doubtful in, a source or a dataset."""

    reason: str
    """A short stable slug: one of `CHECKS`, or what kept the data out of a store."""
    detail: str
    """One line to read."""
    source_uri: str
    fatal: bool = False
    """The data can't be used at all; ingestion quarantines it, whatever its filters."""
    episode_id: str = ""
    camera: str = ""
    """Empty when all cameras are concerned, or none."""
    first: int | None = None
    """First step that is concerned."""
    last: int | None = None
    share: float = 1.0
    """Share of the episode's frames that are concerned."""
    picture: bytes = field(default=b"", repr=False)
    """A small JPEG of the place."""


Sketches = Mapping[str, NDArray[np.float32]]
"""Blocks (N, R, C) of an episode's cameras, see `pipelines.checks.duplicates`."""


@dataclass(frozen=True, kw_only=True)
class CheckedEpisode:
    """What the checks of one episode found."""

    findings: tuple[Finding, ...]
    sketches: Sketches
    """Of `samples`, to find duplicates by; empty when nothing moves in them, or no check needed a frame."""


def check_episode(
    episode: Episode,
    *,
    cameras: Collection[str] = (),
    space: Space | None = None,
    checks: Collection[str] = tuple(CHECKS),
) -> CheckedEpisode:
    """Check an episode by itself.

    Args:
        episode: with frames as pixels or JPEG bytes.
        cameras: those that a robot episode should have.
        space: what its actions mean, where that is declared.
        checks: some of `CHECKS`; without "idle" only a sample of the frames is decoded, unless it looks black or still.

    Raises:
        BadDataError: "corrupt", when a frame can't be decoded.
    """
    findings = list(_numbers(episode, cameras, space, checks))
    if "too_short" in checks and len(episode) < _LEAST_STEPS:
        findings.insert(0, _found(episode, "too_short", f"{len(episode)} step, which leads nowhere"))
    if not _LOOKS & set(checks):
        return CheckedEpisode(findings=tuple(findings), sketches={})
    every, sampled = np.arange(len(episode)), samples(len(episode))
    dense = "idle" in checks
    looks = {name: sketch(frames, every if dense else sampled) for name, frames in episode.frames.items()}
    sketches = {name: values[sampled] if dense else values for name, values in looks.items()}
    doubtful = any(_is_still(values) or _is_dark(values).any() for values in sketches.values())
    if doubtful and not dense:  # something may move, or light up, between the samples
        looks = {name: sketch(frames, every) for name, frames in episode.frames.items()}
    if "black" in checks and (doubtful or dense):
        findings += _black(episode, looks)
    still = {name for name, values in looks.items() if _is_still(values)} if len(episode) >= _LEAST_STEPS else set()
    if "static" in checks and still:
        findings += _static(episode, looks, still)
    if "idle" in checks and not ("static" in checks and still and still == set(looks)):
        findings += _idle(episode, looks)
    comparable = not all(map(_is_still, sketches.values()))
    return CheckedEpisode(findings=tuple(findings), sketches=sketches if comparable else {})


def check_times(times: NDArray[np.float64], source_uri: str) -> Iterator[Finding]:
    """Gaps between frames, by their times (T,) in seconds."""
    if len(times) < 3:
        return
    steps = np.diff(times)
    usual = float(np.median(steps))
    wide = np.flatnonzero(steps > max(_GAP_SECONDS, _GAP_FRAMES * usual))
    if len(wide):
        first = int(wide[0])
        more = f" and {len(wide) - 1} more" if len(wide) > 1 else ""
        detail = f"no frame for {steps[first]:.2f} s at {times[first]:.2f} s{more}; usual are {usual:.3f} s"
        yield Finding(reason="time_gap", detail=detail, source_uri=source_uri, first=first, last=first + 1)


def samples(length: int) -> NDArray[np.int64]:
    """Steps (N,), evenly from the first to the last; a short episode repeats some."""
    return np.linspace(0, length - 1, SAMPLES).round().astype(np.int64)


def _found(
    episode: Episode,
    reason: str,
    detail: str,
    steps: tuple[int, int] | None = None,
    *,
    camera: str = "",
    share: float = 1.0,
    fatal: bool = False,
) -> Finding:
    first, last = steps or (None, None)
    return Finding(
        reason=reason,
        detail=detail,
        source_uri=episode.meta.source_uri,
        episode_id=episode.meta.episode_id,
        camera=camera,
        first=first,
        last=last,
        share=share,
        fatal=fatal,
    )


def _numbers(
    episode: Episode, cameras: Collection[str], space: Space | None, checks: Collection[str]
) -> Iterator[Finding]:
    for name, values in {"action": episode.action, **episode.state}.items():
        bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
        if len(bad):
            detail = f"{name} is NaN or infinite at step {bad[0]} ({len(bad)} steps in all)"
            yield _found(episode, "non_finite", detail, (int(bad[0]), int(bad[-1])), fatal=True)
    known = np.flatnonzero(episode.action_mask)
    if "missing_camera" in checks and len(known):
        for name in sorted(set(cameras) - set(episode.frames)):
            yield _found(episode, "missing_camera", f"the episode has no {name}")
    if "out_of_range" in checks and len(known):
        low, high = _action_limits(episode.action.shape[1], space)
        action = episode.action[known]
        bad = known[((action < low) | (action > high)).any(axis=1)]
        if len(bad):
            worst = int(np.nanargmax(np.abs(episode.action[bad[0]])))
            detail = (
                f"action[{worst}] is {episode.action[bad[0], worst]:.4g} at step {bad[0]} ({len(bad)} steps in all)"
            )
            yield _found(episode, "out_of_range", detail, (int(bad[0]), int(bad[-1])))


def _action_limits(dim: int, space: Space | None) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Least and largest action, number by number, as far as the declared space has bounds."""
    low, high = np.full(dim, -_FAR), np.full(dim, _FAR)
    if space is None or space.dim != dim:
        return low, high
    for part in space.parts:
        if bounds := _part_limits(part):
            low[space.place(part.name)], high[space.place(part.name)] = bounds
    return low, high


def _part_limits(part: Part) -> tuple[float, float] | None:
    """DROID's velocities lie in [-1, 1], as rows of rotations and quaternions do; a gripper has its own range."""
    if part.open is not None and part.closed is not None and part.quantity == "gripper_position":
        margin = _MARGIN * abs(part.closed - part.open)
        return min(part.open, part.closed) - margin, max(part.open, part.closed) + margin
    if part.representation in ("6d", "quaternion_xyzw", "quaternion_wxyz") or part in _UNIT_VELOCITIES:
        return -1 - _MARGIN, 1 + _MARGIN
    return None


def _is_still(sketched: NDArray[np.float32]) -> bool:
    """Whether no block of (N, R, C) changes."""
    return float(np.ptp(sketched, axis=0).max()) < _STILL


def _is_dark(sketched: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which of (N, R, C) show no light, (N,)."""
    return np.asarray(sketched.max(axis=(1, 2)) < _DARK)


def _black(episode: Episode, sketches: Sketches) -> Iterator[Finding]:
    steps = len(episode)
    least = min(steps, round(_DARK_SECONDS * episode.meta.fps) or 1)
    for camera, values in sketches.items():
        runs = [(a, b) for a, b in _runs(_is_dark(values)) if b - a + 1 >= least]
        if runs:
            share = sum(b - a + 1 for a, b in runs) / steps
            detail = f"{camera} shows nothing in {share:.0%} of its frames"
            span = (runs[0][0], runs[-1][1])
            yield _found(episode, "black", detail, span, camera=camera, share=share / len(sketches))


def _static(episode: Episode, sketches: Sketches, still: set[str]) -> Iterator[Finding]:
    last, share = len(episode) - 1, len(still) / len(sketches)
    if share == 1:
        yield _found(episode, "static", "nothing moves in any frame", (0, last))
    else:
        for name in sorted(still):
            yield _found(episode, "static", f"nothing moves before {name}", (0, last), camera=name, share=share)


def _idle(episode: Episode, sketches: Sketches) -> Iterator[Finding]:
    """Stretches in which no camera sees a change, or the known action stays the same."""
    steps, least = len(episode), max(2, round(_IDLE_SECONDS * episode.meta.fps))
    idle = np.zeros(steps, np.bool_)
    if sketches:
        looks = np.concatenate([values.reshape(steps, -1) for values in sketches.values()], axis=1)
        idle |= _unchanged(looks, _STILL, least)
    if episode.action_mask.all():
        idle |= _unchanged(episode.action, _SAME_ACTION, least)
    runs = list(_runs(idle))
    if runs:
        first, last = max(runs, key=lambda run: run[1] - run[0])
        share = float(idle.mean())
        detail = f"nothing happens for {(last - first + 1) / episode.meta.fps:.1f} s; {share:.0%} of the steps in all"
        yield _found(episode, "idle", detail, (first, last), share=share)


def _unchanged(values: NDArray[np.float32], tolerance: float, least: int) -> NDArray[np.bool_]:
    """Which steps (T,) of `values` (T, D) lie in a stretch of at least `least` that stays near its first step."""
    marked = np.zeros(len(values), np.bool_)
    start = 0
    while start + least <= len(values):
        moved = np.flatnonzero(np.abs(values[start:] - values[start]).max(axis=1) >= tolerance)
        end = start + int(moved[0]) if len(moved) else len(values)
        if end - start >= least:
            marked[start:end] = True
            start = end
        else:
            start += 1
    return marked


def _runs(flags: NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """First and last index of every run of true flags."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8)))
    for first, end in edges.reshape(-1, 2).tolist():
        yield first, end - 1


_ROWS, _COLUMNS = 12, 16


def sketch(frames: Frames, steps: Sequence[int] | NDArray[np.int64]) -> NDArray[np.float32]:
    """Mean brightness in a grid of blocks, (N, R, C), of some steps of a camera.

    Raises:
        BadDataError: "corrupt", when a frame can't be decoded.
    """
    known: dict[int, NDArray[np.float32]] = {}
    for step in steps:
        if int(step) not in known:
            known[int(step)] = _blocks(_gray(frames, int(step)))
    return np.stack([known[int(step)] for step in steps])


def _gray(frames: Frames, step: int) -> NDArray[np.uint8]:
    """One frame in gray, (H, W), in no more detail than its sketch needs."""
    if not isinstance(frames, EncodedFrames):
        return frames[step, ..., 1] if frames.shape[1] < 2 * _ROWS else _luma(frames[step, ::2, ::2])
    import simplejpeg

    try:
        decoded: NDArray[np.uint8] = simplejpeg.decode_jpeg(
            frames.jpegs[step], "GRAY", fastdct=True, min_height=2 * _ROWS, min_width=2 * _COLUMNS
        )
    except ValueError as error:
        raise BadDataError("corrupt", f"frame {step} can't be decoded: {error}") from error
    return decoded[..., 0]


def _luma(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return (pixels.astype(np.uint16) @ np.array([77, 151, 28], np.uint16) >> 8).astype(np.uint8)


def _blocks(gray: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(H, W) -> (R, C); a tiny image is enlarged first."""
    height, width = gray.shape
    if height < _ROWS or width < _COLUMNS:
        gray = gray[np.arange(_ROWS) * height // _ROWS] if height < _ROWS else gray
        gray = gray[:, np.arange(_COLUMNS) * width // _COLUMNS] if width < _COLUMNS else gray
        height, width = gray.shape
    rows, columns = np.arange(_ROWS + 1) * height // _ROWS, np.arange(_COLUMNS + 1) * width // _COLUMNS
    sums = np.add.reduceat(np.add.reduceat(gray, rows[:-1], axis=0, dtype=np.float32), columns[:-1], axis=1)
    return np.asarray(sums / (np.diff(rows)[:, None] * np.diff(columns)), np.float32)


def picture(frames: Frames, step: int, width: int = 160) -> bytes:
    """A small JPEG of one frame; empty when it can't be decoded."""
    import io

    from PIL import Image, UnidentifiedImageError

    encoded = isinstance(frames, EncodedFrames)
    try:
        image = Image.open(io.BytesIO(frames.jpegs[step])) if encoded else Image.fromarray(frames[step])  # type: ignore[union-attr, index]
        image.thumbnail((width, width))
        out = io.BytesIO()
        image.convert("RGB").save(out, "JPEG", quality=80)
    except (UnidentifiedImageError, OSError, ValueError):
        return b""
    return out.getvalue()
