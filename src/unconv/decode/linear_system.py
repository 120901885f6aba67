"""The linear equations about a conv block's input that its code gives exactly, and their solution of least norm."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from unconv.conv_block import ConvBlock
from unconv.decode.preimages import preimage_bounds
from unconv.errors import UnconvError, check_whole
from unconv.linalg import column
from unconv.operators import LinearOperator
from unconv.solvers.cgls import cgls
from unconv.solvers.solution import Solution
from unconv.sparsity import AveragePool, Code, Window


@dataclass(frozen=True)
class Equations:
    """The system ``A x = target`` for a batch, ``A`` being different rows of one operator for each input.

    Without average pooling ``A`` is ``W`` with all rows zeroed that the code leaves open, so a place that two
    overlapping regions name counts once. Average pooling over known gates adds the pooling matrix.
    """

    operator: LinearOperator
    # right-hand sides, zero where there is no equation. Shape (N, K, *spatial); (N, K, *pooled) if averaged
    target: Tensor
    mask: Tensor  # rows of W that take part; shape (N, K, *spatial), bool
    average: AveragePool | None = None  # the pooling behind the mask, where it averages

    def forward(self, x: Tensor) -> Tensor:
        """Return ``A x``. Shape ``(N, *input_shape)`` to the shape of ``target``."""
        h = self.operator.forward(x) * self.mask
        return h if self.average is None else self.average.forward(h)

    def adjoint(self, y: Tensor) -> Tensor:
        """Return ``A^T y``. Shape of ``target`` to ``(N, *input_shape)``."""
        h = y if self.average is None else self.average.adjoint(y, self.mask.shape[2:])
        return self.operator.adjoint(h * self.mask)


def equations(block: ConvBlock, code: Code, *, gates: Tensor | None = None) -> Equations:
    """Return what the code of a block says about its input in linear equations."""
    # A positive value behind ReLU gives W_j x + b_j = value at its switch, a zero only an inequality; other activations
    # are inverted where one pre-activation alone gives the value. Averages of an activation need its gates.
    check_code(block, code)
    bias = expand_bias(block, code)
    if isinstance(code.pooling, AveragePool):
        if block.activation.name == "none":
            mask = torch.ones((len(code.values), *code.shape), dtype=torch.bool, device=code.values.device)
        elif block.activation.name == "relu" and gates is not None:
            mask = gates
        else:
            raise UnconvError(
                f"{block.name!r} averages behind {block.activation.name!r}, so its code gives no linear equation by "
                "itself; use side_info 'gates' with relu, or the method 'transpose'"
            )
        return Equations(block.operator, code.values - code.pooling.forward(bias * mask), mask, code.pooling)
    _, value, high = preimage_bounds(block.activation, code.values)
    known = value == high
    if isinstance(code.pooling, Window):
        known = known & (code.values != 0)  # a region that the paper's code has dropped says nothing
        value = replace(code, values=torch.where(known, value, 0.0)).dense()
        known = replace(code, values=known.to(value.dtype)).dense() != 0
    return Equations(block.operator, torch.where(known, value - bias, 0.0), known)


def min_norm(system: Equations, *, tolerance: float = 1e-3, max_steps: int = 100) -> Solution[Tensor]:
    """Solve ``A x = target`` by CGLS from zero: all iterates are ``A^T y``, so the limit is of least norm.

    An input has converged once ``||A x - target|| <= tolerance ||target||``, or once ``||A^T (target - A x)||`` has
    fallen by the square of the tolerance, which is where contradictions end.
    """
    check_whole(0, max_steps=max_steps)
    return cgls(system, system.target, tolerance=tolerance, slope_tolerance=tolerance**2, max_steps=max_steps)


def expand_bias(block: ConvBlock, code: Code) -> Tensor:
    """Return a block's bias so that it broadcasts against its code's dense form; zero where there is none."""
    if block.bias is None:
        return torch.zeros((), dtype=code.values.dtype, device=code.values.device)
    return column(block.bias, block.operator.weight[:, 0]).to(code.values)


def check_code(block: ConvBlock, code: Code) -> None:
    """Refuse a code that this block cannot have made: of another shape, or not finite (``UnconvError``)."""
    if code.shape != block.operator.output_shape:
        raise UnconvError(
            f"the code has dense shape {code.shape}, but {block.name!r} makes {block.operator.output_shape}; "
            "give the code of this block"
        )
    if not torch.isfinite(code.values).all():
        raise UnconvError(f"the code of {block.name!r} holds NaN or infinite values; give a finite one")
