"""What an evaluation can be told, whoever asks: command, flow or form. Imports no torch."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from uwm.settings import DatasetVersion


class SegmentOptions(BaseModel):
    """On which segments a checkpoint is asked, and how it samples."""

    model_config = ConfigDict(frozen=True, extra="forbid", field_title_generator=lambda name, _: name)

    version: DatasetVersion = Field(None, description="dataset version, its number or a tag; the newest by default.")
    split: Literal["train", "val"] = Field("val", description="train, or val for the held-out episodes.")
    collections: tuple[str, ...] = Field((), description="only these collections; all by default.")
    samples: int = Field(64, ge=1, description="segments to predict.")
    seed: int = Field(0, ge=0, lt=1 << 63, description="of the samples and of the noise.")
    steps: int | None = Field(None, ge=1, description="of sampling, instead of the checkpoint's own number.")
    device: str = Field("auto", description="auto takes CUDA when there is one.")


class EvalOptions(SegmentOptions):
    """What a checkpoint is measured on, and in which units."""

    normalizer: str | None = Field(
        None,
        description="checkpoint in whose normalized units action errors are told, so that they can be compared with "
        "its own; the evaluated one's by default.",
    )


EVAL_DEFAULTS = EvalOptions()


class SampleOptions(SegmentOptions):
    """What is predicted to be looked at."""

    samples: int = Field(4, ge=1, description="segments to predict.")


SAMPLE_DEFAULTS = SampleOptions()
