"""Arithmetic on long vectors piece by piece, so that a chain of operations finds its numbers in the cache."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

BLOCK = 2**16  # entries: four float32 vectors of this length fill the second-level cache of one core


def in_blocks(batch: Tensor) -> bool:
    """Whether pieces pay: on the CPU. A GPU would start one kernel per piece."""
    return batch.device.type == "cpu"


def blocks(*batches: Tensor) -> Iterator[tuple[int, tuple[Tensor, ...]]]:
    """Pieces of each input, all vectors cut at the same places.

    Args:
        *batches: Of one shape ``(N, *shape)``; those that are written to are contiguous, so that pieces are views.

    Yields:
        The number of the input, and a piece of each batch, of one axis.
    """
    flat = [batch.flatten(1) for batch in batches]
    for row in range(len(flat[0])):
        yield from ((row, piece) for piece in zip(*(vectors[row].split(BLOCK) for vectors in flat), strict=True))
