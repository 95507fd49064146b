"""What all configurations are made of: immutable, checked on construction, JSON in and out."""

from typing import Annotated, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PositiveInt


def _as_number(version: object) -> object:
    return int(version) if isinstance(version, str) and version.isdecimal() else version


DatasetVersion = Annotated[Annotated[int, Field(ge=0)] | str | None, BeforeValidator(_as_number)]
"""A dataset version: its number, a tag, or None for the newest."""

Size = tuple[PositiveInt, PositiveInt]
"""Height, width."""
Beta = Annotated[float, Field(ge=0, lt=1)]
Seed = Annotated[int, Field(ge=0, lt=1 << 63)]
"""What torch and numpy both take."""
RunName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]

C = TypeVar("C", bound="Config")
T = TypeVar("T")

MAY_CHANGE = "may change on resume"
Changeable = Annotated[T, MAY_CHANGE]
"""A setting that may differ between the parts of a resumed run: it changes no number of the run, or what it stands for
is compared instead (see `uwm.train.resume`)."""


class Config(BaseModel):
    """Base of all configurations: immutable, and an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Settings(Config):
    """Base of what a run is told: no number is infinite or no number at all."""

    model_config = ConfigDict(allow_inf_nan=False)


def replace(config: C, **changes: object) -> C:
    """A checked copy of `config` with some fields changed."""
    return type(config).model_validate(config.model_dump() | changes)
