"""What the user says of a source and of its conversion, whoever asks: command, flow, form or site file."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

from pipelines.names import FILTERS, FORMATS, MAPPINGS, NO_FILTER, check_name

Backend = Literal["pyav", "decord"]
"""Decoder of videos."""


Format = Annotated[
    str,
    AfterValidator(lambda name: check_name("format", name, FORMATS)),
    Field(json_schema_extra={"enum": list(FORMATS)}),
]
FilterName = Annotated[
    str,
    AfterValidator(lambda name: check_name("filter", name.strip(), (*FILTERS, NO_FILTER))),
    Field(json_schema_extra={"enum": [*FILTERS, NO_FILTER]}),
]


class IngestOptions(BaseModel):
    """How a source becomes episodes of a dataset; each format takes what concerns it."""

    model_config = ConfigDict(frozen=True, extra="forbid", field_title_generator=lambda name, _: name)

    format: Format | None = Field(None, description=f"{', '.join(FORMATS)}; found out from the source by default.")
    mapping: str | None = Field(
        None, description=f"what the fields of RLDS mean: {', '.join(MAPPINGS)}, or a TOML file; droid by default."
    )
    collection: str | None = Field(None, description="name of the collection; by default the lab or folder.")
    camera: str | None = Field(None, description="camera that video frames count as; the dataset's first by default.")
    fps: float = Field(15.0, gt=0, allow_inf_nan=False, description="most steps per second of video.")
    rate: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="steps per second of robot data that does not say it."
    )
    clip_steps: int = Field(150, ge=5, description="most steps of an episode cut from a video.")
    scene_cuts: bool = Field(False, description="whether a video is cut where its scenes change, too.")
    backend: Backend = Field("pyav", description="decoder of videos: pyav or decord.")
    val_percent: int | None = Field(
        None, ge=0, le=100, description="per cent of episodes held out, fixed for a new dataset; 10 by default."
    )
    reject: tuple[FilterName, ...] | None = Field(
        None,
        description=f"what to keep out, by the doctor's names: {', '.join(FILTERS)}; {NO_FILTER} for no filter. "
        "Video: black, static, copy by default.",
    )
    batch_episodes: int = Field(
        64, ge=1, description="episodes or video files per task run, which is one commit; up to 256 for many."
    )

    @field_validator("mapping")
    @classmethod
    def _path_is_absolute(cls, name: str | None) -> str | None:
        """Workers run elsewhere."""
        return name if name in (None, *MAPPINGS) or "://" in name else str(Path(name).expanduser().absolute())

    @field_validator("reject")
    @classmethod
    def _none_is_no_name(cls, names: tuple[str, ...] | None) -> tuple[str, ...] | None:
        return names and tuple(name for name in names if name != NO_FILTER)


INGEST_DEFAULTS = IngestOptions()
