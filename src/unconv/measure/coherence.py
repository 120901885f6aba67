"""Coherence of a filter bank: how alike its filters are, as they stand and at every shift (paper, Table 4)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from unconv.operators import gaussian_like, per_axis

BLOCK_ENTRIES = 2**24  # of one block of inner products: 64 MB in float32


@dataclass(frozen=True)
class Coherence:
    """Largest cosines between the filters of one bank.

    Attributes:
        signed: Maximum of the cosine over pairs of whole filters ``i != j``; Table 4's learned row.
        absolute: Maximum of its magnitude.
        shifted: Maximum of the magnitude over all pairs and all relative shifts that two rows of ``W`` can
            have, also of one filter with its own non-zero shifts: the coherence of the rows of ``W`` away
            from the border.
        signed_pair: A pair ``(i, j)`` that attains ``signed``; ``None`` for a single filter.
        absolute_pair: A pair that attains ``absolute``; ``None`` for a single filter.
        shifted_pair: A pair that attains ``shifted``; ``None`` where no two rows overlap.
        zero_filters: Number of filters that are zero; a pair with one of them has no cosine and does not count.
        shift: Places of the input by which filter ``j`` of that pair stands after filter ``i``, one number
            per axis; ``None`` with ``shifted_pair``.
    """

    signed: float
    absolute: float
    shifted: float
    signed_pair: tuple[int, int] | None
    absolute_pair: tuple[int, int] | None
    shifted_pair: tuple[int, int] | None
    shift: tuple[int, ...] | None
    zero_filters: int = 0


@dataclass(frozen=True)
class CoherencePair:
    """Coherence of a filter bank beside that of Gaussian filters of the same size.

    Attributes:
        learned: Of the filters themselves.
        random: Of the Gaussian ones.
    """

    learned: Coherence
    random: Coherence


def coherence(
    weight: Tensor, groups: int = 1, *, stride: int | Sequence[int] = 1, dilation: int | Sequence[int] = 1
) -> Coherence:
    """Signed, absolute and shift-aware coherence of a filter bank.

    Filters of different groups see different channels, so their inner product is 0. A single filter has no
    pair: its signed and absolute coherence are 0. Pairs with a zero filter have no
    cosine and are left out. Shifts are streamed; no table is held.

    Args:
        weight: Filters. Shape ``(K, M // groups, *kernel)``.
        groups: Number of channel groups.
        stride: Step between shifts, one number or one per axis: rows of ``W`` differ by its multiples only.
        dilation: Step between filter taps, one number or one per axis: other shifts than its multiples bring
            no two taps together.

    Returns:
        The three values, and where they are attained.

    Raises:
        ValueError: If a filter is not finite (its index is named), or the shapes do not fit.
    """
    dims = _dims(weight, groups)
    strides, dilations = _steps(stride, dims, "stride"), _steps(dilation, dims, "dilation")
    unit, zero = _unit_filters(weight)
    undefined = zero.reshape(groups, -1)
    grouped = undefined[:, :, None] | undefined[:, None, :]
    # filters of different groups are orthogonal, so with groups no maximum is below 0
    apart = (0.0, (0, len(weight) // groups)) if groups > 1 else (-math.inf, None)
    signed, absolute = apart, apart
    shifted: tuple[float, tuple[int, int] | None] = (0.0, None)
    at = None
    for shift, start, block in _inner_products(unit, groups, _tap_steps(strides, dilations)):
        if not any(shift):
            itself = block.diagonal(start, 1, 2)
            itself.fill_(-math.inf)
            without = grouped[:, start : start + block.shape[1]]
            block.masked_fill_(without, -math.inf)
            signed = max(signed, _largest(block, start), key=_value)
            block.abs_()
            itself.fill_(-math.inf)
            block.masked_fill_(without, -math.inf)
            absolute = max(absolute, _largest(block, start), key=_value)
            itself.zero_()
            block.masked_fill_(without, 0.0)
        found = _largest(block.abs_(), start)
        if found[0] > shifted[0]:
            shifted, at = found, tuple(s * d for s, d in zip(shift, dilations, strict=True))
    if len(weight) - int(zero.sum()) < 2:
        signed = absolute = (0.0, None)
    # rounding can carry the cosine of two equal filters past 1
    return Coherence(
        signed=min(signed[0], 1.0),
        absolute=min(absolute[0], 1.0),
        shifted=min(shifted[0], 1.0),
        signed_pair=signed[1],
        absolute_pair=absolute[1],
        shifted_pair=shifted[1],
        shift=at,
        zero_filters=int(zero.sum()),
    )


def coherence_pair(
    weight: Tensor,
    seed: int,
    groups: int = 1,
    *,
    stride: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
) -> CoherencePair:
    """Coherence of a filter bank and of Gaussian filters of the same size.

    Args:
        weight: Filters. Shape ``(K, M // groups, *kernel)``.
        seed: Seed of the Gaussian filters.
        groups: Number of channel groups.
        stride: Step between shifts.
        dilation: Step between filter taps.

    Returns:
        Both.
    """
    random = gaussian_like(weight, seed)
    return CoherencePair(
        coherence(weight, groups, stride=stride, dilation=dilation),
        coherence(random, groups, stride=stride, dilation=dilation),
    )


def correlation_table(
    weight: Tensor, groups: int = 1, *, stride: int | Sequence[int] = 1, dilation: int | Sequence[int] = 1
) -> Tensor:
    """Inner products of all pairs of rows of ``W``: its Gram matrix, which depends on relative places only.

    Entry ``[i, j, r + a]`` is the inner product of row ``(i, p)`` with row ``(j, p + a)`` of ``W``, for output
    places ``p`` and ``p + a`` whose patches the border does not crop (all of them on ``operator.full()``). Per
    axis, ``r = dilation * (kernel - 1) // stride`` is the farthest at which two patches overlap. At stride and
    dilation 1 that is ``sum_u w_i(u) w_j(u - a)`` with ``r = kernel - 1``: filter ``i`` against filter ``j``
    moved by ``a`` taps. ``[i, j, r + a] == [j, i, r - a]``; pairs of different groups have 0.

    Args:
        weight: Filters, taken as they are. Shape ``(K, M // groups, *kernel)``.
        groups: Number of channel groups.
        stride: Step between shifts, one number or one per axis.
        dilation: Step between filter taps, one number or one per axis.

    Returns:
        Shape ``(K, K, *(2 r + 1))``, so ``(K, K, *(2 kernel - 1))`` at stride and dilation 1; half precision is
        computed and returned in float32.

    Raises:
        ValueError: If the shapes do not fit.
    """
    dims = _dims(weight, groups)
    strides, dilations = _steps(stride, dims, "stride"), _steps(dilation, dims, "dilation")
    reach = [d * (k - 1) // t for k, t, d in zip(weight.shape[2:], strides, dilations, strict=True)]
    weight = _at_least_single(weight)
    each = len(weight) // groups
    table = weight.new_zeros(groups, each, groups, each, *(2 * r + 1 for r in reach))
    group = torch.arange(groups, device=weight.device)
    for shift, start, block in _inner_products(weight, groups, _tap_steps(strides, dilations)):
        rows = slice(start, start + block.shape[1])
        ahead = [m * d // t for m, t, d in zip(shift, strides, dilations, strict=True)]
        here = tuple(r + a for r, a in zip(reach, ahead, strict=True))
        there = tuple(r - a for r, a in zip(reach, ahead, strict=True))
        table[(group, rows, group, slice(None), *here)] = block
        table[(group, slice(None), group, rows, *there)] = block.transpose(1, 2)
    return table.flatten(2, 3).flatten(0, 1)


def _inner_products(weight: Tensor, groups: int, steps: Sequence[int]) -> Iterator[tuple[tuple[int, ...], int, Tensor]]:
    """Inner products within each group, one shift of the taps and one block of rows at a time.

    Yields ``(shift, start, block)`` for one of every two opposite shifts (the other is the transpose) that are
    multiples of ``steps``. ``block[g, b, j]`` pairs filter ``start + b`` of group ``g`` with filter ``j`` of the
    same group, moved by ``shift``; it is a fresh tensor. Shape ``(groups, rows, K // groups)``.
    """
    kernel = weight.shape[2:]
    grouped = weight.unflatten(0, (groups, -1))
    each = grouped.shape[1]
    rows = max(1, BLOCK_ENTRIES // (groups * each))
    for shift in product(*(range(-((k - 1) // s) * s, k, s) for k, s in zip(kernel, steps, strict=True))):
        if shift < (0,) * len(shift):
            continue
        ahead = tuple(slice(max(m, 0), k + min(m, 0)) for m, k in zip(shift, kernel, strict=True))
        behind = tuple(slice(max(-m, 0), k + min(-m, 0)) for m, k in zip(shift, kernel, strict=True))
        left = grouped[(..., *ahead)].flatten(2)
        right = grouped[(..., *behind)].flatten(2).transpose(1, 2)
        for start in range(0, each, rows):
            yield shift, start, left[:, start : start + rows] @ right


def _steps(value: int | Sequence[int], dims: int, name: str) -> tuple[int, ...]:
    steps = per_axis(value, dims, name)
    if min(steps) < 1:
        raise ValueError(f"{name} is {value}; it counts places, so it is at least 1")
    return steps


def _tap_steps(strides: Sequence[int], dilations: Sequence[int]) -> tuple[int, ...]:
    # the smallest shift in taps that is a whole number of strides in places
    return tuple(t // math.gcd(t, d) for t, d in zip(strides, dilations, strict=True))


def _largest(block: Tensor, start: int) -> tuple[float, tuple[int, int] | None]:
    """The largest entry of a block of ``_inner_products``."""
    _, rows, each = block.shape
    where = int(block.argmax())
    group, row, column = where // (rows * each), where // each % rows, where % each
    return block.flatten()[where].item(), (group * each + start + row, group * each + column)


def _value(found: tuple[float, tuple[int, int] | None]) -> float:
    return found[0]


def _unit_filters(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the filters at unit norm, and which of them are zero and stay so."""
    weight = _at_least_single(weight)
    norms = weight.flatten(1).norm(dim=1)
    bad = ~torch.isfinite(norms)
    if bad.any():
        first = int(bad.nonzero()[0])
        raise ValueError(f"filter {first} has norm {norms[first].item():g}; cosines need finite filters")
    largest = weight.flatten(1).abs().amax(1)
    column = (-1, *[1] * (weight.ndim - 1))
    # divided by its largest entry first, and in float64: squares of small entries vanish
    scaled = weight.double() / torch.where(largest > 0, largest, 1.0).double().reshape(column)
    length = scaled.flatten(1).norm(dim=1).clamp_min(torch.finfo(torch.float64).tiny)
    return (scaled / length.reshape(column)).to(weight.dtype), largest == 0


def _at_least_single(weight: Tensor) -> Tensor:
    return weight.detach().float() if weight.dtype in {torch.float16, torch.bfloat16} else weight.detach()


def _dims(weight: Tensor, groups: int) -> int:
    dims = weight.ndim - 2
    if not 1 <= dims <= 3 or not weight.dtype.is_floating_point:
        raise ValueError(
            f"filters have shape {tuple(weight.shape)}, {weight.dtype}; "
            "expected floating-point (K, M // groups, *kernel), 1-D to 3-D"
        )
    if groups < 1 or len(weight) % groups:
        raise ValueError(f"{len(weight)} filters do not divide into {groups} groups; use a divisor")
    return dims
