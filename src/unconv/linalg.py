"""Arithmetic with one number per input of a batch."""

from __future__ import annotations

import torch
from torch import Tensor


def norms(batch: Tensor) -> Tensor:
    """Return the Euclidean norm of each input. Shape ``(N, *shape)`` to ``(N,)``."""
    return batch.flatten(1).norm(dim=1)


def column(numbers: Tensor, like: Tensor) -> Tensor:
    """Return one number per input, shaped to multiply a batch. Shape ``(N,)`` to ``(N, 1, ..., 1)``."""
    return numbers.reshape(-1, *[1] * (like.ndim - 1))


def relative_norm(difference: Tensor, reference: Tensor) -> Tensor:
    """Return ``||difference|| / ||reference||`` of each input, shape ``(N,)``; 0 where both vanish, else infinite."""
    error, size = norms(difference), norms(reference)
    if not reference.is_cuda and not (size.isfinite() & (size > 0)).all():
        # squares of entries near 1e25 or 1e-25 leave float32
        error, size = norms(difference.double()), norms(reference.double())
    return (error / size).where(error != 0, 0.0).to(reference.dtype)  # NaN stays NaN


def tiny(like: Tensor) -> float:
    """Return the smallest normal number of a tensor's type, to divide by where a norm may vanish."""
    return torch.finfo(like.dtype).tiny


def dots(a: Tensor, b: Tensor) -> Tensor:
    """Return the inner product of each pair of inputs. Two tensors of shape ``(N, *shape)`` to ``(N,)``."""
    a, b = a.flatten(1), b.flatten(1)
    if a.is_cuda or not len(a):
        return torch.linalg.vecdot(a, b)
    # on the CPU one pass, where vecdot makes two
    return torch.stack([torch.dot(left, right) for left, right in zip(a, b, strict=True)])
