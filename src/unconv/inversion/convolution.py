"""Convolutions by fixed filters, whose second backward pass costs what the forward one does.

``torch``'s own backward pass of a backward pass also computes the gradient of the filters, asked or not: for products
with a Jacobian that is twice to four times the work.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

CONVOLUTIONS = ("conv1d", "conv2d", "conv3d")


def fixed_convolution(function: Callable[..., Tensor], args: tuple[Any, ...], options: dict[str, Any]) -> Tensor:
    """Call ``torch.conv1d``, ``conv2d`` or ``conv3d``: with cheaper derivatives where its filters are fixed."""
    names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
    said = dict(zip(names, args, strict=False)) | options
    x, weight, bias = said["input"], said["weight"], said.get("bias")
    dims = weight.ndim - 2
    padding = said.get("padding", 0)
    plain = (
        not torch.is_grad_enabled()
        or not x.requires_grad
        or weight.requires_grad
        or isinstance(padding, str)
        or weight.is_complex()
        or x.ndim != weight.ndim
    )
    if plain:
        return function(*args, **options)
    numbers = (
        _each(said.get("stride", 1), dims),
        _each(padding, dims),
        _each(said.get("dilation", 1), dims),
        said.get("groups", 1),
    )
    return _Forward.apply(x, weight, bias, numbers)


def _each(value: Any, dims: int) -> list[int]:
    return [value] * dims if isinstance(value, int) else list(value) * (dims // len(value))


class _Forward(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, numbers: tuple[Any, ...]) -> Tensor:
        stride, padding, dilation, groups = numbers
        return torch.convolution(x, weight, bias, stride, padding, dilation, False, [0] * len(stride), groups)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, _, ctx.numbers = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        x, weight = ctx.saved_tensors
        return _Adjoint.apply(grads[0], weight, ctx.numbers, x.detach()), None, None, None


class _Adjoint(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(y: Tensor, weight: Tensor, numbers: tuple[Any, ...], like: Tensor) -> Tensor:
        stride, padding, dilation, groups = numbers
        none, transposed, outward = None, False, [0] * len(stride)
        return torch.ops.aten.convolution_backward(
            y, like, weight, none, stride, padding, dilation, transposed, outward, groups, [True, False, False]
        )[0]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, weight, ctx.numbers, _ = inputs
        ctx.save_for_backward(weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        return _Forward.apply(grads[0], ctx.saved_tensors[0], None, ctx.numbers), None, None, None
