"""Valid videos by construction: what comes out are the frames that were on screen, upright and at their rate."""

import re
import tempfile
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from painted import Pixels, number_of
from video_maker import UNTIMED, Recipe, recipes, write

from pipelines.checks.quality import BadDataError, Rejection
from pipelines.options import Backend, IngestOptions
from pipelines.sources.registry import open_source
from pipelines.sources.video import MIN_STEPS, SHORT_SIDE
from storage_schemas.episode import EncodedFrames

FPS = 15.0


def decoded(path: Path, backend: Backend = "pyav") -> tuple[float, list[Pixels]]:
    """Rate and frames of the only clip. Raises BadDataError."""
    reader = open_source(str(path), IngestOptions(format="video", clip_steps=10_000, backend=backend))
    (ref,) = reader.refs()
    assert not isinstance(ref, Rejection)
    (episode,) = reader.read(ref)
    (frames,) = episode.frames.values()
    assert not isinstance(frames, EncodedFrames)
    return episode.meta.fps, list(frames)


def check(recipe: Recipe, backend: Backend = "pyav") -> None:
    times = recipe.seconds
    native = float(recipe.rate)
    if recipe.format in UNTIMED:  # every frame is a step
        native, times = FPS, [index / FPS for index in range(len(times))]
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder) / "video", recipe)
        try:
            rate, frames = decoded(path, backend)
        except BadDataError as error:
            if backend == "decord" and error.reason in ("unsupported_by_decord", "decoder_crashed"):
                return
            assert error.reason == "too_short", error
            steps, rate = (float(word) for word in re.findall(r"[\d.e-]+(?= steps| fps)", error.detail))
            assert steps < MIN_STEPS
            assert abs(steps - 1 - times[-1] * rate) <= 1
            assert len(times) < 2 * MIN_STEPS
            return
    if recipe.times is None:
        short = len(times) * FPS < MIN_STEPS * native
        assert rate == pytest.approx(native if short else min(FPS, native), rel=0.01)
    height, width = recipe.size
    scale = min(1.0, SHORT_SIDE / min(recipe.size))
    assert {frame.shape[:2] for frame in frames} == {(round(height * scale), round(width * scale))}
    check_ticks([number_of(frame) - 1 for frame in frames], times, rate, native)


def check_ticks(indices: list[int], times: list[float], rate: float, native: float) -> None:
    """At each tick the frame that is on screen, but for what containers round."""
    slack = min(0.41 / native, 0.1 / native + 0.012)
    assert 0 <= min(indices) <= max(indices) < len(times)
    assert all(a <= b for a, b in pairwise(indices))
    for tick, index in enumerate(indices):
        assert times[index] <= tick / rate + slack + 1e-6
        assert index + 1 == len(times) or times[index + 1] >= tick / rate - slack - 1e-6
    assert abs(len(indices) - (int(times[-1] * rate + 1e-6) + 1)) <= 1


@settings(max_examples=40, deadline=None, derandomize=True)
@given(recipes())
def test_a_sample(recipe: Recipe) -> None:
    check(recipe)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(recipes())
def test_decord_is_right_or_refuses(recipe: Recipe) -> None:
    check(recipe, "decord")


@pytest.mark.slow
@settings(max_examples=200, deadline=None, derandomize=True)
@given(recipes())
def test_decord_on_many(recipe: Recipe) -> None:
    check(recipe, "decord")


@pytest.mark.slow
@settings(max_examples=500, deadline=None, derandomize=True)
@given(recipes())
def test_many(recipe: Recipe) -> None:
    check(recipe)
