"""What is assumed about inputs where the code leaves them open: prior covariances, which precondition the solver."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Prior = Literal["smooth", "gaussian"]
PRIORS: tuple[Prior, ...] = ("smooth", "gaussian")
CORNER_FREQUENCY = 0.1  # cycles per place, from which on power falls
SHRINKAGE = 0.3  # of an estimated covariance towards the identity


# A preconditioner is a positive definite map C on inputs, the prior covariance: <x, C^-1 x> measures distance. Inputs
# have the shape (N, M, *spatial); ``at`` gives that of some of them.


@dataclass(frozen=True)
class Euclidean:
    """``C = 1``: every input is as likely in all directions."""

    def apply(self, x: Tensor) -> Tensor:
        """Return ``x``."""
        return x

    def at(self, rows: Tensor) -> Euclidean:
        """Return itself."""
        return self


@dataclass(frozen=True)
class Smooth:
    """Neighbouring places are alike: power falls with spatial frequency, ``(1 + (f / f0)^2)^-p`` along each axis."""

    # diagonal in the cosine basis (even continuation at the border), so each axis is one symmetric matrix (n, n)
    axes: tuple[Tensor, ...]

    @staticmethod
    def of(spatial: Sequence[int], power: float, like: Tensor) -> Smooth:
        """Return the preconditioner on maps of one size; power 0.5 is that of the amplitudes of feature maps."""
        axes = []
        for n in spatial:
            place = torch.arange(n, dtype=torch.float64)
            basis = torch.cos(math.pi / n * place.unsqueeze(1) * (place + 0.5))
            basis /= basis.norm(dim=1, keepdim=True)
            spectrum = (1 + (place / (2 * n * CORNER_FREQUENCY)) ** 2) ** -power
            axes.append((basis.T * spectrum @ basis).to(like))
        return Smooth(tuple(axes))

    def apply(self, x: Tensor) -> Tensor:
        """Return each axis filtered. Shape ``(N, M, *spatial)``."""
        for axis, matrix in enumerate(self.axes, start=2):
            if axis == x.ndim - 1:
                x = x @ matrix
            elif axis == x.ndim - 2:  # the same as below without moving numbers
                x = matrix.mT @ x
            else:
                x = (x.transpose(axis, -1) @ matrix).transpose(axis, -1)
        return x

    def at(self, rows: Tensor) -> Smooth:
        """Return itself: it is the same for all inputs."""
        return self


@dataclass(frozen=True)
class Gaussian:
    """Channels vary together: a covariance of the channels of each input, shape ``(N, M, M)``, and one over places."""

    channels: Tensor
    places: Preconditioner

    @staticmethod
    def from_estimate(x: Tensor, places: Preconditioner) -> Gaussian:
        """Return the covariance of a first estimate's channels over places, shrunk to the identity, of unit mean."""
        flat = x.flatten(2)
        centred = flat - flat.mean(2, keepdim=True)
        covariance = centred @ centred.transpose(1, 2)
        scale = covariance.diagonal(dim1=1, dim2=2).mean(1).reshape(-1, 1, 1)
        identity = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
        covariance = torch.where(scale > 0, covariance / scale, identity)
        return Gaussian((covariance + SHRINKAGE * identity) / (1 + SHRINKAGE), places)

    def apply(self, x: Tensor) -> Tensor:
        """Return the channels of each place mixed, then the places of each channel. Shape ``(N, M, *spatial)``."""
        return self.places.apply((self.channels @ x.flatten(2)).reshape(x.shape))

    def at(self, rows: Tensor) -> Gaussian:
        """Return the preconditioner of some of the inputs. ``rows``: indices, int64."""
        return Gaussian(self.channels[rows], self.places.at(rows))


Preconditioner = Euclidean | Smooth | Gaussian
