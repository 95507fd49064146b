"""What a policy may be conditioned on beside images: fields of the robot's state, and an instruction.

Read without torch. Letters: D numbers of all states together, E features of an instruction.
"""

import json
from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from storage_schemas.spaces import Space, undeclared
from uwm.settings import Changeable, Settings

CLIP = "openai/clip-vit-base-patch32"
"""The published encoder's name on the Hugging Face hub."""


def _read_space(value: object) -> object:
    """A space out of JSON, whose lists stand for tuples."""
    return Space.model_validate_json(json.dumps(value)) if isinstance(value, Mapping) else value


class RunState(Settings):
    """One field of the robot's state that a run observes.

    Raises:
        ValueError: when its dimensions are asked for before they are known.
    """

    name: str = Field(min_length=1, description="of the field, as the datasets have it")
    space: Annotated[Space | None, BeforeValidator(_read_space)] = Field(
        None, description="what its numbers mean; None takes it from the first dataset with the field when a run starts"
    )

    @property
    def dim(self) -> int:
        """Its numbers."""
        if self.space is None:
            raise ValueError(f"nobody has said yet how many numbers the state {self.name} has")
        return self.space.dim


def _read_state(value: object) -> object:
    """A state as the command line writes it: `name`, or `name:7` with its numbers."""
    if not isinstance(value, str):
        return value
    name, _, dim = value.rpartition(":")
    if name and dim.isdecimal() and 0 < int(dim) <= 4096:
        return RunState(name=name, space=undeclared(name, int(dim)))
    return RunState(name=value)


AnyState = Annotated[RunState, BeforeValidator(_read_state)]


class LanguageConfig(Settings):
    """How a run hears instructions; features of each distinct one are computed once and kept beside the dataset."""

    kind: Literal["none", "clip", "minilm"] = Field(
        "none", description="text encoder: none, CLIP's (published), or all-MiniLM-L6-v2 from its package, offline"
    )
    path: Changeable[str] = Field("", description=f"clip: hub id or folder of the model; empty is {CLIP}")
    identity: str | None = Field(None, description="of the encoder's weights and vocabulary; filled in")
    features: int | None = Field(None, gt=0, description="E, features of an instruction; filled in")
    dropout: float = Field(0.0, ge=0, lt=1, description="share of training samples that lose their instruction")

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if self.kind != "clip" and self.path:
            raise ValueError(f"language.path names CLIP's weights: language.kind is {self.kind}")
        if self.kind == "none" and (self.dropout or self.identity or self.features):
            raise ValueError("language.dropout and what follows from an encoder need a language.kind: clip or minilm")
        return self

    @property
    def is_heard(self) -> bool:
        """Whether there are instructions at all."""
        return self.kind != "none"

    @property
    def source(self) -> str:
        """Hub id or folder of CLIP, for people and for loading."""
        return self.path or CLIP if self.kind == "clip" else self.kind

    @property
    def width(self) -> int:
        """E. Raises ValueError when the encoder has not been asked yet."""
        if not self.is_heard:
            return 0
        if self.features is None:
            raise ValueError("nobody has said yet how many features an instruction has")
        return self.features


def same_encoder(recorded: str | None, found: str) -> bool:
    """Whether an encoder is the one that was recorded; a published file knows its weights but no vocabulary."""
    return recorded is None or recorded == found or (recorded.endswith("-") and found.startswith(recorded))


def filled_in(asked: Mapping[str, object], recorded: Mapping[str, object], name: str) -> bool:
    """Whether a setting was left open when a run began and has been filled in since."""
    open_ones = (".space", "language.identity", "language.features")
    return name.endswith(open_ones) and asked.get(name) is None and recorded.get(name) is not None
