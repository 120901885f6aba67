"""A run's directory: its settings, finished parts that survive a crash, and the table they end in."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from unconv.atomic import LEFTOVER, replacing, write_json
from unconv.errors import UnconvError
from unconv.images import cannot_write, display_name

PACKAGES = ("numpy", "pillow", "pyarrow", "safetensors", "scikit-image", "torch", "torchvision", "unconv")

RESULTS = pa.schema([
    ("image", pa.int64()),
    ("file", pa.string()),
    ("stage", pa.string()),
    ("from", pa.string()),
    ("code", pa.string()),
    ("method", pa.string()),
    ("side_info", pa.string()),
    ("relative_error", pa.float64()),
    ("psnr", pa.float64()),
    ("ssim", pa.float64()),
    ("status", pa.string()),
    ("picture", pa.string()),
])
ORDER = [(name, "ascending") for name in ("image", "stage", "from", "code", "method", "side_info")]
FOLDERS = ("parts", "images")
_ABSENT = object()


class RunDirectory:
    """A directory that one command fills, part by part, and that the same command completes after a crash.

    Each part is computed once: it is written under a temporary name, flushed and renamed, so it is there whole or
    not at all. A directory of other settings is refused, and a second writer too.
    """

    def __init__(self, path: Path, config: dict[str, Any]) -> None:
        """Open or create a run.

        Args:
            path: The directory.
            config: Everything that decides the results; equal settings resume, others are refused.

        Raises:
            UnconvError: If the directory is of another run, cannot be written, or is being written.
        """
        self.path = path
        self.config = json.loads(json.dumps(config))
        with self.writing():
            self._refuse_foreign()
            self._lock = _locked(path)
        try:
            with self.writing():
                self._claim()
        except BaseException:
            self.close()
            raise

    def _claim(self) -> None:
        # nothing is written, and nothing removed, before the directory is known to be this run's or nobody's
        name, settings = display_name(self.path), self.path / "config.json"
        if settings.exists():
            try:
                found = json.loads(settings.read_text())
            except ValueError:
                raise UnconvError(
                    f"{name}/config.json is not readable JSON; choose another directory with --out"
                ) from None
            if found != self.config:
                raise UnconvError(
                    f"{name} holds a run with other settings ({_difference(found, self.config)}); "
                    "choose another directory with --out, or remove this one"
                )
        else:
            self._refuse_foreign()
            write_json(settings, self.config)
        for folder in FOLDERS:
            (self.path / folder).mkdir(exist_ok=True)
        for folder in (self.path, *(self.path / name for name in FOLDERS)):
            for file in [p for p in folder.iterdir() if LEFTOVER.fullmatch(p.name)]:
                file.unlink()
        write_json(self.path / "environment.json", environment())

    def _refuse_foreign(self) -> None:
        if not self.path.is_dir() or (self.path / "config.json").exists():
            return
        if any(p.name != ".lock" and not LEFTOVER.fullmatch(p.name) for p in self.path.iterdir()):
            name = display_name(self.path)
            raise UnconvError(f"{name} is not empty and holds no run; choose another directory with --out")

    def close(self) -> None:
        """Let another process write here; a process that dies does so too."""
        os.close(self._lock)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """What fails in here for want of room, permission or a disk is said in one line, with the way out.

        Raises:
            UnconvError: In place of an ``OSError``.
        """
        try:
            yield
        except OSError as error:
            raise UnconvError(cannot_write(self.path, error)) from error

    def part(self, name: str, compute: Callable[[], Any]) -> Any:
        """A finished part, or the result of computing it now; either way it is on disk when this returns.

        Args:
            name: Name of the part, fit for a file name.
            compute: Returns something that JSON can hold.

        Returns:
            The part, as JSON gives it back.
        """
        found = self._read(name)
        if found is _ABSENT:
            computed = compute()
            with self.writing():
                write_json(self._part(name), computed)
            found = self._read(name)
        return found

    def has(self, name: str) -> bool:
        """Whether a part is finished."""
        return self._read(name) is not _ABSENT

    def parts(self, names: Iterable[str]) -> list[Any]:
        """Those of some parts that are finished, in the order of the names."""
        return [part for part in map(self._read, names) if part is not _ABSENT]

    def _read(self, name: str) -> Any:
        # a part that is not JSON (a failing disk, an editor) counts as not there, and is computed again
        try:
            return json.loads(self._part(name).read_bytes())
        except (FileNotFoundError, ValueError):
            return _ABSENT

    def _part(self, name: str) -> Path:
        return self.path / "parts" / f"{name}.json"

    def write_results(self, rows: list[dict[str, Any]]) -> Path:
        """Write ``results.parquet`` in a fixed order, so that interrupted and undisturbed runs end alike.

        Args:
            rows: One row per image, stage and way of recovering, with the fields of ``RESULTS``.

        Returns:
            The file.
        """
        table = pa.Table.from_pylist(rows, schema=RESULTS).sort_by(ORDER)
        file = self.path / "results.parquet"
        with self.writing(), replacing(file) as temporary:
            pq.write_table(table, temporary)
        return file


def environment() -> dict[str, Any]:
    """Versions and machine, as far as they can move a number.

    Returns:
        Python, packages, platform, number of CPUs, threads and GPU.
    """
    import torch  # the only thing here that needs it, and it takes seconds

    return {
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "platform": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _locked(path: Path) -> int:
    path.mkdir(parents=True, exist_ok=True)
    # the kernel lets go of it when its holder dies, however that happens; a link is not followed to elsewhere
    number = os.open(path / ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = re.fullmatch(rb"process \d+ on [\w.-]+", os.read(number, 100))
        who = holder[0].decode() if holder else "another process"
        os.close(number)
        raise UnconvError(
            f"{display_name(path)} is being written by {who}; wait for it, or choose another directory with --out"
        ) from None
    except OSError:
        os.close(number)
        raise
    with contextlib.suppress(OSError):
        os.ftruncate(number, 0)
        os.pwrite(number, f"process {os.getpid()} on {platform.node()}".encode(), 0)
    return number


def _difference(found: Any, wanted: dict[str, Any]) -> str:
    if not isinstance(found, dict):
        return "its config.json is not a mapping"
    key = next(k for k in [*wanted, *found] if found.get(k, "absent") != wanted.get(k, "absent"))
    short = [text if len(text) <= 60 else f"{text[:57]}..." for text in map(str, (found.get(key), wanted.get(key)))]
    return f"{key} was {short[0]}, now {short[1]}"
