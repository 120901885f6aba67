"""Which rows of ``W`` can stand beside one another in a support, and how much they add up to: Gershgorin's argument.

An eigenvalue of ``G_S`` is no farther from a diagonal entry than the sum of the other magnitudes in its row. Over all
supports that sum is at most the sum of the largest entries of the blocks around the row: one of each block (two for
sums of two vectors).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from unconv.certify.correlations import CHUNK, outward, table_error
from unconv.certify.supports import BlockPartition
from unconv.operators import ConvOperator


@dataclass(frozen=True)
class RowNeighbours:
    """Rows of a matrix in blocks. ``labels``: block of each row, from 0 on; shape ``(rows,)``."""

    labels: Tensor

    def rivals(self, size: Tensor, count: int, *, most: int) -> Iterator[tuple[int, Tensor]]:
        """Yield the largest entries beside the diagonal, by chunks of rows: first row, and ``(rows, count - 1)``.

        ``size`` holds bounds on the magnitudes, ``(K, K, *shifts)``; ``most``: entries of one block in a support.
        """
        size = size.flatten(1).clone().fill_diagonal_(0)
        top = torch.zeros(len(size), int(self.labels.max()) + 1, most, dtype=size.dtype)
        for block in range(top.shape[1]):
            members = (self.labels == block).nonzero().flatten()
            best = size[:, members].topk(min(most, len(members)), dim=1).values
            top[:, block, : best.shape[1]] = best
            # the row itself already takes one of its block's entries
            top[members, block, most - 1 :] = 0
        values = top.flatten(1)
        yield 0, values.topk(min(count - 1, values.shape[1]), dim=1).values

    def apart(self, channels: int) -> Tensor:
        """Return the pairs of filters that never meet in a support of the model: those of one block. ``(K, K)``."""
        return self.labels[:, None] == self.labels


@dataclass(frozen=True)
class ShiftNeighbours:
    """Rows of a convolution: for every kind of place, the flat shifts around it by the block that they lead to.

    The first block of each kind is the place's own. ``one_block``: whether a channel has only one.
    """

    classes: list[list[list[int]]]
    one_block: bool

    @staticmethod
    def of(blocks: BlockPartition, reach: tuple[int, ...]) -> ShiftNeighbours:
        """Return the kinds of places of a map; one whose shifts see no more than another's adds nothing."""
        axes = []
        for labels, far in zip(blocks.labels, reach, strict=True):
            around = {place: range(place - far, place + far + 1) for place, label in enumerate(labels) if label >= 0}
            kinds = dict.fromkeys(
                tuple(labels[q] - labels[place] if 0 <= q < len(labels) and labels[q] >= 0 else None for q in places)
                for place, places in around.items()
            )
            axes.append([a for a in kinds if not any(a != b and _contains(b, a) for b in kinds)])
        strides = [math.prod(2 * r + 1 for r in reach[i + 1 :]) for i in range(len(reach))]
        classes = []
        for kind in product(*axes):
            groups: dict[tuple[int | None, ...], list[int]] = {(0,) * len(reach): []}
            for shift in product(*(range(2 * r + 1) for r in reach)):
                label = tuple(axis[s] for axis, s in zip(kind, shift, strict=True))
                if None not in label:
                    groups.setdefault(label, []).append(sum(s * n for s, n in zip(shift, strides, strict=True)))
            classes.append(list(groups.values()))
        return ShiftNeighbours(classes, max(map(len, map(set, blocks.labels))) == 1)

    def rivals(self, size: Tensor, count: int, *, most: int) -> Iterator[tuple[int, Tensor]]:
        """Yield the same for every kind of place."""
        flat = size.flatten(2)
        channels, centre = flat.shape[1], flat.shape[2] // 2
        for groups in self.classes:
            step = max(1, CHUNK // (channels * max(len(groups) * most, flat.shape[2])))
            for start in range(0, len(flat), step):
                part = flat[start : start + step].clone()
                here = torch.arange(len(part))
                own = here + start
                part[here, own, centre] = 0
                columns = [
                    part[:, :, group].amax(2, keepdim=True)
                    if most == 1
                    else part[:, :, group].topk(min(most, len(group)), dim=2).values
                    for group in groups
                ]
                # the row's own place already takes one of its block's entries
                columns[0][here, own, most - 1 :] = 0
                values = torch.cat(columns, 2).flatten(1)
                yield start, values.topk(min(count - 1, values.shape[1]), dim=1).values

    def apart(self, channels: int) -> Tensor:
        """Return each filter with itself, where a channel is one block."""
        return torch.eye(channels, dtype=torch.bool) & self.one_block


Neighbours = RowNeighbours | ShiftNeighbours


def radius(neighbours: Neighbours, size: Tensor, count: int, *, twice: bool) -> Tensor:
    """Return the largest sum of the off-diagonal magnitudes in a row of ``G_S`` over supports of ``count`` entries."""
    best = torch.zeros(len(size), dtype=size.dtype)
    for start, rivals in neighbours.rivals(size, count, most=2 if twice else 1):
        rows = slice(start, start + len(rivals))
        best[rows] = torch.maximum(best[rows], rivals.sum(1))
    return best


def _contains(larger: tuple[int | None, ...], smaller: tuple[int | None, ...]) -> bool:
    return all(b is None or a == b for a, b in zip(larger, smaller, strict=True))


def cropped_sides(
    operator: ConvOperator, neighbours: Neighbours, reach: tuple[int, ...], count: int, *, twice: bool
) -> tuple[float, float]:
    """Bound ``lambda_max(G_S) - 1`` and ``1 - lambda_min(G_S)`` where taps in the padding are cut off."""
    # a row's inner products with others only see its own taps inside, so masking one of the two is enough
    error = table_error(operator)
    above = below = 0.0
    for mask in _tap_masks(operator):
        values = _cross_correlations(operator, mask, reach)
        around = radius(neighbours, values.abs() + error[(..., *[None] * operator.dims)], count, twice=twice)
        squares = values.diagonal(dim1=0, dim2=1)[*reach]
        above = max(above, (squares + error.diagonal() - 1 + around).max().item())
        below = max(below, (1 - squares + error.diagonal() + around).max().item())
    return outward(above, count), outward(below, count)


def _tap_masks(operator: ConvOperator) -> Iterator[Tensor]:
    """Yield the sets of taps inside the input, over all places of the output; bool, of the kernel's shape."""
    axes = []
    for n, places, kernel, s, p, d in zip(
        operator.input_shape[1:],
        operator.output_shape[1:],
        operator.weight.shape[2:],
        operator.stride,
        operator.padding,
        operator.dilation,
        strict=True,
    ):
        axes.append(sorted({tuple(0 <= q * s - p + d * a < n for a in range(kernel)) for q in range(places)}))
    for masks in product(*axes):
        mask = torch.ones((), dtype=torch.bool)
        for axis in masks:
            mask = mask[..., None] & torch.tensor(axis)
        yield mask


def _cross_correlations(operator: ConvOperator, mask: Tensor, reach: tuple[int, ...]) -> Tensor:
    """Return inner products of the masked filters with all rows around them. Shape ``(K, K, *shifts)``."""
    spread = [d * (n - 1) + 1 for n, d in zip(operator.weight.shape[2:], operator.dilation, strict=True)]
    around = [n + 2 * r * s for n, r, s in zip(spread, reach, operator.stride, strict=True)]
    pad = [v for r, s in zip(reversed(reach), reversed(operator.stride), strict=True) for v in (r * s, r * s)]
    patches = torch.zeros(*operator.weight.shape[:2], *spread, dtype=torch.float64)
    patches[(..., *(slice(None, None, d) for d in operator.dilation))] = operator.weight * mask
    shape = (operator.weight.shape[1], *around)
    window = ConvOperator(operator.weight, shape, stride=operator.stride, dilation=operator.dilation)
    return window.forward(F.pad(patches, pad))
