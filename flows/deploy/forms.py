"""What one fills in to start a run: typed models that the Prefect UI shows as forms. Imports no prefect."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from flows.jobs.train import adapted
from uwm.config import DatasetRef, RunConfig
from uwm.settings import RunName, replace


class Form(BaseModel):
    """Base of all forms: a name that is not there is an error. Fields are labelled as the command line calls them."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, field_title_generator=lambda name, _: name
    )


class Settings(Form):
    """What is most often changed of a recipe. Whatever is left empty stays as the recipe says."""

    data: tuple[DatasetRef, ...] = Field((), description="datasets, instead of the recipe's.")
    name: RunName | None = Field(None, description="name of the run; its checkpoints lie in runs/NAME.")
    output: str | None = Field(None, description="folder of the run, instead of runs/NAME.")
    init_from: str | None = Field(None, description="run or checkpoint whose weights it starts from.")
    steps: int | None = Field(None, gt=0, description="training steps.")
    batch_size: int | None = Field(None, gt=0, description="samples per step.")
    lr: float | None = Field(None, gt=0, description="peak learning rate.")
    save_every: int | None = Field(None, gt=0, description="steps between checkpoints.")
    seed: int | None = Field(None, description="of the data order, the augmentation and the noise.")

    def applied_to(self, config: RunConfig) -> RunConfig:
        """The configuration with what was filled in. Raises UserError when it does not go together."""
        run = self._given("name", "output", "init_from")
        if self.data:
            run["data"] = replace(config.data, datasets=self.data)
        train = replace(config.train, **self._given("steps", "batch_size", "save_every", "seed"))
        return adapted(config, **run, train=train, optim=replace(config.optim, **self._given("lr")))

    def _given(self, *names: str) -> dict[str, object]:
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


AS_THE_RECIPE = Settings()
"""A form that was left empty."""


def parameters_form(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON schema of a flow's parameters as a form, which refuses what is no parameter of it."""
    return as_form(schema) | {"additionalProperties": False}


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
