"""What the user says of a source and of its conversion."""

from dataclasses import dataclass

from pipelines.video.decode import Backend
from storage_schemas.schema import DatasetSpec


@dataclass(frozen=True, kw_only=True)
class VideoOptions:
    """How videos become episodes.

    Raises:
        ValueError: when a value makes no sense.
    """

    fps: float = 15.0
    """Most steps per second; slower videos keep their rate."""
    short_side: int = 180
    """Most pixels of the shorter side; smaller videos keep their size."""
    clip_steps: int = 150
    """Most steps of an episode; longer videos are cut into consecutive clips."""
    min_steps: int = 5
    """A clip below this is dropped, and a file without any other is too short: a third of a second at 15 fps."""
    backend: Backend = "pyav"

    def __post_init__(self) -> None:
        if not (self.fps > 0 and self.short_side > 0 and 0 < self.min_steps <= self.clip_steps):
            raise ValueError(f"video options out of range: {self}")


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """What the user says about a source beyond where it is; each format takes what concerns it."""

    collection: str | None = None
    """Name for all episodes, instead of the one found in the source."""
    camera: str | None = None
    """For video: which of the dataset's cameras it stands in for."""
    dataset: DatasetSpec | None = None
    """The dataset that exists already."""
    video: VideoOptions | None = None
