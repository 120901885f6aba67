"""How many images fit into memory at a time: found out when they do not."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from unconv.errors import UnconvError

TOO_LARGE = "there is not enough memory for this image alone; give a smaller --size, or use a larger machine"
SIGNS = ("can't allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED")


@dataclass
class MaxBatchSize:
    """MaxBatchSize for a batch.

    Attributes:
        most: Largest number of images to take at a time; as many as there are where ``None``.
    """

    most: int | None = None

    def shrink(self, most: int) -> None:
        """Take fewer images at a time from now on; the first time that is said on stderr.

        Args:
            most: How many, at least 1.
        """
        if self.most is None:
            print(
                f"note: out of memory; the run goes on with {most} images at a time, and fewer where that is too many",
                file=sys.stderr,
                flush=True,
            )
        self.most = most if self.most is None else min(self.most, most)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there was no memory left, on a GPU or for torch's allocator on the CPU.

    Args:
        error: The error.

    Returns:
        Whether it does.
    """
    if isinstance(error, torch.cuda.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS)


@contextmanager
def memory_for(what: str) -> Iterator[None]:
    """Work that cannot be done on less at a time.

    Args:
        what: Names it.

    Yields:
        Nothing.

    Raises:
        UnconvError: In place of an error that says that there was no memory left.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise UnconvError(f"there is not enough memory for {what}; use a larger machine, or --device cpu") from None
