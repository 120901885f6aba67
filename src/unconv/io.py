"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LEFTOVER = re.compile(r"\..+\.\d+\.tmp")
"""Names of what a killed process leaves behind: half of a file that was not yet renamed."""


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """Write a file under a temporary name, flush it, and rename it.

    Args:
        file: Where to; its folder exists.

    Yields:
        The temporary name, of an empty file that is new: a link that somebody has put there is not followed.

    Raises:
        OSError: If it cannot be written; nothing is left behind then.
    """
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(file)
        _flush_folder(file.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(file: Path, value: Any) -> None:
    """Write JSON.

    Args:
        file: Where to.
        value: What; NaN becomes ``null`` nowhere and is refused.
    """
    text = json.dumps(value, indent=1, allow_nan=False) + "\n"
    with replacing(file) as temporary:
        temporary.write_text(text)


def _flush_folder(folder: Path) -> None:
    # without it a power cut can undo the rename; not every file system can
    number = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(number)
    finally:
        os.close(number)
