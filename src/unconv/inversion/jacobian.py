"""The derivative of a function at a point, as products with it and its transpose."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from unconv.errors import UnconvError


class Jacobian:
    """The derivative ``J`` at a batch of points; each product costs one pass one way, none the primal again.

    ``J^T w`` is a backward pass. It is linear in ``w``, so ``J x`` is the backward pass of that backward pass: for
    convolutions the forward convolution, exactly, without recomputing any activation. ``value`` is the function's.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], x: Tensor) -> None:
        """Record a twice differentiable function at points ``(N, *input)``: one forward and one backward pass."""
        with torch.enable_grad():
            self._x = x.detach().requires_grad_()
            self._y = function(self._x)
            self._w = torch.zeros_like(self._y).requires_grad_()
            # w -> J^T w
            (self._pulled,) = torch.autograd.grad(self._y, self._x, self._w, create_graph=True)
        self.value, self.dtype = self._y.detach(), x.dtype
        self.input_shape, self.output_shape = tuple(x.shape[1:]), tuple(self._y.shape[1:])

    def forward(self, x: Tensor) -> Tensor:
        """Return ``J x``. Shape ``(N, *input)`` to that of the values; of one point, any number of vectors."""
        if not self._pulled.requires_grad:
            raise UnconvError("the gradient is 0 wherever it is taken, as behind rounding, so nothing is known of J")
        # d/dw <J^T w, x> = J x
        return torch.cat([
            torch.autograd.grad(self._pulled, self._w, part, retain_graph=True)[0] for part in x.split(len(self._x))
        ])

    def adjoint(self, z: Tensor) -> Tensor:
        """Return ``J^T z``. Shape of the values to ``(N, *input)``; of one point, any number of vectors."""
        return torch.cat([
            torch.autograd.grad(self._y, self._x, part, retain_graph=True)[0] for part in z.split(len(self._x))
        ])
