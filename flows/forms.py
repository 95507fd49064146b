"""What one fills in to start a run: typed models that the Prefect UI shows as forms. Imports no prefect."""

import json
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from uwm.recipes import RECIPES

RecipeName = Annotated[str, Field(json_schema_extra={"enum": list(RECIPES)})]
"""A recipe, which a form offers in a list; a wrong name is refused by `uwm.recipes`, which suggests the nearest."""


class Form(BaseModel):
    """Base of all forms: a name that is not there is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Data(Form):
    """One dataset to train on."""

    uri: str = Field(description="Dataset: a folder or URI.")
    version: int | None = Field(None, ge=0, description="Version; the newest at the start of the run by default.")
    weight: float = Field(1.0, gt=0, description="Share of the samples, relative to the other datasets.")
    collections: list[str] = Field([], description="Only these collections; empty takes all.")


class Settings(Form):
    """What is most often changed of a recipe. Whatever is left empty stays as the recipe says."""

    data: list[Data] = Field([], description="Datasets, instead of the recipe's.")
    name: str | None = Field(None, description="Name of the run; its checkpoints lie in runs/NAME.")
    output: str | None = Field(None, description="Folder of the run, instead of runs/NAME.")
    init_from: str | None = Field(None, description="Run or checkpoint whose weights it starts from.")
    steps: int | None = Field(None, gt=0, description="Training steps.")
    batch_size: int | None = Field(None, gt=0, description="Samples per step.")
    lr: float | None = Field(None, gt=0, description="Peak learning rate.")
    save_every: int | None = Field(None, gt=0, description="Steps between checkpoints.")
    seed: int | None = Field(None, description="Of the data order, the augmentation and the noise.")

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

    track: str = Field(pattern=r"^[\w-][\w.-]{0,63}$", description="Name under which the best checkpoint is kept.")
    dataset: str = Field(description="Dataset whose new versions start it, one of those that the recipe trains on.")
    recipe: RecipeName = Field(description="Recipe of the training run.")
    overrides: list[str] = Field([], description="key=value pairs that replace fields of the recipe.")
    from_best: bool = Field(False, description="Finetune the best checkpoint so far; else train from scratch.")
    evaluate_on: str | None = Field(None, description="Dataset with the held-out episodes; by default the same.")
    collections: list[str] = Field([], description="Only these collections of it; empty takes all.")
    samples: int = Field(64, gt=0, description="Segments per evaluation.")
    metric: str = Field("inverse/action_mse", description="What decides, as mode/metric.")
    margin: float = Field(2.0, ge=0, description="Standard errors by which a new best must be better.")
    output: str = Field("runs", description="Folder for the runs.")
    hours: float | None = Field(None, gt=0, description="Most hours of training; then it stops with a checkpoint.")
