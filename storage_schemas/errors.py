"""The one exception that a user is meant to read, and its kind for storage that fails."""


class UserError(Exception):
    """A request that can't be met, said in one line that tells what to do about it.

    The command line prints the message without a traceback and exits with code 2. Everything else
    that is raised is a bug and keeps its traceback.
    """


class StorageError(UserError):
    """A remote storage that refused, failed or did not answer, also after retries. Nothing was half done."""
