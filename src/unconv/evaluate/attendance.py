"""Which ranks of a job are here: a locked file for each, which the kernel unlocks when its rank dies."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from unconv.errors import UnconvError
from unconv.evaluate.locks import PATIENCE, POLL, holder, open_lock, try_lock
from unconv.evaluate.ranks import Rank
from unconv.images import display_name

Whereabouts = Literal["here", "gone", "not come"]
FILE = re.compile(r"\d{6}\.lock")
DEPUTY = "its deputy"


class Attendance:
    """The folder ``ranks`` of a run directory; it is empty, and gone, once every rank has done its work."""

    def __init__(self, folder: Path, rank: Rank) -> None:
        """Describe it; nothing is written yet.

        Args:
            folder: ``ranks`` in the run directory.
            rank: Which process this is.
        """
        self.folder, self.rank = folder, rank
        self._number: int | None = None

    def clear(self) -> None:
        """Forget the ranks of earlier jobs; only for a process that has the directory to itself."""
        if self.folder.is_dir() and not self.folder.is_symlink():
            for file in [p for p in self.folder.iterdir() if FILE.fullmatch(p.name)]:
                file.unlink()
            with contextlib.suppress(OSError):
                self.folder.rmdir()

    def arrive(self) -> None:
        """Say that this rank is here.

        Raises:
            UnconvError: If another process has the same rank.
        """
        if self.rank.alone:
            return
        until = time.monotonic() + PATIENCE
        said = f"{self.rank} (process {os.getpid()}) on {platform.node()}"
        while True:
            self.folder.mkdir(exist_ok=True)
            with contextlib.suppress(FileNotFoundError):  # the folder has just been removed
                number = open_lock(self._file(self.rank.number))
                if try_lock(number, said):
                    if os.fstat(number).st_nlink:
                        self._number = number
                        return
                    os.close(number)  # the file has just been removed
                    continue
                who = os.pread(number, 200, 0)
                held_by = holder(number)
                os.close(number)
                # whoever does the work of a rank that has not come lets go of it in the end
                if who != DEPUTY.encode() and time.monotonic() >= until:
                    raise UnconvError(
                        f"{display_name(self.folder.parent)} is being written by {held_by}, which is another job's; "
                        "wait for it, or choose another directory with --out"
                    )
            time.sleep(POLL)

    def leave(self) -> None:
        """Say that this rank has done its work. A rank that dies, or fails, does not."""
        if self._number is not None:
            self._file(self.rank.number).unlink(missing_ok=True)
            os.close(self._number)
            self._number = None
            with contextlib.suppress(OSError):  # others are still there
                self.folder.rmdir()

    def close(self) -> None:
        """Let go of the file, which stays: this rank has come, and has not done its work."""
        if self._number is not None:
            os.close(self._number)
            self._number = None

    def whereabouts(self, number: int) -> Whereabouts:
        """Where a rank is.

        Args:
            number: The rank.

        Returns:
            ``"gone"`` for one that has come and died or failed; ``"not come"`` also for one that has done its work.
        """
        if number == self.rank.number:
            return "here"
        try:
            opened = os.open(self._file(number), os.O_RDWR | os.O_NOFOLLOW)
        except FileNotFoundError:
            return "not come"
        try:
            return "gone" if try_lock(opened, DEPUTY) else "here"
        finally:
            os.close(opened)

    @contextmanager
    def instead_of(self, number: int) -> Iterator[bool]:
        """Do something that a rank has not done; nobody else does so at the same time.

        Args:
            number: The rank.

        Yields:
            Whether it is not here, and nobody else is in its place.
        """
        self.folder.mkdir(exist_ok=True)
        came = self._file(number).exists()
        try:
            opened = open_lock(self._file(number))
        except FileNotFoundError:  # the folder has just been removed, so everything is done
            yield False
            return
        free = try_lock(opened, DEPUTY)
        try:
            yield free
        finally:
            if free and not came:
                self._file(number).unlink(missing_ok=True)
            os.close(opened)

    def _file(self, number: int) -> Path:
        return self.folder / f"{number:06d}.lock"
