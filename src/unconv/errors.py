"""The errors that a user can mend: one line that says what is wrong and what would be right."""


class UnconvError(Exception):
    """Something given to the project cannot be used; the command line prints it as one line and exits with 1."""


class UsageError(UnconvError):
    """A name or option that the user typed does not exist; the command line exits with 2."""
