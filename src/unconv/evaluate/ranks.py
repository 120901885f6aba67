"""Which of the processes of one job this is, as ``torchrun`` says it in the environment."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass

from unconv.errors import UsageError

MOST = 100_000
# what launchers set to the same value in all processes of a job, and to another one in another job
LAUNCH = ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT", "SLURM_JOB_ID", "SLURM_STEP_ID")


@dataclass(frozen=True)
class Rank:
    """One process of a job.

    Attributes:
        number: Its rank, 0 first.
        count: Number of processes.
        local: Its rank among those of its machine.
        job: What tells the job from others; empty where there is one process only.
    """

    number: int = 0
    count: int = 1
    local: int = 0
    job: str = ""

    @property
    def alone(self) -> bool:
        """Whether there is no other process."""
        return self.count == 1

    @property
    def leads(self) -> bool:
        """Whether this process prints and merges."""
        return self.number == 0

    def __str__(self) -> str:
        return f"rank {self.number} of {self.count}"


ALONE = Rank()


def rank_from(environ: Mapping[str, str] | None = None) -> Rank:
    """The rank that the environment names: ``RANK``, ``WORLD_SIZE``, ``LOCAL_RANK``.

    Args:
        environ: The environment; that of the process where ``None``.

    Returns:
        The rank; the only one where nothing is set.

    Raises:
        UsageError: If the variables are no numbers, or do not fit together.
    """
    environ = os.environ if environ is None else environ
    set_ = [name for name in ("RANK", "WORLD_SIZE") if name in environ]
    if not set_:
        return ALONE
    if len(set_) == 1:
        raise UsageError(f"{set_[0]} is set without {({'RANK', 'WORLD_SIZE'} - {*set_}).pop()}; set both, or neither")
    count = _number(environ, "WORLD_SIZE", 1, MOST)
    number = _number(environ, "RANK", 0, count - 1)
    local = _number(environ, "LOCAL_RANK", 0, MOST) if "LOCAL_RANK" in environ else number
    if count == 1:
        return ALONE
    launch = "\n".join([str(count), *(environ.get(name, "") for name in LAUNCH)])
    job = hashlib.sha256(launch.encode(errors="surrogateescape")).hexdigest()[:8]
    return Rank(number, count, local, job)


def _number(environ: Mapping[str, str], name: str, least: int, most: int) -> int:
    text = environ[name]
    if not (text.isascii() and text.isdigit() and len(text) < 10 and least <= int(text) <= most):
        most_words = f"below WORLD_SIZE, which is {most + 1}" if name == "RANK" else f"at most {most}"
        raise UsageError(f"{name} is {text[:40]!r}; expected a whole number, at least {least} and {most_words}")
    return int(text)
