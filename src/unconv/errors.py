"""The errors that a user can mend: one line that says what is wrong and what would be right."""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Integral


class UnconvError(Exception):
    """Something given to the project cannot be used; the command line prints it as one line and exits with 1."""


class UsageError(UnconvError):
    """A name or option that the user typed does not exist; the command line exits with 2."""


def check_whole(least: int = 1, **numbers: float | None) -> None:
    """Raise UsageError for a number that is not whole, or less than the least; ``None`` is not given."""
    for name, value in numbers.items():
        if value is not None and (not isinstance(value, Integral) or value < least):
            raise UsageError(f"{name} is {value!r}; it is a whole number, at least {least}")


def check_choice(choices: Iterable[str], **values: str) -> None:
    """Raise UsageError for a value that is none of some choices."""
    for name, value in values.items():
        if value not in choices:
            raise UsageError(f"{name} is {value!r}; use one of {', '.join(choices)}")
