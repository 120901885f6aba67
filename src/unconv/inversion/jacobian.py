"""The derivative of features with respect to images, as products with it and its transpose."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class Jacobian:
    """The derivative ``J`` at one batch of images; each product costs one pass one way, none the primal again.

    ``J^T w`` is a backward pass. It is linear in ``w``, so ``J v`` is the backward pass of that backward pass: for
    convolutions the forward convolution, exactly, without recomputing any activation.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], x: Tensor) -> None:
        """Record the function at a batch: one forward and one backward pass.

        Args:
            function: Maps images to features, each image for itself.
            x: Images. Shape ``(N, *input)``.
        """
        with torch.enable_grad():
            self._x = x.detach().requires_grad_()
            self._y = function(self._x)
            self._w = torch.zeros_like(self._y).requires_grad_()
            # w -> J^T w
            (self._pulled,) = torch.autograd.grad(self._y, self._x, self._w, create_graph=True)
        self.value = self._y.detach()

    def forward(self, v: Tensor) -> Tensor:
        """Return ``J v``. Shape ``(N, *input)`` to that of the features."""
        # d/dw <J^T w, v> = J v
        (image,) = torch.autograd.grad(self._pulled, self._w, v, retain_graph=True)
        return image

    def adjoint(self, w: Tensor) -> Tensor:
        """Return ``J^T w``. Shape of the features to ``(N, *input)``."""
        (image,) = torch.autograd.grad(self._y, self._x, w, retain_graph=True)
        return image
