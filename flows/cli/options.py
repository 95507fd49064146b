"""What several commands can be told, once: arguments and options, and those that the option models declare.

A parameter whose type is a pydantic model stands for an option of every field of it: `expanded` spells them out for
typer, with the model's own defaults and descriptions, and the command gets the checked model.
"""

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from types import UnionType
from typing import Annotated, Any, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

import typer
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from storage_schemas.errors import UserError, first_problem

M = TypeVar("M", bound=BaseModel)
P = ParamSpec("P")
R = TypeVar("R")

Store = Annotated[str, typer.Argument(metavar="STORE", help="Dataset: a folder or a URI such as s3://bucket/droid.")]
Checkpoint = Annotated[str, typer.Argument(metavar="CHECKPOINT", help="Folder of a run, or of one of its checkpoints.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE ...]", help="Fields of the recipe to replace: train.steps=100")
]
Version = Annotated[
    str | None, typer.Option("--version", metavar="NUMBER|TAG", help="Dataset version; the newest by default.")
]
Root = Annotated[
    str | None, typer.Option(help="Folder of lineage records; by default UWM_LINEAGE, else the one found from here.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on stdout.")]
Flow = Annotated[
    bool | None,
    typer.Option(
        "--flow/--no-flow", help="Run as a Prefect flow; by default when PREFECT_API_URL or a profile is set."
    ),
]

FLAGS = {"batch_episodes": "--batch", "collections": "--collection"}
"""Options that are not called after their field."""
WITH_COMMAS = ("reject",)
"""Lists that are one word with commas; other lists are options that repeat."""


def expanded(command: Callable[P, R]) -> Callable[P, R]:
    """A command as typer takes it: with options in the place of parameters that are models."""
    hints = get_type_hints(command, include_extras=True)
    models: dict[str, type[BaseModel]] = {}
    shown: list[inspect.Parameter] = []
    for parameter in inspect.signature(command).parameters.values():
        kind = hints[parameter.name]
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            models[parameter.name] = kind
            shown += _options(kind)
        else:
            shown.append(parameter.replace(annotation=kind, kind=inspect.Parameter.KEYWORD_ONLY))

    @functools.wraps(command)
    def run(*arguments: P.args, **values: P.kwargs) -> R:
        values.update({name: _take(model, values) for name, model in models.items()})
        return command(*arguments, **values)

    # what typer looks at; `run` is called with one value for each of these options, by its name
    typed: Any = run
    typed.__signature__ = inspect.Signature(shown)
    typed.__annotations__ = {option.name: option.annotation for option in shown}
    return run


def flag(name: str) -> str:
    """The option of a field."""
    return FLAGS.get(name, "--" + name.replace("_", "-"))


def _options(model: type[BaseModel]) -> Iterator[inspect.Parameter]:
    for name, field in model.model_fields.items():
        default = field.get_default()
        metavar = "NUMBER|TAG" if name == "version" else None
        text = field.description or ""
        option = typer.Option(flag(name), help=text[:1].upper() + text[1:], metavar=metavar)
        yield inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None if isinstance(default, tuple) else default,
            annotation=Annotated[_plain(name, field), option],
        )


def _plain(name: str, field: FieldInfo) -> Any:
    """The type that typer reads for a field; what it means is the model's to check."""
    union = get_origin(field.annotation) in (Union, UnionType)
    kinds = list(get_args(field.annotation)) if union else [field.annotation]
    optional = type(None) in kinds
    choices = [kind for kind in kinds if kind is not type(None)]
    kind: Any = choices[0] if len(choices) == 1 else str  # a version: its number or a tag
    if get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    if get_origin(kind) is tuple:
        kind, optional = (str if name in WITH_COMMAS else list[str]), True
    return kind | None if optional else kind


def _take(model: type[M], values: dict[str, Any]) -> M:
    """Take the model's fields out of `values`. Raises UserError when one makes no sense."""
    given = {name: values.pop(name) for name in model.model_fields}
    for name in WITH_COMMAS:
        if given.get(name) is not None:
            given[name] = [word for word in given[name].split(",") if word.strip()]
    return checked(model, {name: value for name, value in given.items() if value is not None})


def checked(model: type[M], given: Mapping[str, object]) -> M:
    """A model of options as they were given. Raises UserError when one makes no sense."""
    try:
        return model.model_validate(given)
    except ValidationError as error:
        name, reason = first_problem(error)
        raise UserError(f"{flag(name.partition('.')[0])}: {reason}" if name else reason) from error
