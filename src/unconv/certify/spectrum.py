"""Singular values of a convolution: exact by Fourier transform where it wraps around, else between two bounds.

A convolution that wraps around its map is block diagonal in the Fourier basis: with stride ``s``, frequency ``w`` of
the coarse grid sees the ``s`` fine frequencies that alias to it, and its block is ``A(w) = [T(v)]_v / sqrt(s)``, ``T``
being the transfer function of the filters (Sedghi et al. 2019; Senderovich et al. 2022 for strides). A convolution
with zero padding, or none, is a part of such a matrix on a larger map, which bounds its singular values and its rank.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from unconv.certify.correlations import CHUNK, half_grid, largest_eigenvalue, points, table_of, transfer
from unconv.certify.stability import certify
from unconv.certify.supports import group_operators
from unconv.errors import UsageError
from unconv.operators import ConvOperator, check_convolution

EPS = torch.finfo(torch.float64).eps
WHOLE = 2**21  # entries of a matrix that is decomposed whole
MOST_WORK = 2e11  # multiply-adds of a decomposition at all frequencies that only serves bounds

Interval = tuple[float, float]
Count = tuple[int, int]


@dataclass(frozen=True)
class Spectrum:
    """Extreme singular values, rank and null space of a linear map ``W``, each between two bounds."""

    shape: tuple[int, int]  # outputs and inputs
    largest: Interval  # largest singular value
    smallest: Interval  # smallest of its min(shape) singular values; 0 where its rows and its columns are dependent
    rank: Count  # singular values above rounding, max(shape) eps times the largest
    # "fft" and "dense": exact up to rounding; "bounds": proven up to rounding; "bounds, chance": the lower end of
    # smallest, and what follows from it for rank and nullity, may fail with probability 1e-9 over a random start
    how: str

    @property
    def nullity(self) -> Count:
        """Dimensions of the input that ``W`` does not see."""
        return self.shape[1] - self.rank[1], self.shape[1] - self.rank[0]

    def __str__(self) -> str:
        values = f"singular values from {_words(self.smallest)} to {_words(self.largest)}"
        unseen = _words(self.nullity)
        return f"{values}; rank {_words(self.rank)}; {unseen} of {self.shape[1]:,} input dimensions unseen ({self.how})"


def spectrum(operator: ConvOperator, *, circular: bool = False, whole: int = WHOLE, steps: int = 200) -> Spectrum:
    """Extreme singular values, rank and null space of a convolution, with any stride, dilation and groups.

    Where the map wraps around (``circular``; the padding is then a shift, and does not matter), all singular values
    are found; UsageError if it is not a whole number of strides. Otherwise matrices of at most ``whole`` entries are
    decomposed; for others

    - ``W`` is a part of the convolution that wraps around on a map with room for its padding, so no singular value is
      above that one's largest; its rank is less by at most one for every row or column cut off, and at least the
      number of rows (or columns) that the border leaves whole, where that one's are independent;
    - a norm that is attained bounds the largest from below;
    - where nothing is cropped (no padding and no more outputs than inputs, or padding by whole filters and no fewer
      outputs), the smallest is at least that of the convolution that wraps around; otherwise at most ``steps`` steps of
      Lanczos bound it from above, and from below but for a chance of 1e-9 (``unconv.certify.stability``).

    Example:
        >>> import torch
        >>> from unconv import ConvOperator
        >>> from unconv.certify.spectrum import spectrum
        >>> difference = ConvOperator(torch.tensor([[[-1.0, 1.0]]]), (1, 8))
        >>> print(spectrum(difference, circular=True))
        singular values from 0 to 2; rank 7; 1 of 8 input dimensions unseen (fft)
    """
    check_convolution(operator)
    operator = operator.to(torch.float64).to("cpu")
    if circular:
        values = circular_singular_values(operator)
        inputs = math.prod(operator.input_shape)
        outputs = len(operator.weight) * math.prod(
            n // s for n, s in zip(operator.input_shape[1:], operator.stride, strict=True)
        )
        return _of_values(values, (outputs, inputs), "fft")
    shape = (math.prod(operator.output_shape), math.prod(operator.input_shape))
    parts = group_operators(operator)
    if math.prod(shape) <= whole * operator.groups**2:
        return _of_values(torch.cat([torch.linalg.svdvals(part.to_dense()) for part in parts]), shape, "dense")
    return _bounds(operator, parts, shape, steps)


def circular_singular_values(operator: ConvOperator, spatial: tuple[int, ...] | None = None) -> Tensor:
    """All singular values, float64, of a convolution whose map, of its own size or another, wraps around."""
    sizes = operator.input_shape[1:] if spatial is None else spatial
    for n, stride in zip(sizes, operator.stride, strict=True):
        if n % stride:
            raise UsageError(f"a map of {tuple(sizes)} does not wrap around at stride {operator.stride}; cut it to one")
    found = []
    for symbols, times in _symbols(operator, sizes):
        values = torch.linalg.svdvals(symbols).flatten(1)
        found.append(values.repeat_interleave(times, dim=0).flatten())
    return torch.cat(found)


def _symbols(operator: ConvOperator, sizes: tuple[int, ...]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield ``A(w)``, ``(frequencies, groups, K / groups, M / groups * aliases)``, and how often each counts."""
    weight = operator.weight.double()
    filters, shared, *kernel = weight.shape
    taps = points(torch.arange(k) * d for k, d in zip(kernel, operator.dilation, strict=True))
    coarse = [n // s for n, s in zip(sizes, operator.stride, strict=True)]
    waves = half_grid(coarse)
    # of w and -w one is left out
    times = torch.where((waves[:, -1] == 0) | (2 * waves[:, -1] == coarse[-1]), 1, 2)
    aliases = points(torch.arange(s) * n for s, n in zip(operator.stride, coarse, strict=True))
    coefficients = weight.reshape(filters * shared, -1)
    step = max(1, CHUNK // 16 // (filters * shared * len(aliases)))
    for part, count in zip(waves.split(step), times.split(step), strict=True):
        found = [transfer(coefficients, taps, part + alias, sizes) for alias in aliases]
        blocks = [one.reshape(len(part), operator.groups, -1, shared) for one in found]
        yield torch.cat(blocks, 3) / math.sqrt(len(aliases)), count


def _of_values(values: Tensor, shape: tuple[int, int], how: str) -> Spectrum:
    top, bottom = values.max().item(), values.min().item()
    cut = max(shape) * EPS * top
    # what lies near the cut can be rounding or not
    sure, perhaps = int((values > 8 * cut).sum()), int((values > cut / 8).sum())
    bottom = bottom if bottom > cut else 0.0
    largest, smallest = ((max(end - cut, 0.0), end + cut) for end in (top, bottom))
    return Spectrum(shape, largest, smallest, (sure, perhaps), how)


def _bounds(operator: ConvOperator, parts: list[ConvOperator], shape: tuple[int, int], steps: int) -> Spectrum:
    stride = operator.stride
    padded = [n + 2 * p for n, p in zip(operator.input_shape[1:], operator.padding, strict=True)]
    around = tuple(-(-n // s) * s for n, s in zip(padded, stride, strict=True))
    width = operator.weight.shape[1] * math.prod(stride)
    height = len(operator.weight) // operator.groups
    places = math.prod(n // s for n, s in zip(around, stride, strict=True))
    short = min(shape)
    rank, low, how = (0, short), 0.0, "bounds"
    if 16 * places * operator.groups * height * width * min(height, width) <= MOST_WORK:
        values = circular_singular_values(operator, around)
        high = values.max().item()
        slack = max(len(values), height, width) * EPS * high
        high += slack
        wrapped = int((values > slack).sum())
        # a row or a column that is cut off takes at most one from the rank
        cut_rows = len(operator.weight) * places - shape[0]
        cut_columns = operator.input_shape[0] * math.prod(around) - shape[1]
        least = wrapped - cut_rows - cut_columns
        if values.min().item() > slack:
            least = max(least, _uncropped(operator, rows=height <= width))
        rank = (min(max(0, least), short), min(short, wrapped))
        whole_rows = not any(operator.padding) and height <= width
        whole_columns = all(p >= r for p, r in zip(operator.padding, operator.spread, strict=True)) and height >= width
        if whole_rows or whole_columns:
            low = max(values.min().item() - slack, 0.0)
    else:
        high = max(
            math.sqrt(largest_eigenvalue(table_of(p.full()), p.output_shape[1:], nonnegative=True)) for p in parts
        )
    attained = max(part.norm() for part in parts) * (1 - short * EPS)
    found = [certify(part, steps=steps, seek=0, whole=0) for part in parts]
    likely = min(one.probabilistic_lower_bound for one in found)
    if likely > low:
        low, how = likely, "bounds, chance"
    if low > 0:
        rank = (short, short)
    smallest = (low, max(low, min(one.sigma for one in found) + 16 * EPS * high))
    return Spectrum(shape, (min(attained, high), high), smallest, rank, how)


def _uncropped(operator: ConvOperator, *, rows: bool) -> int:
    """Return how many rows (columns) the border does not crop: as independent as where the map wraps around."""
    count = len(operator.weight) if rows else operator.input_shape[0]
    inputs, outputs = operator.input_shape[1:], operator.output_shape[1:]
    for n, out, spread, s, p in zip(inputs, outputs, operator.spread, operator.stride, operator.padding, strict=True):
        if rows:  # patches q s - p .. q s - p + spread that lie inside the input
            inside = min(out - 1, (n - 1 - spread + p) // s) - -(-p // s) + 1
        else:  # inputs i that no output q < 0 or q >= out would see
            inside = min(n, out * s - p) - max(0, spread - p - s + 1)
        count *= max(0, inside)
    return count


def _words(ends: Interval | Count) -> str:
    low, high = (f"{end:,}" if isinstance(end, int) else f"{end:.4g}" if end > 1e-12 else "0" for end in ends)
    return low if low == high else f"{low} .. {high}"
