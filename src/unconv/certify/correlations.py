"""Correlations of the rows of a convolution, with their rounding errors, and the largest eigenvalue they can have.

The Gram matrix of a convolution on a map is block Toeplitz; its symbol is a Hermitian matrix per frequency, and every
eigenvalue lies below the largest one of those.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unconv.linalg import norms
from unconv.measure.coherence import correlation_table
from unconv.operators import ConvOperator

UNIT = 2.0**-53  # largest relative error of one float64 operation
CHUNK = 2**25  # float64 entries of one intermediate: 256 MB
DENSE_EIGENVALUES = 32  # channels up to which the eigenvalues of every symbol are computed, not estimated
FINE_GRID = 160  # channels up to which 64 frequencies per axis are affordable, and a finer choice of the level


@dataclass(frozen=True)
class Table:
    """Correlations of the rows of ``W``."""

    values: Tensor  # at every shift; shape (K, K, *shifts), float64
    error: Tensor  # how far off each may be, at any shift; shape (K, K)

    @property
    def reach(self) -> tuple[int, ...]:
        """The largest shift on each axis."""
        return tuple((n - 1) // 2 for n in self.values.shape[2:])

    @property
    def squares(self) -> Tensor:
        """Squared norms of the filters. Shape ``(K,)``."""
        return self.values.diagonal(dim1=0, dim2=1)[*self.reach]


def table_of(operator: ConvOperator) -> Table:
    """The correlation table of an operator, with its rounding error: ``gamma_n |x| |y|`` (Higham 2002, 3.1)."""
    # in any order of the sum; twice the terms and some more cover the rounding of the norms themselves
    sizes = norms(operator.weight)
    error = _gamma(2 * operator.weight[0].numel() + 8) * torch.outer(sizes, sizes)
    return Table(correlation_table(operator), error)


def largest_eigenvalue(table: Table, spatial: tuple[int, ...], *, nonnegative: bool) -> float:
    """Bound the largest eigenvalue of the block Toeplitz matrix of a table on a map."""
    channels = len(table.values)
    row_sums = table.values.flatten(2).abs().sum(2).sum(1).max().item()
    # of the table itself, and of the sums and the angles behind the symbol, as a bound on the spectral norm
    shifts = table.values[0, 0].numel()
    error = table.error.sum(1).max().item() * shifts + _gamma(shifts + 64) * 4 * row_sums
    sizes, factor = _grid(table, spatial)
    parts = list(_symbols(table, spatial)) if 2 * math.prod(sizes) * channels**2 <= CHUNK else None
    top = -math.inf
    for part in parts or _symbols(table, spatial):
        guess = _estimates(part)
        if channels > DENSE_EIGENVALUES:
            likely = guess.topk(min(2, len(guess))).indices
            likely = likely[guess[likely] > 0.97 * top]
            guess = torch.linalg.eigvalsh(part[likely])[:, -1] if len(likely) else guess
        top = max(top, guess.max().item())
    # room to spare where the largest eigenvalue may have been missed: a failed proof costs more than it
    bound = top + (1e-9 if channels <= DENSE_EIGENVALUES else 1e-3) * (abs(top) + 1e-9)
    for part in parts or _symbols(table, spatial):
        bound = _raise_to_bound(part, bound)
    # the factor is for polynomials of one sign: below them lies -error, or minus the largest row sum
    floor = error if nonnegative else row_sums + error
    return outward((bound + error + floor) * factor - floor, channels)


def estimated_eigenvalue(table: Table, spatial: tuple[int, ...]) -> float:
    """The largest eigenvalue of the symbol on a rough grid: from below, and not certified."""
    return max(_estimates(part).max().item() for part in _symbols(table, spatial, rough=True))


def _gamma(operations: int) -> float:
    return operations * UNIT / (1 - operations * UNIT)


def outward(value: float, terms: int) -> float:
    """Enlarge a sum of non-negative numbers, and a few more operations, by all that rounding can take."""
    return value + (abs(value) + 2) * _gamma(2 * terms + 16)


def _grid(table: Table, spatial: tuple[int, ...], *, rough: bool = False) -> tuple[list[int], float]:
    """Choose the frequencies on which the symbol is looked at.

    On ``n + r`` frequencies the map's Toeplitz matrix is a part of the circulant one, and the factor is 1. On
    ``N`` frequencies, a real trigonometric polynomial of degree ``r`` stays above ``cos(r t)`` times its maximum
    at a distance ``t <= pi / r`` of it (M. Riesz), so the grid, never farther than ``pi / N``, misses a factor
    of at most ``1 / cos(pi r / N)`` per axis (Ehlich and Zeller 1964).
    """
    sizes, factor = [], 1.0
    fewest = 16 if rough else 64 if len(table.values) <= FINE_GRID else 32
    for far, n in zip(table.reach, spatial, strict=True):
        coarse = max(fewest, (4 if rough else 16) * far)
        if far and n + far > coarse:
            sizes.append(coarse)
            factor /= math.cos(math.pi * far / coarse)
        else:
            sizes.append(n + far if far else 1)
    return sizes, factor * (1 + 16 * UNIT)


def _symbols(table: Table, spatial: tuple[int, ...], *, rough: bool = False) -> Iterator[Tensor]:
    """The symbol of the Gram matrix, ``sum_a T(a) exp(-i w a)``, on the grid; chunks ``(frequencies, K, K)``."""
    sizes, _ = _grid(table, spatial, rough=rough)
    channels = len(table.values)
    shifts = points(torch.arange(-r, r + 1) for r in table.reach)
    for part in half_grid(sizes).split(max(1, CHUNK // 4 // channels**2)):
        yield transfer(table.values.reshape(channels**2, -1), shifts, part, sizes).reshape(-1, channels, channels)


def points(axes: Iterable[Tensor]) -> Tensor:
    """All combinations of one number of each axis. Shape ``(points, axes)``."""
    axes = tuple(axes)
    return torch.cartesian_prod(*axes).reshape(-1, len(axes))


def half_grid(sizes: Sequence[int]) -> Tensor:
    """The frequencies of a grid but for conjugates, which a real sum does not need. Shape ``(frequencies, axes)``."""
    return points(torch.arange(n) for n in (*sizes[:-1], sizes[-1] // 2 + 1))


def transfer(coefficients: Tensor, places: Tensor, waves: Tensor, sizes: Sequence[int]) -> Tensor:
    """``sum_a c_a exp(-i w a)`` for rows of real coefficients ``(rows, places)``. Shape ``(frequencies, rows)``."""
    # whole turns are taken off in integers, so that the angles carry the error of one division and product only
    angle = torch.zeros(len(waves), len(places), dtype=torch.float64)
    for axis, n in enumerate(sizes):
        angle += (waves[:, None, axis] * places[:, axis] % n).double() * (2 * math.pi / n)
    return torch.complex(angle.cos() @ coefficients.T, -(angle.sin() @ coefficients.T))


def _estimates(symbols: Tensor) -> Tensor:
    # largest eigenvalue of each Hermitian matrix, by the power method where there are many channels
    channels = symbols.shape[1]
    if channels <= DENSE_EIGENVALUES:
        return torch.linalg.eigvalsh(symbols)[:, -1]
    single = symbols.to(torch.complex64)
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(channels, 8, generator=generator).to(single).expand(len(single), -1, -1)
    for _ in range(6):
        v = torch.linalg.qr(single @ v).Q
    return torch.linalg.eigvalsh(v.mH @ single @ v)[:, -1].double()


def _raise_to_bound(symbols: Tensor, bound: float) -> float:
    """Raise a bound until it is proven to lie above all eigenvalues of all the matrices.

    ``c I - A`` is positive definite if Cholesky's factorisation of ``(c - e) I - A`` in floating point runs
    through, ``e = gamma_(n+1) / (1 - gamma_(n+1)) tr`` (Rump 2006); eight times that covers complex arithmetic
    (each operation errs by less than six real ones, Higham 2002, lemma 3.5).
    """
    channels = symbols.shape[1]
    traces = symbols.diagonal(dim1=1, dim2=2).real.abs().sum(1).max().item()
    identity = torch.eye(channels, dtype=symbols.dtype)
    slack = 8 * _gamma(channels + 4)
    while True:
        shift = bound - slack * (channels * abs(bound) + traces) - 2 * UNIT * abs(bound)
        _, info = torch.linalg.cholesky_ex(shift * identity - symbols)
        failed = info.nonzero().flatten()
        if not len(failed):
            return bound
        found = torch.linalg.eigvalsh(symbols[failed[:4]])[:, -1].max().item()
        bound = max(found, bound) * (1 + 1e-9) + 4 * slack * (channels * abs(bound) + traces) + 1e-12
