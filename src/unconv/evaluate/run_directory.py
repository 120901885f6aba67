"""A run's directory: its settings, finished parts that survive a crash, and the table they end in."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from unconv.errors import UnconvError
from unconv.evaluate.attendance import Attendance
from unconv.evaluate.locks import DirectoryLock
from unconv.evaluate.ranks import ALONE, Rank
from unconv.images import cannot_write, display_name
from unconv.io import LEFTOVER, replacing, write_json

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
AT_ONCE = 65_536  # rows of the table in memory
_ABSENT = object()


class RunDirectory:
    """A directory that one command fills, part by part, and that the same command completes after a crash.

    Each part is computed once: it is written under a temporary name, flushed and renamed, so it is there whole or
    not at all. A directory of other settings is refused, and a second writer too, unless it is a rank of the same job.

    Attributes:
        path: The directory.
        config: Everything that decides the results.
        rank: Which process of its job this is.
        attendance: Which of the others are there.
    """

    def __init__(self, path: Path, config: dict[str, Any], rank: Rank = ALONE) -> None:
        """Open or create a run.

        Args:
            path: The directory.
            config: Everything that decides the results; equal settings resume, others are refused.
            rank: Which process of its job this is.

        Raises:
            UnconvError: If the directory is of another run, cannot be written, or is being written by another job.
        """
        self.path, self.rank = path, rank
        self.config = json.loads(json.dumps(config))
        self.attendance = Attendance(path / "ranks", rank)
        with self.writing():
            self._refuse_foreign()
            self._lock = DirectoryLock(path, rank)
        try:
            with self.writing():
                self._check_settings()
                if self._lock.first:
                    self._prepare()
                    self._lock.admit()
                self.attendance.arrive()
        except BaseException:
            self.close()
            raise

    def _check_settings(self) -> None:
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
        elif self._lock.first:
            self._refuse_foreign()
        else:
            raise UnconvError(f"{name}/config.json has just been removed; run the same command again")

    def _prepare(self) -> None:
        # nothing is written, and nothing removed, before the directory is known to be this run's or nobody's
        settings = self.path / "config.json"
        if not settings.exists():
            write_json(settings, self.config)
        self.attendance.clear()
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
        self.attendance.close()
        self._lock.close()

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

    def drop(self, name: str) -> None:
        """Remove a part, where it is there."""
        with self.writing():
            self._part(name).unlink(missing_ok=True)

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

    def write_results(self, rows: Iterable[dict[str, Any]]) -> Path:
        """Write ``results.parquet`` in a fixed order, so that interrupted and undisturbed runs end alike.

        Args:
            rows: One row per image, stage and way of recovering, with the fields of ``RESULTS``; image after image,
                so that not all of them are in memory at a time.

        Returns:
            The file.
        """
        file = self.path / "results.parquet"
        with self.writing(), replacing(file) as temporary, pq.ParquetWriter(temporary, RESULTS) as table:
            for some in _whole_images(rows, AT_ONCE):
                table.write_table(pa.Table.from_pylist(some, schema=RESULTS).sort_by(ORDER))
        return file


class Unwritten(RunDirectory):
    """A run that is kept in memory only, by one process."""

    def __init__(self) -> None:
        """Keep nothing yet."""
        self.path, self.config, self.rank = Path(os.devnull), {}, ALONE
        self._parts: dict[str, Any] = {}

    def part(self, name: str, compute: Callable[[], Any]) -> Any:
        """A finished part, or the result of computing it now.

        Args:
            name: Name of the part.
            compute: Returns something that JSON can hold.

        Returns:
            The part.
        """
        if name not in self._parts:
            self._parts[name] = compute()
        return self._parts[name]

    def drop(self, name: str) -> None:
        """Forget a part, where it is there."""
        self._parts.pop(name, None)

    def close(self) -> None:
        """There is nothing to let go of."""

    def _read(self, name: str) -> Any:
        return self._parts.get(name, _ABSENT)


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


def _whole_images(rows: Iterable[dict[str, Any]], enough: int) -> Iterator[list[dict[str, Any]]]:
    # at least one group, so that the file is there; an image is in one group, since groups are sorted by themselves
    some: list[dict[str, Any]] = []
    for row in rows:
        if len(some) >= enough and row["image"] != some[-1]["image"]:
            yield some
            some = []
        some.append(row)
    yield some


def _difference(found: Any, wanted: dict[str, Any]) -> str:
    if not isinstance(found, dict):
        return "its config.json is not a mapping"
    key = next(k for k in [*wanted, *found] if found.get(k, "absent") != wanted.get(k, "absent"))
    short = [text if len(text) <= 60 else f"{text[:57]}..." for text in map(str, (found.get(key), wanted.get(key)))]
    return f"{key} was {short[0]}, now {short[1]}"
