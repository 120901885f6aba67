"""Proven upper bounds on the model-RIP constants of a layer.

``delta_k`` is the smallest ``d`` with ``(1 - d) ||z||^2 <= ||W^T z||^2 <= (1 + d) ||z||^2`` for all model-k-sparse
``z``; ``delta_2k`` the same over sums of two such vectors (paper, section 1). With ``G = W W^T`` and ``G_S`` its
part on a support ``S``, ``delta`` is the largest ``max(lambda_max(G_S) - 1, 1 - lambda_min(G_S))`` over supports.
``W`` is never formed: all bounds come from the table of filter correlations at all shifts, and hold whatever the
rounding, for products summed in any order (no Winograd or Fourier convolution: none is used in float64 on a CPU).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from unconv.certify.correlations import FINE_GRID, Table, estimated_eigenvalue, largest_eigenvalue, outward, table_of
from unconv.certify.gershgorin import Neighbours, ShiftNeighbours
from unconv.certify.supports import BlockPartition, group_operators, outer_partition, validate_operator
from unconv.operators import Boundary, ConvOperator
from unconv.sparsity import Region


@dataclass(frozen=True)
class UpperBound:
    """A proven upper bound on a model-RIP constant."""

    value: float
    above: float  # bound on lambda_max(G_S) - 1 over all supports
    below: float  # bound on 1 - lambda_min(G_S), at most 1 since G_S is positive semidefinite
    how: str  # which argument gave above: "gershgorin", "spectral" or "thresholded"
    bounds: dict[str, float]  # lambda_max(G_S) - 1 by each argument that was tried


def upper_bound(
    operator: ConvOperator,
    region: Region,
    k: int,
    *,
    twice: bool = False,
    boundary: Boundary = "full",
    refine: bool = True,
) -> UpperBound:
    """Proven upper bound on ``delta_k`` (``delta_2k`` if ``twice``) of the operator as it is.

    Three arguments, the best of which counts, each with all rounding errors added outward:

    - *Gershgorin*: an eigenvalue of ``G_S`` is no farther from a diagonal entry than the sum of the other
      magnitudes in its row; over all supports, the sum of the largest block-wise maxima of the table.
    - *spectral*: ``lambda_max(G_S) <= lambda_max(G)``, at most the largest eigenvalue of the symbol of ``G``.
    - *thresholded*: ``G = P + N`` with ``N`` the entries clipped to ``[-r, r]``: the spectral bound of ``P`` plus
      Gershgorin's of ``N``, the best of several ``r``. (Any ``r`` gives a feasible point of the dual of the
      semidefinite relaxation of sparse principal components, d'Aspremont et al. 2007.) For whole maps, entries
      between places of one channel never meet and are left out of both. ``refine=False`` leaves this argument out,
      which takes most of the time.

    A cropped ``W^T z`` is a part of the full one, so ``above`` of the full boundary holds for the cropped one, and
    ``below`` is 1. Beyond 1 the bound says nothing of invertibility. Arguments, errors: those of ``delta_bracket``.
    """
    groups = _groups(validate_operator(operator, region, k, boundary), region)
    return _worst([group.bound(k, twice=twice, refine=refine) for group in groups])


def layer_bounds(operator: ConvOperator, region: Region, k: int, *, refine: bool = True) -> list[UpperBound]:
    """Bound ``delta_k`` and ``delta_2k`` at once, at the full boundary; as ``upper_bound``."""
    groups = _groups(validate_operator(operator, region, k, "full"), region)
    return [_worst([group.bound(k, twice=twice, refine=refine) for group in groups]) for twice in (False, True)]


def _groups(operator: ConvOperator, region: Region) -> list[RowBounds]:
    # each group is bounded alone, with as much of the support as it can hold
    blocks = outer_partition(region, operator.output_shape[1:])
    parts = []
    for given in group_operators(operator):
        table = table_of(given.full())
        neighbours = ShiftNeighbours.of(blocks, table.reach)
        parts.append(RowBounds(given, table, blocks, len(given.weight), neighbours))
    return parts


def _worst(bounds: list[UpperBound]) -> UpperBound:
    # over groups of channels, whose rows do not meet
    worst = max(bounds, key=lambda bound: bound.above)
    below = max(bound.below for bound in bounds)
    # an argument bounds the whole operator where it bounds every group
    shared = [name for name in worst.bounds if all(name in bound.bounds for bound in bounds)]
    by_argument = {name: max(bound.bounds[name] for bound in bounds) for name in shared}
    return replace(worst, value=max(worst.above, below), below=below, bounds=by_argument)


@dataclass(frozen=True)
class RowBounds:
    """Rows that may hold as much of a support as they can, and what is asked of them."""

    given: ConvOperator
    table: Table  # its correlations, nothing cropped
    blocks: BlockPartition  # the blocks of one channel,
    channels: int  # and how many channels have such blocks
    neighbours: Neighbours  # who can stand beside a row

    @cached_property
    def magnitudes(self) -> Tensor:
        """Bounds on the magnitudes of the table."""
        return self.table.values.abs() + self.table.error[(..., *[None] * self.given.dims)]

    @cached_property
    def spectral(self) -> float:
        """The spectral bound."""
        return largest_eigenvalue(self.table, self.given.output_shape[1:], nonnegative=True) - 1

    def bound(self, k: int, *, twice: bool, refine: bool) -> UpperBound:
        """Return the best bound on what a support of ``k`` regions (sums of two such vectors if ``twice``) can do."""
        size = self.blocks.size(self.channels, k, twice=twice)
        around = self.neighbours.radius(self.magnitudes, size, most=2 if twice else 1)
        squares, slack = self.table.squares, self.table.error.diagonal()
        bounds = {"gershgorin": outward((squares + slack - 1 + around).max().item(), size)}
        below = outward((1 - squares + slack + around).max().item(), size)
        bounds["spectral"] = self.spectral
        if refine and size > 1:
            bounds |= self._thresholded(size, min(bounds.values()), twice=twice)
        how = min(bounds, key=lambda name: bounds[name])
        above = max(bounds[how], 0.0)
        # a filter whose taps all fall off at the border may be left with nothing
        below = 1.0 if any(self.given.padding) else min(max(below, 0.0), 1.0)
        return UpperBound(max(above, below), above, below, how, bounds)

    def _thresholded(self, count: int, best: float, *, twice: bool) -> dict[str, float]:
        # the thresholded bound at the best of several levels, if one can beat ``best``
        table, spatial, channels = self.table, self.given.output_shape[1:], len(self.table.values)
        diagonal = torch.arange(channels)
        off = table.values.clone()
        off[(diagonal, diagonal, *table.reach)] = 0
        if not twice:
            off[self.neighbours.apart(channels)] = 0

        def split(level: float) -> tuple[Table, float]:
            kept = off.sign() * (off.abs() - level).clamp_min(0)
            rest = self.neighbours.radius((off - kept).abs(), count, most=2 if twice else 1).max().item()
            kept[(diagonal, diagonal, *table.reach)] = table.squares
            return replace(table, values=kept), outward(rest, count)

        tried: dict[float, float] = {}

        def estimate(level: float) -> float:
            if level not in tried:
                kept, rest = split(level)
                tried[level] = rest + estimated_eigenvalue(kept, spatial) - 1 if rest < best else math.inf
            return tried[level]

        levels = [share * (best + 1) / (count - 1) for share in (0.15, 0.25, 0.35, 0.45, 0.55, 0.7)]
        levels = [level for level in levels if level > off.abs().mean().item() / 4]
        if not levels:
            return {}
        level = min(levels, key=estimate)
        for factor in (0.93, 1.07, 0.965, 1.035) if channels <= FINE_GRID else ():
            level = min(level, level * factor, key=estimate)
        if tried[level] >= best:
            return {}
        kept, rest = split(level)
        return {"thresholded": outward(largest_eigenvalue(kept, spatial, nonnegative=False) - 1 + rest, 4)}
