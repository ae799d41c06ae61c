"""The one exception a user's input raises, so that every caller can tell a wrong input from a defect."""


class InputError(ValueError):
    """Wrong input: one clear sentence that names the argument, what was expected and what came.

    The command line prints it alone, without a traceback, and exits with code 2.
    """


class UnwritableError(InputError):
    """A file that cannot be written where it was to go, or not to its end; nothing is wrong with its contents."""
