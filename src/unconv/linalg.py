"""Arithmetic with one number per input of a batch."""

from __future__ import annotations

import torch
from torch import Tensor


def norms(batch: Tensor) -> Tensor:
    """Euclidean norm of each input. Shape ``(N, *shape)`` to ``(N,)``."""
    return batch.flatten(1).norm(dim=1)


def column(numbers: Tensor, like: Tensor) -> Tensor:
    """One number per input, shaped to multiply a batch. Shape ``(N,)`` to ``(N, 1, ..., 1)``."""
    return numbers.reshape(-1, *[1] * (like.ndim - 1))


def relative_norm(difference: Tensor, reference: Tensor) -> Tensor:
    """``||difference|| / ||reference||`` of each input; 0 where both vanish.

    Args:
        difference: Shape ``(N, *shape)``.
        reference: Shape ``(N, *shape)``.

    Returns:
        Shape ``(N,)``; infinite where only the reference vanishes.
    """
    error, size = norms(difference), norms(reference)
    return (error / size).where(error > 0, 0.0)


def tiny(like: Tensor) -> float:
    """Smallest normal number of a tensor's type, to divide by where a norm may vanish."""
    return torch.finfo(like.dtype).tiny


def dots(a: Tensor, b: Tensor) -> Tensor:
    """Inner product of each pair of inputs.

    Args:
        a: Shape ``(N, *shape)``.
        b: The same shape.

    Returns:
        Shape ``(N,)``.
    """
    a, b = a.flatten(1), b.flatten(1)
    if a.is_cuda or not len(a):
        return torch.linalg.vecdot(a, b)
    # on the CPU one pass, where vecdot makes two
    return torch.stack([torch.dot(left, right) for left, right in zip(a, b, strict=True)])
