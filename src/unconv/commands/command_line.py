"""The command line that runs a verb again, from its options."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Sequence
from typing import Any

UNSAID = ("json", "debug", "out")


def command_line(words: Sequence[str], options: Any, default: Any, said: Collection[str] = ()) -> str:
    """The words of a command, with every option that is not at its default.

    Args:
        words: What it begins with, positional arguments included.
        options: The options.
        default: Options of the same class that were not given anything.
        said: Options that the words hold already.

    Returns:
        One line for a shell, without where the results go and how they are shown.
    """
    line = list(words)
    for name, value in vars(options).items():
        if value == getattr(default, name) or name in said or name in UNSAID:
            continue
        values = value if isinstance(value, tuple) else (value,)
        line += [f"--{name.replace('_', '-')}", *map(str, values)]
    return shlex.join(line)
