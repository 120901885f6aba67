"""Coherence of a filter bank: how alike its filters are, as they stand and at every shift (paper, Table 4)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from unconv.errors import UsageError
from unconv.linalg import norms
from unconv.operators import ConvOperator, check_convolution

BLOCK_ENTRIES = 2**24  # of one block of inner products: 64 MB in float32


@dataclass(frozen=True)
class Coherence:
    """Largest cosines between the filters of one bank; pairs with a filter of zeros have none and do not count."""

    signed: float  # maximum of the cosine over pairs of whole filters i != j (Table 4's learned row); 0 without a pair
    absolute: float  # maximum of its magnitude
    # maximum of the magnitude over all pairs and all relative shifts that two rows of W can have, also of one
    # filter with its own non-zero shifts: the coherence of the rows of W away from the border
    shifted: float
    zero_filters: int = 0  # number of filters that are zero


def coherence(operator: ConvOperator) -> Coherence:
    """Signed, absolute and shift-aware coherence of a filter bank; shifts are streamed, no table is held.

    The size of the operator's input does not matter. Filters of different groups see different channels, so their
    cosine is 0. UsageError names a filter that is not finite.
    """
    check_convolution(operator)
    operator = at_least_single(operator)
    sizes = norms(operator.weight)
    bad = (~torch.isfinite(sizes)).nonzero()
    if len(bad):
        raise UsageError(f"filter {int(bad[0])} has norm {sizes[bad[0]].item():g}; cosines need finite filters")
    zero = (operator.weight == 0).flatten(1).all(1).reshape(operator.groups, -1)
    # filters of different groups are orthogonal, so with groups no maximum is below 0
    signed, absolute, shifted = 0.0 if operator.groups > 1 else -math.inf, 0.0, 0.0
    for shift, start, block in _inner_products(operator.normalised()):
        if not any(shift):
            itself = block.diagonal(start, 1, 2)
            itself.fill_(-math.inf)
            # with a filter of zeros there is no cosine, which only the signed maximum can tell from 0
            without = zero[:, start : start + block.shape[1], None] | zero[:, None, :]
            signed = max(signed, block.masked_fill(without, -math.inf).max().item())
            itself.zero_()
            absolute = max(absolute, block.abs().max().item())
        shifted = max(shifted, block.abs_().max().item())
    signed = 0.0 if signed == -math.inf else signed
    # rounding can carry the cosine of two equal filters past 1
    return Coherence(min(signed, 1.0), min(absolute, 1.0), min(shifted, 1.0), int(zero.sum()))


def correlation_table(operator: ConvOperator) -> Tensor:
    """Inner products of all pairs of rows of ``W``: its Gram matrix, which depends on relative places only.

    Entry ``[i, j, r + a]`` is the inner product of row ``(i, p)`` with row ``(j, p + a)`` of ``W``, for output
    places ``p`` and ``p + a`` whose patches the border does not crop (all of them on ``operator.full()``). Per
    axis, ``r = dilation * (kernel - 1) // stride`` is the farthest at which two patches overlap. At stride and
    dilation 1 that is ``sum_u w_i(u) w_j(u - a)`` with ``r = kernel - 1``: filter ``i`` against filter ``j``
    moved by ``a`` taps. ``[i, j, r + a] == [j, i, r - a]``; pairs of different groups have 0. Shape
    ``(K, K, *(2 r + 1))``; half precision becomes float32.
    """
    operator = at_least_single(operator)
    weight = operator.weight
    groups, each = operator.groups, len(weight) // operator.groups
    steps = list(zip(operator.stride, operator.dilation, strict=True))
    reach = operator.reach
    table = weight.new_zeros(groups, each, groups, each, *(2 * r + 1 for r in reach))
    group = torch.arange(groups, device=weight.device)
    for shift, start, block in _inner_products(operator):
        rows = slice(start, start + block.shape[1])
        ahead = [m * d // t for m, (t, d) in zip(shift, steps, strict=True)]
        here = tuple(r + a for r, a in zip(reach, ahead, strict=True))
        there = tuple(r - a for r, a in zip(reach, ahead, strict=True))
        table[(group, rows, group, slice(None), *here)] = block
        table[(group, slice(None), group, rows, *there)] = block.transpose(1, 2)
    return table.flatten(2, 3).flatten(0, 1)


def _inner_products(operator: ConvOperator) -> Iterator[tuple[Sequence[int], int, Tensor]]:
    """Inner products within each group, one shift of the taps and one block of rows at a time.

    Yields ``(shift, start, block)`` for one of every two opposite shifts, the other being the transpose.
    ``block[g, b, j]`` pairs filter ``start + b`` of group ``g`` with filter ``j`` of the same group, moved by
    ``shift``; it is a fresh tensor. Shape ``(groups, rows, K // groups)``.
    """
    kernel = operator.weight.shape[2:]
    grouped = operator.weight.unflatten(0, (operator.groups, -1))
    each = grouped.shape[1]
    rows = max(1, BLOCK_ENTRIES // (operator.groups * each))
    # the smallest shift in taps that is a whole number of strides in places
    steps = [t // math.gcd(t, d) for t, d in zip(operator.stride, operator.dilation, strict=True)]
    for shift in product(*(range(-((k - 1) // s) * s, k, s) for k, s in zip(kernel, steps, strict=True))):
        if shift < (0,) * len(shift):
            continue
        ahead = tuple(slice(max(m, 0), k + min(m, 0)) for m, k in zip(shift, kernel, strict=True))
        behind = tuple(slice(max(-m, 0), k + min(-m, 0)) for m, k in zip(shift, kernel, strict=True))
        left = grouped[(..., *ahead)].flatten(2)
        right = grouped[(..., *behind)].flatten(2).transpose(1, 2)
        for start in range(0, each, rows):
            yield shift, start, left[:, start : start + rows] @ right


def at_least_single(operator: ConvOperator) -> ConvOperator:
    """Return the operator in float32 where its filters are in half precision."""
    return operator.to(torch.promote_types(operator.dtype, torch.float32))
