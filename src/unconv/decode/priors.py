"""What is assumed about inputs where the code leaves them open: prior covariances, which precondition the solver."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

Prior = Literal["smooth", "gaussian"]
CORNER_FREQUENCY = 0.1  # cycles per place, from which on power falls
SHRINKAGE = 0.3  # of an estimated covariance towards the identity


@dataclass(frozen=True)
class Covariance:
    """A positive definite map ``C`` on inputs ``(N, M, *spatial)``: ``<x, C^-1 x>`` measures distance.

    Without parts it is the identity: every input is as likely in all directions.
    """

    axes: tuple[Tensor, ...] = ()  # over places, one symmetric matrix (n, n) for each axis
    channels: Tensor | None = None  # of the channels of each input; shape (N, M, M)

    def apply(self, x: Tensor) -> Tensor:
        """Return ``C x``: the channels of each place mixed, then the places of each channel."""
        if self.channels is not None:
            x = (self.channels @ x.flatten(2)).reshape(x.shape)
        for axis, matrix in enumerate(self.axes, start=2):
            # along the last axis but one the same without moving numbers
            x = matrix.mT @ x if axis == x.ndim - 2 else (x.transpose(axis, -1) @ matrix).transpose(axis, -1)
        return x

    def at(self, rows: Tensor) -> Covariance:
        """Return the covariance of some of the inputs. ``rows``: indices, int64."""
        return self if self.channels is None else replace(self, channels=self.channels[rows])


def smooth(spatial: Sequence[int], power: float, like: Tensor) -> Covariance:
    """Neighbouring places are alike: power falls with spatial frequency, ``(1 + (f / f0)^2)^-p`` along each axis.

    A ``power`` of 0.5 is that of the amplitudes of feature maps.
    """
    axes = []
    for n in spatial:
        # diagonal in the cosine basis (even continuation at the border)
        place = torch.arange(n, dtype=torch.float64)
        basis = torch.cos(math.pi / n * place.unsqueeze(1) * (place + 0.5))
        basis /= basis.norm(dim=1, keepdim=True)
        spectrum = (1 + (place / (2 * n * CORNER_FREQUENCY)) ** 2) ** -power
        axes.append((basis.T * spectrum @ basis).to(like))
    return Covariance(tuple(axes))


def with_channels(places: Covariance, estimate: Tensor) -> Covariance:
    """Add that of a first estimate's channels over places, shrunk to the identity, of unit mean."""
    flat = estimate.flatten(2)
    centred = flat - flat.mean(2, keepdim=True)
    covariance = centred @ centred.transpose(1, 2)
    scale = covariance.diagonal(dim1=1, dim2=2).mean(1).reshape(-1, 1, 1)
    identity = torch.eye(estimate.shape[1], dtype=estimate.dtype, device=estimate.device)
    covariance = torch.where(scale > 0, covariance / scale, identity)
    return replace(places, channels=(covariance + SHRINKAGE * identity) / (1 + SHRINKAGE))
