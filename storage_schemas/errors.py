"""The exceptions that a user is meant to read; what a source's data can be told is `pipelines`' own `BadDataError`."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


class UserError(Exception):
    """A request that can't be met, said in one line that tells what to do about it.

    The command line prints the message without a traceback and exits with code 2. Everything else
    that is raised is a bug and keeps its traceback.
    """


class StorageError(UserError):
    """A storage that refused, failed or did not answer, also after retries. Nothing was half done."""


class DamagedError(UserError):
    """Stored bytes are missing or not what was written; of a dataset, `uwm verify` names all that is damaged."""


def first_problem(error: "ValidationError") -> tuple[str, str]:
    """The dotted name of the first field that pydantic refused, empty for a whole model, and the reason."""
    first = error.errors()[0]
    return ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
