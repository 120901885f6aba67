"""A run's directory: its settings, finished parts that survive a crash, and the table they end in."""

from __future__ import annotations

import fcntl
import json
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from unconv.errors import UnconvError

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
        try:
            self._lock = _locked(path)
        except OSError as error:
            raise UnconvError(
                f"cannot write to {path}: {error.strerror}; choose another directory with --out"
            ) from None
        settings = path / "config.json"
        if settings.exists():
            try:
                found = json.loads(settings.read_text())
            except ValueError:
                raise UnconvError(f"{settings} is not readable JSON; choose another directory with --out") from None
            if found != self.config:
                raise UnconvError(
                    f"{path} holds a run with other settings ({_difference(found, self.config)}); "
                    "choose another directory with --out, or remove this one"
                )
        elif any(p.name != ".lock" for p in path.iterdir()):
            raise UnconvError(f"{path} is not empty and holds no run; choose another directory with --out")
        else:
            write_json(settings, self.config)
        write_json(path / "environment.json", environment())
        for folder in ("parts", "images"):
            (path / folder).mkdir(exist_ok=True)

    def close(self) -> None:
        """Let another process write here."""
        self._lock.close()

    def part(self, name: str, compute: Callable[[], Any]) -> Any:
        """A finished part, or the result of computing it now; either way it is on disk when this returns.

        Args:
            name: Name of the part, fit for a file name.
            compute: Returns something that JSON can hold.

        Returns:
            The part, as JSON gives it back.
        """
        file = self._part(name)
        if not file.exists():
            write_json(file, compute())
        return json.loads(file.read_text())

    def has(self, name: str) -> bool:
        """Whether a part is finished."""
        return self._part(name).exists()

    def parts(self, prefix: str) -> list[Any]:
        """All finished parts whose names begin alike, in the order of their names."""
        return [json.loads(file.read_text()) for file in sorted((self.path / "parts").glob(f"{prefix}*.json"))]

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
        with _replacing(file) as temporary:
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


def write_json(file: Path, value: Any) -> None:
    """Write JSON so that the file is there whole or not at all.

    Args:
        file: Where to.
        value: What; NaN becomes ``null`` nowhere and is refused.
    """
    text = json.dumps(value, indent=1, allow_nan=False) + "\n"
    with _replacing(file) as temporary:
        temporary.write_text(text)


@contextmanager
def _replacing(file: Path) -> Iterator[Path]:
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def _locked(path: Path) -> IO[str]:
    path.mkdir(parents=True, exist_ok=True)
    lock = (path / ".lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise UnconvError(f"{path} is being written by another process; wait for it, or choose another --out") from None
    return lock


def _difference(found: Any, wanted: dict[str, Any]) -> str:
    if not isinstance(found, dict):
        return "its config.json is not a mapping"
    key = next(k for k in [*wanted, *found] if found.get(k, "absent") != wanted.get(k, "absent"))
    short = [text if len(text) <= 60 else f"{text[:57]}..." for text in map(str, (found.get(key), wanted.get(key)))]
    return f"{key} was {short[0]}, now {short[1]}"
