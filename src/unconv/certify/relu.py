"""How far a ReLU layer keeps inputs apart: its lower Lipschitz constant between two bounds a factor of 2 apart.

A unit that is on halfway between ``a`` and ``b`` is on at one of them, and moves by at least half of what it would
without the ReLU. So ``||f(a) - f(b)|| >= sqrt(A) ||a - b|| / 2``, ``A`` being the least eigenvalue of ``W_S^T W_S`` for
the rows ``S`` that are on there, and none above ``sqrt(A)`` holds around it (Freeman, Haider 2025, arXiv 2502.09898).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from unconv.certify.stability import certify, least_singular_value
from unconv.conv_block import ConvBlock
from unconv.errors import UsageError
from unconv.linalg import column, norms
from unconv.operators import ConvOperator

ROUNDING = 1024 * torch.finfo(torch.float64).eps  # of the largest preactivation: what is nearer to 0 may have any sign


@dataclass(frozen=True)
class ReluBracket:
    """Bounds of the largest ``kappa`` with ``||f(a) - f(b)|| >= kappa ||a - b||``, ``(a + b) / 2`` being in a ball."""

    lower: float  # proven up to rounding, or, where not proven, but for a chance of 1e-9
    upper: float  # reached by inputs near the centre, up to rounding
    proven: bool  # whether all singular values were found
    on: tuple[int, int]  # units that are on in the whole ball, and at its centre
    inputs: int  # numbers of an input
    radius: float  # of the ball

    def __str__(self) -> str:
        if self.upper == 0:
            return f"{self.on[1]} units are on for {self.inputs} numbers: inputs beside this one have the same output"
        chance = "" if self.proven else " (but for a chance of 1e-9)"
        return (
            f"outputs of inputs at a distance e, their middle within {self.radius:.3g}, differ by at least"
            f" {self.lower:.3g} e{chance}, and near by some only by {self.upper:.3g} e"
        )


def relu_bracket(
    block: ConvBlock, x: Tensor, *, radius: float = 0.0, steps: int = 200, whole: int = 3072, seed: int = 0
) -> ReluBracket:
    """Bound how far the ReLU of a conv block, before its pooling, keeps inputs apart.

    The middle of two inputs lies in the ball of a Euclidean ``radius`` around ``x``, shape ``(1, M, *spatial)``; the
    inputs may be as far apart as they like, and those of the ball have their middle in it. Inputs of at most ``whole``
    numbers get all singular values, so that the lower bound is proven; ``steps`` of Lanczos and their ``seed`` as for
    ``unconv.certify.stability.certify``. UsageError if the block has no ReLU, or the radius is no number of at least 0,
    or ``x`` is no single input of the block.
    """
    if block.activation.name != "relu":
        raise UsageError(f"conv block {block.name} is {block.kind}; this bracket is of ReLU")
    if not 0 <= radius < math.inf:
        raise UsageError(f"radius is {radius}; it is a number of at least 0")
    if tuple(x.shape) != (1, *block.input_shape):
        raise UsageError(f"x has shape {tuple(x.shape)}; expected {(1, *block.input_shape)}")
    block = block.to(torch.float64)
    h = block.preactivation(x.to(block.operator.weight))[0]
    # a move of r changes <w, x> by at most r ||w||; at the border, where w is cropped, by less
    reach = radius * column(norms(block.operator.weight), h)
    slack = ROUNDING * h.abs().max()
    sure, here = h > reach + slack, h > -slack
    inner, lower_proven = _least(block.operator, sure, steps, whole, seed)
    outer, _ = (inner, True) if torch.equal(sure, here) else _least(block.operator, here, steps, whole, seed)
    count = math.prod(block.input_shape)
    return ReluBracket(inner[0] / 2, outer[1], lower_proven, (int(sure.sum()), int(here.sum())), count, radius)


def _least(operator: ConvOperator, mask: Tensor, steps: int, whole: int, seed: int) -> tuple[tuple[float, float], bool]:
    """Return an interval of the smallest singular value of some rows, and whether it is proven."""
    shape = operator.input_shape
    unknowns = math.prod(shape)
    if int(mask.sum()) < unknowns:
        return (0.0, 0.0), True
    if unknowns <= whole:
        eye = torch.eye(unknowns, dtype=torch.float64, device=mask.device).reshape(unknowns, *shape)
        rows = [operator.adjoint(operator.forward(part) * mask).flatten(1) for part in eye.split(64)]
        normal = torch.cat(rows)
        return least_singular_value((normal + normal.T) / 2), True
    found = certify(operator, mask, steps=steps, seek=0, whole=0, seed=seed)
    return (found.probabilistic_lower_bound, found.interval[1]), False
