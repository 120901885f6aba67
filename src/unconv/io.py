"""Files that are there whole or not at all, and names that print on one line."""

from __future__ import annotations

import contextlib
import difflib
import errno
import json
import math
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from unconv.errors import UnconvError

LEFTOVER = re.compile(r"\..+\.\d+\.tmp")
"""Names of what a killed process leaves behind: half of a file that was not yet renamed."""


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """Write a file under the temporary name that is yielded, flush and rename it; nothing is left of an error."""
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
    """Write JSON, whole or not at all; NaN is refused."""
    text = json.dumps(value, indent=1, allow_nan=False) + "\n"
    with replacing(file) as temporary:
        temporary.write_text(text)


def finite(value: float) -> float | None:
    """Return a number as JSON can hold it: ``None`` where it is NaN or infinite."""
    return value if math.isfinite(value) else None


def _flush_folder(folder: Path) -> None:
    # without it a power cut can undo the rename; not every file system can
    number = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(number)
    finally:
        os.close(number)


def display_name(path: str | os.PathLike[str], root: str | os.PathLike[str] | None = None) -> str:
    r"""Return a file's name, relative to ``root`` where it lies in it, as one printable line.

    Different names stay different: bytes that are not UTF-8 become ``\xNN``, other characters that do not print
    (newlines, terminal escapes) ``\n``, ``\x1b``, ``\u202e``, and a backslash is doubled.
    """
    path = Path(path)
    if root is not None and path.is_relative_to(root):
        path = path.relative_to(root)
    return one_line(path.as_posix().replace("\\", "\\\\"))


def one_line(text: str) -> str:
    """Return text with every character escaped that does not print."""
    return "".join(map(_printable, text))


def near_names(name: str, names: Iterable[str]) -> list[str]:
    """Return names near one that does not exist: its parts, the same end in the same module, or similar spelling."""
    known = list(names)
    parts = [n for n in known if n.startswith((f"{name}.", f"{name}["))]
    module, _, end = name.rpartition(".")
    beside = [n for n in known if module and n.startswith(f"{module}.")]
    alike = [n for n in beside if n.rpartition(".")[2] == end]
    similar = [difflib.get_close_matches(name[:200], some, 3, 0.5) for some in (beside, known)]
    return parts[-3:] or alike[-3:] or similar[0] or similar[1]


@contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn an OSError in here (no room, no permission) into one line: what failed, and what would help."""
    try:
        yield
    except OSError as error:
        full = error.errno in {errno.ENOSPC, getattr(errno, "EDQUOT", None), errno.EFBIG}
        remedy = "make room there and run the same command again" if full else "make it writable"
        raise UnconvError(
            f"cannot write {display_name(path)}: {reason(error)}; {remedy}, or choose another directory with out"
        ) from error


def reason(error: Exception) -> str:
    """Return what went wrong, in one line, with the machine's words where it has some."""
    if isinstance(error, OSError) and error.strerror is not None:
        return error.strerror[:1].lower() + error.strerror[1:]
    return one_line(f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": "))[:200]


def _printable(char: str) -> str:
    if char.isprintable():
        return char
    if 0xDC80 <= ord(char) <= 0xDCFF:
        return f"\\x{ord(char) - 0xDC00:02x}"
    return char.encode("unicode_escape", "surrogatepass").decode("ascii")
