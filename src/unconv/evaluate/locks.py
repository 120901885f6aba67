"""A lock on a run directory: one process alone, or the ranks of one job together."""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import re
import time
from pathlib import Path

from unconv.errors import UnconvError
from unconv.evaluate.ranks import Rank
from unconv.images import display_name

PATIENCE = 5.0
"""Seconds that a rank waits for a lock whose holder may be just about to let go of it."""
POLL = 0.05
HOLDER = re.compile(rb"(process \d+|a job of \d+ ranks [0-9a-f]{8}|rank \d+ of \d+ \(process \d+\)) on [\w.-]+")


class DirectoryLock:
    """The lock ``.lock``. The kernel lets go of it when its holder dies, however that happens.

    A process alone holds it exclusively. The first rank of a job that comes does so too, while it prepares the
    directory; then the ranks of that job share it, and every other job is refused.

    Attributes:
        first: Whether no other process holds it: the directory may be prepared, until ``admit``.
    """

    def __init__(self, folder: Path, rank: Rank) -> None:
        """Take the lock.

        Args:
            folder: The run directory, which is made where it is missing.
            rank: Which process this is.

        Raises:
            UnconvError: If another process, or another job, holds it.
            OSError: If the file cannot be made or locked.
        """
        self._folder, self._rank = folder, rank
        folder.mkdir(parents=True, exist_ok=True)
        self._number = open_lock(folder / ".lock")
        try:
            self.first = self._enter()
        except BaseException:
            self.close()
            raise

    def admit(self) -> None:
        """Let the other ranks of the job in, once the directory is prepared."""
        if self._rank.alone:
            return
        # a shared lock in place of an exclusive one: between the two somebody else may come
        while self.first and not (_try(self._number, fcntl.LOCK_SH) and self._is_ours()):
            self.first = self._enter()
        self.first = False

    def close(self) -> None:
        """Let go of it; twice is no harm."""
        if self._number >= 0:
            os.close(self._number)
        self._number = -1

    def _enter(self) -> bool:
        until = time.monotonic() + (0 if self._rank.alone else PATIENCE)
        while True:
            if _try(self._number, fcntl.LOCK_EX):
                _write(self._number, f"{self._words()} on {platform.node()}")
                return True
            if not self._rank.alone:
                if _try(self._number, fcntl.LOCK_SH):
                    if self._is_ours():
                        return False
                    fcntl.flock(self._number, fcntl.LOCK_UN)
                elif self._is_ours():
                    until = time.monotonic() + PATIENCE  # another rank of this job prepares the directory
            if time.monotonic() >= until:
                raise UnconvError(
                    f"{display_name(self._folder)} is being written by {holder(self._number)}; "
                    "wait for it, or choose another directory with --out"
                )
            time.sleep(POLL)

    def _words(self) -> str:
        rank = self._rank
        return f"process {os.getpid()}" if rank.alone else f"a job of {rank.count} ranks {rank.job}"

    def _is_ours(self) -> bool:
        return os.pread(self._number, 100, 0).startswith(f"{self._words()} on ".encode())


def open_lock(file: Path) -> int:
    """Open a file to lock it; a link is not followed to elsewhere.

    Args:
        file: The file, made where it is missing.

    Returns:
        Its descriptor.
    """
    return os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)


def try_lock(number: int, said: str) -> bool:
    """Lock a file exclusively, if nobody else has.

    Args:
        number: Its descriptor.
        said: What the file then says of its holder.

    Returns:
        Whether it is locked now.
    """
    if not _try(number, fcntl.LOCK_EX):
        return False
    _write(number, said)
    return True


def holder(number: int) -> str:
    """Who holds a lock, as far as the file says so.

    Args:
        number: Its descriptor.

    Returns:
        A few words.
    """
    found = HOLDER.fullmatch(os.pread(number, 200, 0))
    return found[0].decode() if found else "another process"


def _try(number: int, kind: int) -> bool:
    try:
        fcntl.flock(number, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _write(number: int, text: str) -> None:
    # it only serves messages, so a full disk is no reason to stop
    with contextlib.suppress(OSError):
        os.ftruncate(number, 0)
        os.pwrite(number, text.encode(), 0)
