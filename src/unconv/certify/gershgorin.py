"""Which rows of ``W`` can stand beside one another in a support, and how much they add up to: Gershgorin's argument.

An eigenvalue of ``G_S`` is no farther from a diagonal entry than the sum of the other magnitudes in its row: over all
supports at most the sum of the largest entry (two, for sums of two vectors) of each block around the row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from unconv.certify.correlations import CHUNK
from unconv.certify.supports import BlockPartition


@dataclass(frozen=True)
class RowNeighbours:
    """Rows of a matrix in blocks. ``labels``: block of each row, from 0 on; shape ``(rows,)``."""

    labels: Tensor

    def radius(self, size: Tensor, count: int, *, most: int) -> Tensor:
        """Return the largest sum of the off-diagonal magnitudes in a row over supports of ``count`` entries.

        ``size``: bounds on the magnitudes, ``(K, K, *shifts)``; ``most``: entries of a block in one. Shape ``(K,)``.
        """
        size = size.flatten(1).clone().fill_diagonal_(0)
        top = torch.zeros(len(size), int(self.labels.max()) + 1, most, dtype=size.dtype)
        for block in range(top.shape[1]):
            members = (self.labels == block).nonzero().flatten()
            best = size[:, members].topk(min(most, len(members)), dim=1).values
            top[:, block, : best.shape[1]] = best
            # the row itself already takes one of its block's entries
            top[members, block, most - 1 :] = 0
        return _largest(top, count)

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

    def radius(self, size: Tensor, count: int, *, most: int) -> Tensor:
        """Return the same, the largest of all kinds of places."""
        flat, best = size.flatten(2), torch.zeros(len(size), dtype=size.dtype)
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
                best[own] = torch.maximum(best[own], _largest(torch.cat(columns, 2), count))
        return best

    def apart(self, channels: int) -> Tensor:
        """Return each filter with itself, where a channel is one block."""
        return torch.eye(channels, dtype=torch.bool) & self.one_block


Neighbours = RowNeighbours | ShiftNeighbours


def _largest(beside: Tensor, count: int) -> Tensor:
    values = beside.flatten(1)
    return values.topk(min(count - 1, values.shape[1]), dim=1).values.sum(1)


def _contains(larger: tuple[int | None, ...], smaller: tuple[int | None, ...]) -> bool:
    return all(b is None or a == b for a, b in zip(larger, smaller, strict=True))
