"""A run's directory: its settings, finished parts that survive a crash, and the table they end in."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Iterable, Mapping
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from filelock import FileLock, Timeout
from safetensors.torch import load, save

from unconv.errors import UnconvError
from unconv.images import save_image
from unconv.io import LEFTOVER, display_name, replacing, write_json, writing

PACKAGES = ("numpy", "pillow", "pyarrow", "safetensors", "scikit-image", "torch", "torchvision", "unconv")
STRINGS = ("file", "layer", "recover", "code", "method", "side_info", "status", "picture", "error_map")
RESULTS = pa.schema([
    (name, pa.string() if name in STRINGS else pa.int64() if name in {"image", "passes"} else pa.float64())
    for name in (
        *("image", "file", "layer", "recover", "code", "method", "side_info", "noise", "relative_error", "psnr"),
        *("ssim", "lpips", "same_class", "expected_error", "seconds", "passes", "status", "picture", "error_map"),
    )
])
FOLDERS = ("parts", "images", "decoders")
AT_ONCE = 65_536  # rows of the table in memory
GROWING = ("passes", "budget", "certified")  # settings that may grow when a run goes on


class RunDirectory:
    """A directory that one process fills, part by part, and that the same command completes after a crash.

    A part is computed once, and is there whole or not at all. A directory of other settings than ``config``, which is
    everything that decides the results, is refused, except for a larger budget; a second writer too. ``previous`` has
    the settings of the run so far, where it goes on.
    """

    def __init__(self, path: str | Path, config: Mapping[str, Any]) -> None:
        """Open or create a run; UnconvError if the directory is another run's, is in use or cannot be written."""
        self.path, self.config = Path(path), json.loads(json.dumps(config))
        self.previous: dict[str, Any] = {}
        name = display_name(self.path)
        with writing(self.path):
            self._check_settings(name)
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(self.path / ".lock")
            try:
                self._lock.acquire(timeout=0)
            except Timeout:
                message = f"another process is writing {name}; wait for it, or choose another directory with out"
                raise UnconvError(message) from None
            try:
                self._check_settings(name)
                # first what says that this is a run: one that stops right after it can be resumed
                self.write_config()
                for folder in (self.path, *(self.path / name for name in FOLDERS)):
                    folder.mkdir(exist_ok=True)
                    for file in [p for p in folder.iterdir() if LEFTOVER.fullmatch(p.name)]:
                        file.unlink()
                write_json(self.path / "environment.json", environment())
            except BaseException:
                self.close()
                raise

    def _check_settings(self, name: str) -> None:
        file = self.path / "config.json"
        if not file.exists():
            others = self.path.iterdir() if self.path.is_dir() else ()
            if any(p.name != ".lock" and not LEFTOVER.fullmatch(p.name) for p in others):
                raise UnconvError(f"{name} is not empty and holds no run; choose another directory with out")
            return
        try:
            found = json.loads(file.read_text())
        except ValueError:
            raise UnconvError(f"{name}/config.json is not readable JSON; choose another directory with out") from None
        message = _difference(found, self.config)
        if message and not any(file for folder in FOLDERS for file in (self.path / folder).glob("*")):
            return  # stopped before anything was computed, such as by a budget that is too small
        if message:
            raise UnconvError(
                f"{name} holds a run with other settings ({message}); "
                "choose another directory with out, or remove this one"
            )
        self.previous = found

    def write_config(self, **more: Any) -> None:
        """Write the settings, with what was decided since."""
        self.config |= json.loads(json.dumps(more))
        with writing(self.path):
            # what a run had measured once stays, until it is decided anew
            write_json(self.path / "config.json", self.previous | self.config)

    def close(self) -> None:
        """Let another process write here; a process that dies does so too."""
        self._lock.release()

    def part(self, name: str, compute: Callable[[], Any]) -> Any:
        """Return a finished part, or compute it and write it; either way as JSON gives it back."""
        if not self.has(name):
            self.write_part(name, compute())
        return self.read(name)

    def read(self, name: str) -> Any:
        """Return a finished part; ``None`` where it is missing or no JSON."""
        try:
            return json.loads(self._load(f"{name}.json"))
        except (FileNotFoundError, ValueError):
            return None

    def has(self, name: str) -> bool:
        """Return whether a part is finished."""
        return self.read(name) is not None

    def write_part(self, name: str, value: Any) -> None:
        """Write a part, which is not ``None``."""
        self._store(f"{name}.json", json.dumps(value, indent=1, allow_nan=False).encode())

    def drop(self, name: str) -> None:
        """Forget a finished part."""
        self._store(f"{name}.json", b"")

    def write_tensors(self, name: str, tensors: Mapping[str, Any]) -> None:
        """Write the tensors that belong to a part."""
        self._store(f"{name}.safetensors", save({k: t.detach().cpu().contiguous() for k, t in tensors.items()}))

    def read_tensors(self, name: str) -> dict[str, Any]:
        """Return the tensors that belong to a part."""
        return load(self._load(f"{name}.safetensors"))

    def _load(self, file: str) -> bytes:
        return (self.path / "parts" / file).read_bytes()

    def _store(self, file: str, content: bytes) -> None:
        with writing(self.path), replacing(self.path / "parts" / file) as temporary:
            temporary.write_bytes(content)

    def write_picture(self, path: str, pixels: Any) -> None:
        """Write a picture, pixels ``(C, H, W)`` in ``[0, 1]``, at a path within the run."""
        save_image(pixels, self.path / path)

    def write_results(self, rows: Iterable[Mapping[str, Any]]) -> Path:
        """Write ``results.parquet`` from rows that come image after image; return the file."""
        file = self.path / "results.parquet"
        with writing(self.path), replacing(file) as temporary, pq.ParquetWriter(temporary, RESULTS) as table:
            left = iter(rows)
            while some := [{name: row.get(name) for name in RESULTS.names} for row in islice(left, AT_ONCE)]:
                table.write_table(pa.Table.from_pylist(some, schema=RESULTS))
        return file


class InMemoryRun(RunDirectory):
    """A run that is kept in memory only."""

    def __init__(self) -> None:
        """Keep nothing yet."""
        self.path, self.config, self.previous = Path(os.devnull), {}, {}
        self._files: dict[str, bytes] = {}

    def close(self) -> None:
        """Do nothing."""

    def write_config(self, **more: Any) -> None:
        """Keep settings."""
        self.config |= more

    def write_picture(self, path: str, pixels: Any) -> None:
        """Keep no pictures."""

    def _load(self, file: str) -> bytes:
        if file not in self._files:
            raise FileNotFoundError(file)
        return self._files[file]

    def _store(self, file: str, content: bytes) -> None:
        self._files[file] = content


def environment() -> dict[str, Any]:
    """Return versions and machine, as far as they can move a number."""
    return {
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "platform": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _difference(found: Any, wanted: dict[str, Any]) -> str:
    """Return how settings differ in more than a growing budget; empty where the run can go on."""
    if not isinstance(found, dict):
        return "its config.json is not a mapping"
    for key in wanted:
        old, new = found.get(key), wanted[key]
        if old == new or (key in GROWING and _grows(old, new)):
            continue
        short = [text if len(text) <= 60 else f"{text[:57]}..." for text in (str(old), str(new))]
        smaller = ", which is smaller" if key in GROWING else ""
        return f"{key} was {short[0]}, now {short[1]}{smaller}"
    return ""


def _grows(old: Any, new: Any) -> bool:
    if isinstance(old, dict) and isinstance(new, dict):
        return old.keys() <= new.keys() and all(_grows(old[key], new[key]) for key in old)
    if isinstance(old, int | float) and isinstance(new, int | float):
        return old <= new
    return old is None or new is None
