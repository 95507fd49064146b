"""How a user's mistake ends a flow run: failed with one line, without a traceback in its log."""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

from prefect import Flow, Task
from prefect.states import Failed

from storage_schemas.errors import StorageError, UserError

P = ParamSpec("P")
R = TypeVar("R")


def failing_on_user_error(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate the function of a task or flow so that a `UserError` becomes its failed state.

    Prefect hands such a state to the caller instead of raising, so callers go through `as_function`.
    """

    @functools.wraps(function)
    def with_failed_state(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except UserError as error:
            failed: Any = Failed(message=str(error), data=error)
            return cast(R, failed)

    return with_failed_state


def as_function(job: Flow[P, R] | Task[P, R]) -> Callable[P, R]:
    """A task or flow as a plain function: it returns its result, or raises what it failed with."""

    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        state: Any = cast(Callable[..., Any], job)(*args, **kwargs, return_state=True)
        if isinstance(state.data, UserError):
            raise state.data
        return cast(R, state.result())

    return call


def may_be_retried(_task: object, _run: object, state: Any) -> bool:
    """Whether a task may be tried again: not after a user's mistake, but after a storage that failed."""
    return isinstance(state.data, StorageError) or not isinstance(state.data, UserError)
