"""A forecast: what a verb would do, in words and numbers, and how its memory is watched while a part is measured."""

from __future__ import annotations

import resource
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

MOST = 12  # names that are printed
POLL = 0.002


@dataclass
class Forecast:
    """What would happen.

    Attributes:
        dry_run: The verb.
        model: The model, with the source of its weights and the device.
        images: How many, and what the first is like.
        stages: The stages in execution order.
        ways: How each would be inverted, or which experiments would run.
        out: What would be written, if anything.
        seconds: How long it would take; ``None`` where nothing was measured.
        memory_bytes: Largest memory of the process (on a GPU: of the GPU).
        measured: What the estimate comes from.
        notes: What the estimate leaves out.
    """

    dry_run: str
    model: str
    images: str
    stages: list[str]
    ways: list[str] = field(default_factory=list)
    out: str | None = None
    seconds: float | None = None
    memory_bytes: int | None = None
    measured: str = ""
    notes: list[str] = field(default_factory=list)


class Memory:
    """Memory in use, and how far it rises: first over work on single images, then over work on batches of one image.

    Attributes:
        device: Where to look.
        paused: Whether not to look for now.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.before = self.batches_before = _in_use(device)
        self.peak = self.batches_peak = 0
        self.in_batches = self.paused = False

    def begin_batches(self) -> None:
        """From here on, memory grows with the number of images at a time."""
        self.look()
        self.in_batches, self.batches_before = True, _in_use(self.device)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def look(self) -> None:
        """Take what is in use now into account."""
        if self.paused:
            return
        now = torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else _in_use(self.device)
        if self.in_batches:
            self.batches_peak = max(self.batches_peak, now)
        else:
            self.peak = max(self.peak, now)

    def largest(self, scale: float, batch: int) -> int:
        """The largest memory, where stages are so much larger than the one measured and images come in batches.

        Args:
            scale: How much larger the largest stage is.
            batch: Images at a time.

        Returns:
            Bytes.
        """
        single = self.before + scale * max(0, self.peak - self.before)
        batches = self.batches_before + scale * batch * max(0, self.batches_peak - self.batches_before)
        return round(max(single, batches))


@contextmanager
def meter(device: torch.device) -> Iterator[Memory]:
    """Watch the memory of a block of code.

    Args:
        device: Where to look: at the process, or at a GPU.

    Yields:
        What is seen.
    """
    memory, stop = Memory(device), threading.Event()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)

    def watch() -> None:
        while not stop.wait(POLL):
            memory.look()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield memory
    finally:
        stop.set()
        watcher.join()
        memory.look()


def _in_use(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        # no /proc: the largest so far, which macOS counts in bytes and others in KiB
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def text_of(found: Forecast) -> str:
    """A forecast for a terminal.

    Args:
        found: The forecast.

    Returns:
        Lines.
    """
    rows = [
        ("model", found.model),
        ("images", found.images),
        ("stages", f"{len(found.stages)}: {_listed(found.stages)}" if found.stages else "none"),
        ("parts" if found.dry_run == "reproduce" else "ways", "; ".join(found.ways)),
        ("writes", found.out or "nothing"),
        ("time", "not estimated" if found.seconds is None else f"about {duration(found.seconds)}; {found.measured}"),
        ("memory", "" if found.memory_bytes is None else f"about {found.memory_bytes / 1e6:.0f} MB"),
    ]
    lines = [f"  {name:8}{value}" for name, value in rows if value]
    lines += [f"  {'note':8}{note}" for note in found.notes]
    return "\n".join([f"unconv {found.dry_run} would do this:", *lines, "Nothing has been written."])


def _listed(names: Sequence[str]) -> str:
    if len(names) <= MOST:
        return ", ".join(names)
    return f"{', '.join(names[: MOST - 1])}, ... {names[-1]}"


def duration(seconds: float) -> str:
    """A time in the unit that fits it.

    Args:
        seconds: The time.

    Returns:
        Such as ``"42 s"`` or ``"2 h 30 min"``.
    """
    if seconds < 90:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
