"""The one exception that a user is meant to read."""


class UserError(Exception):
    """A request that can't be met, said in one line that tells what to do about it.

    The command line prints the message without a traceback and exits with code 2. Everything else
    that is raised is a bug or an outage and keeps its traceback.
    """
