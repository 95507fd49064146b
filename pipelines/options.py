"""What the user says of a source and of its conversion, whoever asks: command, flow, form or site file."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Backend = Literal["pyav", "decord"]
"""Decoder of videos."""


class IngestOptions(BaseModel):
    """How a source becomes episodes of a dataset; each format takes what concerns it."""

    model_config = ConfigDict(frozen=True, extra="forbid", field_title_generator=lambda name, _: name)

    format: str | None = Field(None, description="droid-rlds, video, ...; found out from the source by default.")
    collection: str | None = Field(None, description="name of the collection; by default the lab or folder.")
    camera: str | None = Field(None, description="camera that video frames count as; the dataset's first by default.")
    fps: float = Field(15.0, gt=0, allow_inf_nan=False, description="most steps per second of video.")
    clip_steps: int = Field(150, ge=5, description="most steps of an episode cut from a video.")
    backend: Backend = Field("pyav", description="decoder of videos: pyav or decord.")
    val_percent: int | None = Field(
        None, ge=0, le=100, description="per cent of episodes held out, fixed for a new dataset; 10 by default."
    )
    reject: tuple[str, ...] | None = Field(
        None,
        description="what to keep out, by the doctor's names: black, static, idle, duplicate, copy, missing_camera, "
        "out_of_range, time_gap, too_short; none for no filter. Video: black, static, copy by default.",
    )
    batch_episodes: int = Field(
        64, ge=1, description="episodes or video files per task run, which is one commit; up to 256 for many."
    )


INGEST_DEFAULTS = IngestOptions()
