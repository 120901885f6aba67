"""One stage inverted by a named method: which code, which side information, which decoder."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from unconv.conv_block import NO_ACTIVATION, ConvBlock
from unconv.decode.convex import Prior, convex
from unconv.decode.linear_system import check_code, equations
from unconv.decode.min_norm import min_norm
from unconv.decode.transpose import transpose
from unconv.errors import UsageError
from unconv.linalg import column, norms, relative_norm, tiny
from unconv.solvers.solution import Solution
from unconv.sparsity import Code, Pooled, Window

CodeKind = Literal["network", "paper"]
SideInfo = Literal["none", "switches", "gates"]
CONVEX_STEPS, MIN_NORM_STEPS = 200, 100
METHODS = ("iht", "transpose", "min-norm", "convex")


def paper_stage(stage: ConvBlock) -> ConvBlock:
    """Table 3's reading of a stage: unit filters, no bias, no activation, maxima over the regions that it pools.

    Args:
        stage: A stage of a network.

    Returns:
        The stage whose code ``paper_code`` makes.
    """
    return replace(
        stage,
        operator=stage.operator.normalised(),
        bias=None,
        activation=NO_ACTIVATION,
        pooling=stage.window,
        batch_norm=None,
    )


def paper_code(stage: ConvBlock, x: Tensor, k: int) -> Code:
    """``M_known(W x, k)`` with unit filters and magnitude pooling (paper, Table 3).

    Args:
        stage: From ``paper_stage``; where it does not pool, every place is its own region.
        x: Inputs of the stage. Shape ``(N, M, *spatial)``.
        k: Number of regions kept per input.

    Returns:
        The code.
    """
    window = stage.pooling if isinstance(stage.pooling, Window) else 1
    return Pooled(window, k).project(stage.operator.forward(x))


def decode_layer(
    stage: ConvBlock,
    code: Code,
    method: str,
    *,
    reading: CodeKind = "network",
    side_info: SideInfo = "switches",
    gates: Tensor | None = None,
    norm: Tensor | None = None,
    prior: Prior | None = "smooth",
    weight: float | None = None,
    effort: float = 1.0,
) -> Solution[Tensor]:
    """The stage's input from its code.

    Args:
        stage: The stage that made the code.
        code: Codes of ``N`` inputs.
        method: ``"iht"`` and ``"transpose"``: ``W^T`` of the unpooled code, the paper's decoder; ``"min-norm"``: the
            solution of least norm of the equations that the code states; ``"convex"``: equations and inequalities.
        reading: How the code was made; ``"paper"``: magnitude pooling, and a zero means a region that was dropped.
        side_info: ``"none"`` moves every value to the first place of its region (``M_fixed``), except for
            ``"convex"``, which then looks for the places itself.
        gates: On/off pattern, for ``side_info="gates"``. Shape ``(N, K, *spatial)``, bool.
        norm: True norms of the inputs, which the transpose is rescaled to (Table 3). Shape ``(N,)``.
        prior: Of ``"convex"``, as for ``convex``.
        weight: Of that prior.
        effort: Factor of the solvers' largest numbers of steps.

    Returns:
        Inputs of shape ``(N, M, *spatial)``. For the transposes ``history`` holds the distance of the rescaled
        code from the given one, the best scale taken.

    Raises:
        UsageError: If the method does not exist.
        ValueError: If ``effort`` is not a number above 0.
    """
    check_code(stage, code)
    if not 0 < effort < math.inf:
        raise ValueError(f"effort is {effort}; it multiplies numbers of steps, so it is above 0")
    if method == "convex":
        steps = math.ceil(CONVEX_STEPS * effort)
        known = side_info != "none"
        return convex(stage, code, prior=prior, weight=weight, reading=reading, switches=known, max_steps=steps)
    if side_info == "none" and code.switches is not None:
        code = code.with_switches("fixed")
    if method in {"iht", "transpose"}:
        estimate = transpose(stage.operator, code, norm=norm)
        return Solution(estimate, _code_history(stage, code, estimate), ("converged",) * len(estimate))
    if method == "min-norm":
        system = equations(stage, code, gates=gates if side_info == "gates" else None)
        return min_norm(system, max_steps=math.ceil(MIN_NORM_STEPS * effort))
    raise UsageError(f"no method {method!r} decodes a layer; use one of {', '.join(METHODS)}")


def _code_history(stage: ConvBlock, code: Code, estimate: Tensor) -> Tensor:
    """Relative distance of the code from the estimate's, at the code's own places and the best scale."""
    dense = code.dense()
    again = stage.operator.forward(estimate) * (dense != 0)
    scale = (again * dense).flatten(1).sum(1) / norms(again).square().clamp_min(tiny(norms(again)))
    after = relative_norm(column(scale, dense) * again - dense, dense)
    return torch.stack([torch.ones_like(after), after])
