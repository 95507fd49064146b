"""What one fills in to start a run: typed models that the Prefect UI shows as forms. Imports no prefect."""

import json
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from uwm.recipes import RECIPES

RecipeName = Annotated[str, Field(json_schema_extra={"enum": list(RECIPES)})]
"""A recipe, which a form offers in a list; a wrong name is refused by `uwm.recipes`, which suggests the nearest."""


class Form(BaseModel):
    """Base of all forms: a name that is not there is an error. Fields are labelled as the command line calls them."""

    model_config = ConfigDict(frozen=True, extra="forbid", field_title_generator=lambda name, _: name)


class Data(Form):
    """One dataset to train on."""

    uri: str = Field(description="dataset: a folder or URI.")
    version: int | None = Field(None, ge=0, description="version; the newest at the start of the run by default.")
    weight: float = Field(1.0, gt=0, description="share of the samples, relative to the other datasets.")
    collections: list[str] = Field([], description="only these collections; empty takes all.")


class Settings(Form):
    """What is most often changed of a recipe. Whatever is left empty stays as the recipe says."""

    data: list[Data] = Field([], description="datasets, instead of the recipe's.")
    name: str | None = Field(None, description="name of the run; its checkpoints lie in runs/NAME.")
    output: str | None = Field(None, description="folder of the run, instead of runs/NAME.")
    init_from: str | None = Field(None, description="run or checkpoint whose weights it starts from.")
    steps: int | None = Field(None, gt=0, description="training steps.")
    batch_size: int | None = Field(None, gt=0, description="samples per step.")
    lr: float | None = Field(None, gt=0, description="peak learning rate.")
    save_every: int | None = Field(None, gt=0, description="steps between checkpoints.")
    seed: int | None = Field(None, description="of the data order, the augmentation and the noise.")

    def overrides(self) -> tuple[str, ...]:
        """As `key=value` pairs, the way `uwm.recipes.apply_overrides` takes them."""
        given = {
            "data.datasets": json.dumps([item.model_dump() for item in self.data]) if self.data else None,
            "name": self.name,
            "output": self.output,
            "init_from": self.init_from,
            "train.steps": self.steps,
            "train.batch_size": self.batch_size,
            "optim.lr": self.lr,
            "train.save_every": self.save_every,
            "train.seed": self.seed,
        }
        return tuple(f"{key}={value}" for key, value in given.items() if value is not None)


AS_THE_RECIPE = Settings()
"""A form that was left empty."""


class Chain(Form):
    """What follows from a new version of a dataset: train on it, evaluate, and promote what is better."""

    track: str = Field(pattern=r"^[\w-][\w.-]{0,63}$", description="name under which the best checkpoint is kept.")
    dataset: str = Field(description="dataset whose new versions start it, one of those that the recipe trains on.")
    recipe: RecipeName = Field(description="recipe of the training run.")
    overrides: list[str] = Field([], description="key=value pairs that replace fields of the recipe.")
    from_best: bool = Field(False, description="finetune the best checkpoint so far; else train from scratch.")
    evaluate_on: str | None = Field(None, description="dataset with the held-out episodes; by default the same.")
    collections: list[str] = Field([], description="only these collections of it; empty takes all.")
    samples: int = Field(64, gt=0, description="segments per evaluation.")
    metric: str = Field("inverse/action_mse", description="what decides, as mode/metric.")
    margin: float = Field(2.0, ge=0, description="standard errors by which a new best must be better.")
    output: str = Field("runs", description="folder for the runs.")
    hours: float | None = Field(None, gt=0, description="most hours of training; then it stops with a checkpoint.")


def as_form(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON schema of parameters, as Prefect's UI shows it best.

    What may be left out becomes a blank field. By itself the UI offers a switch between a type and None for it.
    """
    shown = {name: _shown(name, value) for name, value in schema.items()}
    choices = [choice for choice in shown.get("anyOf", ()) if choice != {"type": "null"}]
    if "default" in shown and shown["default"] is None and len(choices) == 1:
        del shown["anyOf"], shown["default"]
        shown |= choices[0]
    return shown


def _shown(name: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: item for key, item in value.items() if item is not None} if name == "default" else as_form(value)
    return [_shown("", item) for item in value] if isinstance(value, list) and name != "default" else value
