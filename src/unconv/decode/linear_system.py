"""The linear equations about a stage's input that its code states exactly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from unconv.conv_block import ConvBlock
from unconv.errors import UnconvError
from unconv.operators import LinearOperator
from unconv.sparsity import AveragePool, Code, Window


@dataclass(frozen=True)
class Equations:
    """The system ``A x = target`` for a batch, ``A`` being different rows of one operator for each input.

    Without average pooling ``A`` is ``W`` with all rows zeroed that the code leaves open, so a place that two
    overlapping regions name counts once. Average pooling over known gates adds the pooling matrix.

    Attributes:
        operator: The map ``W``.
        target: Right-hand sides; zero where there is no equation. Shape ``(N, K, *spatial)``, or
            ``(N, K, *pooled)`` behind average pooling.
        mask: Rows of ``W`` that take part. Shape ``(N, K, *spatial)``, bool.
        average: The pooling behind the mask, where it averages.
    """

    operator: LinearOperator
    target: Tensor
    mask: Tensor
    average: AveragePool | None = None

    def forward(self, x: Tensor) -> Tensor:
        """``A x``. Shape ``(N, *input_shape)`` to the shape of ``target``."""
        h = self.operator.forward(x) * self.mask
        return h if self.average is None else self.average.forward(h)

    def adjoint(self, y: Tensor) -> Tensor:
        """``A^T y``. Shape of ``target`` to ``(N, *input_shape)``."""
        h = y if self.average is None else self.average.adjoint(y, self.mask.shape[2:])
        return self.operator.adjoint(h * self.mask)

    def count(self) -> Tensor:
        """Number of equations of each input. Shape ``(N,)``."""
        if self.average is None:
            return self.mask.flatten(1).sum(1)
        rows = self.average.forward(self.mask.to(self.target.dtype)) > 0
        return rows.flatten(1).sum(1)


def equations(stage: ConvBlock, code: Code, *, gates: Tensor | None = None) -> Equations:
    """What the code of a stage says about its input in linear equations.

    A value behind ReLU that is positive gives ``W_j x + b_j = value`` at its switch; other activations are
    inverted where they are one-to-one; a zero gives no equation (it is an inequality). Behind average
    pooling of an activation, the equations need its gates.

    Args:
        stage: The stage that made the code.
        code: Codes of ``N`` inputs.
        gates: Which units were on. Shape ``(N, K, *spatial)``, bool. Only used behind average pooling.

    Returns:
        The system.

    Raises:
        UnconvError: If the code is of another stage, or states no linear equation.
    """
    check_code(stage, code)
    bias = torch.zeros(()) if stage.bias is None else stage.bias.reshape(-1, *[1] * (len(code.shape) - 1))
    bias = bias.to(code.values)
    if isinstance(code.pooling, AveragePool):
        full = (len(code.values), *code.shape)
        if stage.activation.name == "none":
            mask = torch.ones(full, dtype=torch.bool, device=code.values.device)
        elif stage.activation.name == "relu" and gates is not None:
            mask = gates
        else:
            raise UnconvError(
                f"stage {stage.name!r} averages behind {stage.activation.name!r}, so its code states no linear "
                "equation by itself; use --side-info gates with relu, or the method transpose"
            )
        return Equations(stage.operator, code.values - code.pooling.forward(bias * mask), mask, code.pooling)
    preimage, known = invert_activation(stage.activation.name, stage.activation.function, code.values)
    if isinstance(code.pooling, Window):
        known = known & (code.values != 0)  # a region that the paper's code has dropped says nothing
        placed = Code(known.to(code.values.dtype), code.switches, code.shape, code.pooling)
        mask = placed.dense() != 0
        value = Code(torch.where(known, preimage, 0.0), code.switches, code.shape, code.pooling).dense()
    else:
        mask, value = known, preimage
    return Equations(stage.operator, torch.where(mask, value - bias, 0.0), mask)


def check_code(stage: ConvBlock, code: Code) -> None:
    """Refuse a code that this stage cannot have made, before any work.

    Args:
        stage: The stage.
        code: The code.

    Raises:
        UnconvError: If shapes differ or values are not finite.
    """
    if code.shape != stage.operator.output_shape:
        raise UnconvError(
            f"the code has dense shape {code.shape}, but stage {stage.name!r} makes {stage.operator.output_shape}; "
            "give the code of this stage"
        )
    if not torch.isfinite(code.values).all():
        raise UnconvError(f"the code of stage {stage.name!r} holds NaN or infinite values; give a finite one")


def invert_activation(name: str, function: Callable[[Tensor], Tensor], values: Tensor) -> tuple[Tensor, Tensor]:
    """Pre-activations from activations, where they are determined.

    Activations of CNNs increase strictly to the right of zero until they saturate, so every value above that
    at zero has one preimage there, found by bisection in float64. Smooth ones may dip below zero to the
    left of it (SiLU, GELU): values at or below the one at zero are left open.

    Args:
        name: The activation's name.
        function: The activation.
        values: Activations. Any shape.

    Returns:
        Preimages, and where they are determined (bool), both of the shape of ``values``.
    """
    if name == "none":
        return values, torch.ones_like(values, dtype=torch.bool)
    if name == "relu":
        return values, values > 0
    v = values.double()
    low = torch.zeros_like(v)
    high = torch.full_like(v, 1.0)
    for _ in range(40):
        high = torch.where(function(high) < v, 2 * high, high)
    top = function(torch.full_like(v, 1e6))
    known = (v > function(torch.zeros_like(v))) & ((v < top) | (top > 1e5))
    for _ in range(60):
        middle = (low + high) / 2
        below = function(middle) < v
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return torch.where(known, (low + high) / 2, 0.0).to(values), known
