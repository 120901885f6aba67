"""A conv block's input by a named method: which code, which side information, which decoder."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from unconv.conv_block import NO_ACTIVATION, ConvBlock, SideInfo
from unconv.decode.convex import convex
from unconv.decode.linear_system import check_code, equations, expand_bias, min_norm
from unconv.decode.transpose import transpose
from unconv.errors import check_choice
from unconv.linalg import column, dots, relative_norm, tiny
from unconv.solvers.solution import Solution
from unconv.sparsity import AveragePool, Code, CodeKind, Pooled, Window

METHODS = ("iht", "transpose", "min-norm", "convex")


def paper_block(block: ConvBlock) -> ConvBlock:
    """Return Table 3's reading of a block: unit filters, no bias, no activation, maxima over the regions it pools."""
    operator = block.operator.normalised()
    return replace(block, operator=operator, bias=None, activation=NO_ACTIVATION, pooling=block.window, batch_norm=None)


def paper_code(block: ConvBlock, x: Tensor, k: int) -> Code:
    """Return ``M_known(W x, k)`` of a ``paper_block`` (Table 3); without pooling every place is its own region."""
    window = block.pooling if isinstance(block.pooling, Window) else 1
    return Pooled(window, k).project(block.operator.forward(x))


def decode_block(
    block: ConvBlock,
    code: Code,
    method: str,
    *,
    code_kind: CodeKind = "network",
    side_info: SideInfo = "switches",
    gates: Tensor | None = None,
    max_steps: int | None = None,
) -> Solution[Tensor]:
    """The block's input from its code; ``max_steps``: of methods that take steps, their own default where ``None``."""
    check_choice(METHODS, method=method)
    check_code(block, code)
    steps: dict[str, Any] = {} if max_steps is None else {"max_steps": max_steps}
    if method == "convex":
        return convex(block, code, code_kind=code_kind, switches=side_info != "none", **steps)
    if side_info == "none" and code.switches is not None:
        code = code.with_fixed_switches()
    if method in {"iht", "transpose"}:
        estimate, history = _at_best_scale(block, code, transpose(block.operator, code))
        return Solution(estimate, history, ("converged",) * len(estimate))
    return min_norm(equations(block, code, gates=gates if side_info == "gates" else None), **steps)


def _at_best_scale(block: ConvBlock, code: Code, estimate: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``c estimate`` with ``c`` the least-squares fit of its code to the given one, and how far that is off."""
    again, given = block.operator.forward(estimate), code.dense()
    if isinstance(code.pooling, AveragePool):
        again, given = code.pooling.forward(again), code.values
    told = given != 0
    again, given = again * told, (given - expand_bias(block, code)) * told
    # c = <P W x^, z - b> / ||P W x^||^2 on the places P that the code tells; never against the code's own direction
    scale = (dots(again, given) / dots(again, again).clamp_min(tiny(given))).clamp_min(0)
    after = relative_norm(column(scale, given) * again - given, given)
    return column(scale, estimate) * estimate, torch.stack([torch.ones_like(after), after])
