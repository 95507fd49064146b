"""Episodes and the pieces of them that training reads.

Dimension letters: T steps of an episode, V canonical cameras (views) of a dataset, F frames of a
segment, S steps of an action chunk, A action dimensions, D dimensions of a state field, H and W the
height and width of an image in pixels. Images are RGB, uint8, channels last, upright.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class EncodedFrames:
    """The frames of one camera, still in the JPEG bytes of their source."""

    height: int
    width: int
    jpegs: tuple[bytes, ...]

    def __len__(self) -> int:
        return len(self.jpegs)


StateType = Literal["float32", "float64", "int64"]
STATE_TYPES: tuple[str, ...] = get_args(StateType)
"""What the numbers of a state field may be; a simulator's states need float64 to be replayed."""

Frames = EncodedFrames | NDArray[np.uint8]
"""One camera's frames: JPEG bytes that pass through untouched, or pixels (T, H, W, 3)."""


def frame_size(frames: Frames) -> tuple[int, int]:
    """Height and width of the frames, in pixels."""
    if isinstance(frames, EncodedFrames):
        return frames.height, frames.width
    return int(frames.shape[1]), int(frames.shape[2])


@dataclass(frozen=True, kw_only=True)
class EpisodeMeta:
    """Where an episode came from and what is known of it."""

    episode_id: str
    """Stable hash of the source's identity: the same episode has the same id wherever it is copied."""
    source_uri: str
    """The raw file, with the place inside it as a fragment: `file.tfrecord#record=3`."""
    source_format: str
    source_fingerprint: str
    """Hash of the raw content: another fingerprint under the same id is a changed source."""
    collection: str
    """The lab, task or folder that the episode belongs to."""
    fps: float
    language: tuple[str, ...] = ()
    success: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Episode:
    """One episode in memory. Masks are always present; what is unknown is zero and masked.

    Raises:
        ValueError: when lengths or shapes disagree.
    """

    meta: EpisodeMeta
    action: NDArray[np.float32]  # (T, A)
    action_mask: NDArray[np.bool_]  # (T,)
    frames: Mapping[str, Frames]  # camera name -> T frames; a camera that is absent is a missing view
    state: Mapping[str, NDArray[Any]] = field(default_factory=dict)  # name -> (T, D), of `STATE_TYPES`

    def __post_init__(self) -> None:
        length = len(self.action)
        if length == 0:
            raise ValueError("an episode has at least one step")
        if self.action.ndim != 2 or self.action.dtype != np.float32:
            raise ValueError(f"action must be float32 (T, A), not {self.action.dtype} {self.action.shape}")
        if self.action_mask.shape != (length,) or self.action_mask.dtype != np.bool_:
            raise ValueError(
                f"action_mask must be bool ({length},), not {self.action_mask.dtype} {self.action_mask.shape}"
            )
        for name, frames in self.frames.items():
            if len(frames) != length:
                raise ValueError(f"camera {name!r} has {len(frames)} frames for {length} steps")
        for name, values in self.state.items():
            if values.ndim != 2 or len(values) != length or values.dtype.name not in STATE_TYPES:
                raise ValueError(
                    f"state {name!r} must be {' or '.join(STATE_TYPES)} ({length}, D), "
                    f"not {values.dtype} {values.shape}"
                )

    def __len__(self) -> int:
        return len(self.action)


class SegmentId(NamedTuple):
    """Which piece of a dataset version: the episode's row in that version and the current step."""

    episode: int
    step: int


@dataclass(frozen=True, kw_only=True)
class SegmentSpec:
    """Which steps around the current step t a model reads, and from which cameras.

    Observation frames are t-obs_frames+1 .. t, the action chunk t .. t+action_horizon-1, and the
    next-observation frames start at t+next_start; all counted in strides of so many steps. With the
    defaults the last next frame, t+16, is the one that the last action of the chunk, t+15, leads to.
    """

    cameras: tuple[str, ...]
    obs_frames: int = 2
    action_horizon: int = 16
    next_frames: int = 2
    next_start: int = 15
    stride: int = 1

    @property
    def last(self) -> int:
        """Offset from t of the last step that a fully known segment needs."""
        return max(self.action_horizon * self.stride - 1, (self.next_start + self.next_frames - 1) * self.stride)

    def frame_steps(self, step: int, length: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Steps of the F = obs_frames + next_frames frames, kept inside the episode, and which are real.

        Before the first step the first frame repeats, which is what a robot sees when it starts, so
        it counts as known. Beyond the last step the last frame repeats and is masked.
        """
        obs = np.arange(1 - self.obs_frames, 1)
        following = np.arange(self.next_start, self.next_start + self.next_frames)
        steps = step + self.stride * np.concatenate([obs, following])
        return np.minimum(np.maximum(steps, 0), length - 1), steps < length  # np.clip takes three times as long
