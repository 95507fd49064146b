"""What the checks see, and what they must not see."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import simplejpeg

from pipelines.checks.content import COVERED, Finding, check_episode, check_times, picture, samples
from pipelines.checks.duplicates import Seen
from pipelines.checks.quality import BadDataError
from pipelines.names import CHECKS
from storage_schemas.conventions import DROID_ACTION
from storage_schemas.episode import EncodedFrames, Episode, EpisodeMeta

CAMERAS = ("left", "wrist")


def moving(steps: int, seed: int = 0, size: tuple[int, int] = (48, 64)) -> np.ndarray:
    """A scene (steps, H, W, 3), always the same, in which a bright square moves along."""
    rng = np.random.default_rng(7)
    coarse = rng.integers(40, 160, (size[0] // 6 + 1, size[1] // 6 + 1, 3)).astype(np.uint8)
    scene = coarse.repeat(6, axis=0).repeat(6, axis=1)[: size[0], : size[1]]
    frames = np.repeat(scene[None], steps, axis=0)
    path = np.random.default_rng(seed)
    y, x = path.uniform(0, size[0] - 12), path.uniform(0, size[1] - 12)
    for frame in frames:
        y = float(np.clip(y + path.uniform(-8, 8), 0, size[0] - 12))
        x = float(np.clip(x + path.uniform(-8, 8), 0, size[1] - 12))
        frame[int(y) : int(y) + 12, int(x) : int(x) + 12] = 250
    return frames


def episode(frames: dict[str, Any], known: bool = False, action: np.ndarray | None = None, name: str = "a") -> Episode:
    steps = len(next(iter(frames.values())))
    rng = np.random.default_rng(3)
    made = rng.uniform(-0.9, 0.9, (steps, 3)).astype(np.float32) if action is None else action
    return Episode(
        meta=EpisodeMeta(
            episode_id=name, source_uri=f"memory://{name}", source_format="test", source_fingerprint=name,
            collection="lab", fps=15.0,
        ),
        action=made if known else np.zeros_like(made),
        action_mask=np.full(steps, known),
        frames=frames,
    )  # fmt: skip


def encoded(frames: np.ndarray, quality: int = 90) -> EncodedFrames:
    jpegs = tuple(simplejpeg.encode_jpeg(np.ascontiguousarray(frame), quality=quality) for frame in frames)
    return EncodedFrames(height=frames.shape[1], width=frames.shape[2], jpegs=jpegs)


def reasons(made: Episode, **options: Any) -> dict[str, Finding]:
    return {finding.reason: finding for finding in check_episode(made, **options).findings}


def like(seen: Seen, made: Episode) -> str | None:
    """The name of an earlier episode that looks like this one, which has no other findings."""
    checked = check_episode(made)
    assert not checked.findings
    return seen.add(made.meta.source_uri, checked.sketches)


@pytest.mark.parametrize("steps", [2, 5, 60])
@pytest.mark.parametrize("pack", [np.asarray, encoded], ids=["pixels", "jpeg"])
def test_a_good_episode_has_no_findings(steps: int, pack: Callable[..., Any]) -> None:
    made = episode({name: pack(moving(steps, seed)) for seed, name in enumerate(CAMERAS)}, known=True)
    assert not reasons(made, cameras=CAMERAS)


@pytest.mark.parametrize("pack", [np.asarray, encoded], ids=["pixels", "jpeg"])
def test_black(pack: Callable[..., Any]) -> None:
    dark = np.random.default_rng(0).integers(0, 8, (30, 48, 64, 3)).astype(np.uint8)
    found = reasons(episode({"left": pack(dark)}))
    assert found["black"].share == 1
    one = reasons(episode({"left": pack(dark), "wrist": pack(moving(30))}))["black"]
    assert (one.camera, one.share, one.first, one.last) == ("left", 0.5, 0, 29)
    part = moving(40)
    part[10:20] = 0
    found = reasons(episode({"left": pack(part)}))
    assert (found["black"].first, found["black"].last, found["black"].share) == (10, 19, 0.25)


def test_a_short_flash_of_black_is_no_finding() -> None:
    frames = moving(60)
    frames[10:13] = 0
    assert not reasons(episode({"left": frames}))


def test_a_small_light_is_not_black() -> None:
    dark = np.zeros((30, 48, 64, 3), np.uint8)
    for step, frame in enumerate(dark):
        frame[20:28, step : step + 8] = 255
    assert not reasons(episode({"left": dark}))


@pytest.mark.parametrize("quality", [60, 90])
def test_static(quality: int) -> None:
    rng = np.random.default_rng(0)
    scene = np.repeat(moving(1, size=(180, 320)), 30, axis=0)
    noisy = np.clip(scene + rng.normal(0, 2, scene.shape), 0, 255).astype(np.uint8)
    still = encoded(noisy, quality)
    found = reasons(episode({"left": still}))
    assert set(found) == {"static"}
    assert found["static"].share == 1
    one = reasons(episode({"left": still, "wrist": moving(30)}))["static"]
    assert (one.camera, one.share) == ("left", 0.5)


def test_idle_by_frames_and_by_action() -> None:
    frames = moving(90)
    frames[20:60] = frames[20]
    found = reasons(episode({"left": frames}))
    assert (found["idle"].first, found["idle"].last) == (20, 59)
    assert found["idle"].share == pytest.approx(40 / 90)
    action = np.random.default_rng(0).uniform(-1, 1, (90, 3)).astype(np.float32)
    action[30:70] = action[30]
    found = reasons(episode({"left": moving(90)}, known=True, action=action))
    assert (found["idle"].first, found["idle"].last) == (30, 69)
    frames[20:60] = moving(40, seed=9)
    assert not reasons(episode({"left": frames}))


def test_missing_cameras_concern_robots_only() -> None:
    made = episode({"left": moving(9)}, known=True)
    assert reasons(made, cameras=CAMERAS)["missing_camera"].detail == "the episode has no wrist"
    assert not reasons(episode({"left": moving(9)}), cameras=CAMERAS)


def test_actions_out_of_range_and_not_finite() -> None:
    action = np.random.default_rng(0).uniform(0, 0.9, (9, 10)).astype(np.float32)
    action[3, 2], action[5, 9] = -1.5, 1.2
    made = episode({"left": moving(9)}, known=True, action=action)
    found = reasons(made, space=DROID_ACTION)
    assert not reasons(made), "ten numbers that nobody has said the meaning of"
    assert (found["out_of_range"].first, found["out_of_range"].last) == (3, 5)
    assert not found["out_of_range"].fatal
    assert not reasons(episode({"left": moving(9)}, known=False, action=action), space=DROID_ACTION)
    action[4, 0] = np.nan
    assert reasons(episode({"left": moving(9)}, known=True, action=action))["non_finite"].fatal
    other = np.full((9, 3), 50, np.float32) + np.arange(9, dtype=np.float32)[:, None]
    assert not reasons(episode({"left": moving(9)}, known=True, action=other))
    other[2, 1] = 1e9
    assert set(reasons(episode({"left": moving(9)}, known=True, action=other))) == {"out_of_range"}


def test_duplicates_in_another_coding() -> None:
    seen = Seen()
    first = moving(60, size=(180, 240))
    assert like(seen, episode({"left": first}, name="first")) is None
    smaller = encoded(first[:, ::2, ::2], quality=70)
    assert like(seen, episode({"left": smaller}, name="second")) == "memory://first"
    for seed in range(1, 8):  # the same scene, another movement
        assert like(seen, episode({"left": moving(60, seed, (180, 240))}, name=str(seed))) is None
    assert like(seen, episode({"wrist": first})) is None
    assert like(seen, episode({"left": first})) == "memory://first"


@pytest.mark.parametrize("pack", [np.asarray, encoded], ids=["pixels", "jpeg"])
@pytest.mark.parametrize("shade", [0, 120])
def test_what_happens_between_the_samples_counts(shade: int, pack: Callable[..., Any]) -> None:
    frames = np.full((60, 48, 64, 3), shade, np.uint8)
    assert reasons(episode({"left": pack(frames)}), checks=("black", "static"))
    burst = moving(10)
    frames[20:28] = burst[:8] if shade else 200
    keeps = set(range(20, 28)) - set(samples(60).tolist())
    frames[[step for step in range(20, 28) if step not in keeps]] = shade
    checked = check_episode(episode({"left": pack(frames)}), checks=("black", "static"))
    assert {finding.reason for finding in checked.findings if finding.share >= COVERED} <= set()
    assert not checked.sketches  # samples in which nothing moves tell no two episodes apart


def test_many_episodes_are_kept_apart() -> None:
    seen = Seen()
    rng = np.random.default_rng(0)
    sketches = rng.uniform(0, 255, (200, 8, 12, 16)).astype(np.float32)
    assert [seen.add(str(i), {"left": values}) for i, values in enumerate(sketches)] == [None] * 200
    assert seen.add("again", {"left": sketches[137] + 1}) == "137"


def test_only_what_is_wanted_is_looked_for() -> None:
    made = episode({"left": np.zeros((40, 48, 64, 3), np.uint8)})
    assert set(reasons(made)) == {"black", "static"}
    for name in CHECKS:
        assert set(reasons(made, checks=(name,))) <= {name}
    assert set(reasons(made, checks=("idle",))) == {"idle"}


@pytest.mark.parametrize("size", [(1, 1), (2, 200), (11, 15), (13, 17), (16, 16)])
def test_any_size(size: tuple[int, int]) -> None:
    frames = np.random.default_rng(0).integers(0, 255, (6, *size, 3)).astype(np.uint8)
    assert not reasons(episode({"left": frames}))
    assert not reasons(episode({"left": encoded(frames, 100)}))


def test_a_frame_that_is_no_image() -> None:
    frames = encoded(moving(9))
    broken = replace(frames, jpegs=(*frames.jpegs[:4], frames.jpegs[4][:40], *frames.jpegs[5:]))
    with pytest.raises(BadDataError, match="frame 4"):
        check_episode(episode({"left": broken}))
    assert picture(broken, 4) == b""


def test_one_step() -> None:
    assert set(reasons(episode({"left": moving(1)}))) == {"too_short"}


def test_gaps_in_time() -> None:
    steady = np.arange(60) / 15
    assert not list(check_times(steady, "x"))
    assert not list(check_times(steady[:2], "x"))
    assert not list(check_times(np.cumsum(np.random.default_rng(0).uniform(0.02, 0.1, 90)), "x"))
    (gap,) = check_times(np.concatenate([steady, steady + 7]), "x")
    assert (gap.reason, gap.first, gap.last) == ("time_gap", 59, 60)
    assert "3.07 s" in gap.detail
