"""One convolution and what follows it, cut out of a graph: which modules and functions a stage takes in."""

from __future__ import annotations

import copy
from functools import partial
from typing import TypeGuard, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.parameter import is_lazy
from torchvision.ops import FrozenBatchNorm2d

from unconv.conv_block import NO_ACTIVATION, Activation, ConvBlock
from unconv.equivalent_conv import plain_convolution
from unconv.operators import ConvOperator
from unconv.sparsity import AveragePool, Window
from unconv.tracing import Graph, Node

# modules that are one function of torch.nn.functional, by that function's name
MODULES: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.LeakyReLU: "leaky_relu",
    nn.PReLU: "prelu",
    nn.ELU: "elu",
    nn.CELU: "celu",
    nn.SELU: "selu",
    nn.GELU: "gelu",
    nn.SiLU: "silu",
    nn.Mish: "mish",
    nn.Hardswish: "hardswish",
    nn.Hardsigmoid: "hardsigmoid",
    nn.Hardtanh: "hardtanh",
    nn.Sigmoid: "sigmoid",
    nn.Tanh: "tanh",
    nn.Softplus: "softplus",
    nn.Softsign: "softsign",
    nn.MaxPool1d: "max_pool1d",
    nn.MaxPool2d: "max_pool2d",
    nn.MaxPool3d: "max_pool3d",
    nn.AvgPool1d: "avg_pool1d",
    nn.AvgPool2d: "avg_pool2d",
    nn.AvgPool3d: "avg_pool3d",
}
POOLINGS = {name: (name[:3], int(name[-2])) for name in MODULES.values() if "_pool" in name}
MAX_POOL_OPTIONS = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
AVG_POOL_OPTIONS = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
ACTIVATIONS = set(MODULES.values()) - set(POOLINGS)


def is_convolution(module: nn.Module) -> bool:
    """Whether a module is a convolution of any kind, transposed and quantised ones included.

    Args:
        module: Any module.

    Returns:
        True for those that become a stage or are named as left out.
    """
    return isinstance(module, _ConvNd) or _is_quantised(module)


def cut_out(graph: Graph, node: Node, conv: _ConvNd) -> tuple[ConvBlock, Node, str | None]:
    """Cut one convolution out, with what only it feeds.

    Args:
        graph: The network.
        node: The call of the convolution.
        conv: The convolution, one without a ``refusal``.

    Returns:
        Its stage, the stage's last node, and the path of the batch norm that ended it, if one did.
    """
    conv = cast(_ConvNd, plain_convolution(conv, node.input_shape))  # without a refusal there is one
    weight, bias = conv.weight.detach(), None if conv.bias is None else conv.bias.detach()
    activation, pooling, batch_norm, stopper = NO_ACTIVATION, None, None, None
    end, reader = node, graph.only_reader(node)

    if reader and _is_batch_norm(norm := reader.operation):
        if norm.running_mean is None:
            stopper = reader.path
        else:
            weight, bias = _fold(weight, bias, norm)
            batch_norm = reader.path
            end, reader = reader, graph.only_reader(reader)
    if reader and (found := _activation(reader)):
        activation = found
        end, reader = reader, graph.only_reader(reader)
    if reader and (found := _pooling(reader, weight.ndim - 2)):
        pooling = found
        end, reader = reader, graph.only_reader(reader)
        if reader and isinstance(pooling, Window) and activation is NO_ACTIVATION:
            late = _activation(reader)
            if late and late.name == "relu":
                activation, end = late, reader

    operator = ConvOperator(
        weight,
        node.input_shape[1:],
        stride=conv.stride,
        padding=_padding(conv),
        dilation=conv.dilation,
        groups=conv.groups,
    )
    nonnegative = _is_nonnegative(graph, node.inputs[0])
    return ConvBlock(node.path, operator, bias, activation, pooling, None, nonnegative, batch_norm), end, stopper


def refusal(conv: nn.Module, call: Node | None = None) -> str:
    """Why a convolution cannot become a stage.

    Args:
        conv: The convolution.
        call: Its call, where there is one.

    Returns:
        The reason in one line; empty where it can.
    """
    if not isinstance(conv, _ConvNd):
        return "quantised filters; give the floating-point network"
    if isinstance(conv, _ConvTransposeNd):
        return "transposed convolution"
    if any(is_lazy(p) for p in conv.parameters()):
        return "not initialised; run one batch through the network first"
    if not conv.weight.is_floating_point():
        return f"filters of type {conv.weight.dtype}; only real floating-point ones are supported"
    dims = conv.weight.ndim - 2
    if call and len(call.input_shape) != dims + 2:
        return "called without a batch axis"
    if call and plain_convolution(conv, call.input_shape) is None:
        return f"its class {type(conv).__name__} computes a convolution of its own kind"
    if conv.padding_mode != "zeros" and any(_padding(conv)):
        return f"padding mode {conv.padding_mode!r}; only zeros are supported"
    if conv.padding == "same" and any(total % 2 for total in _same(conv)):
        return "padding 'same' differs on the two sides of an even filter"
    return ""


def _padding(conv: _ConvNd) -> tuple[int, ...]:
    if conv.padding == "same":
        return tuple(total // 2 for total in _same(conv))
    return (0,) * (conv.weight.ndim - 2) if isinstance(conv.padding, str) else conv.padding


def _same(conv: _ConvNd) -> list[int]:
    """Returns the padding of both sides together that keeps the size at stride 1."""
    return [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]


def _is_quantised(module: nn.Module) -> bool:
    kind = type(module)
    return "quantized" in kind.__module__ and "Conv" in kind.__name__


def _inherits(module: nn.Module, base: type[nn.Module], *methods: str) -> bool:
    """Returns whether a module runs these methods of its base class, not some of its own."""
    return all(getattr(getattr(module, m), "__func__", None) is getattr(base, m) for m in methods)


def _is_batch_norm(operation: nn.Module | str) -> TypeGuard[_BatchNorm]:
    if isinstance(operation, FrozenBatchNorm2d):
        return True
    return isinstance(operation, _BatchNorm) and any(
        _inherits(operation, base, "forward") for base in (_BatchNorm, nn.SyncBatchNorm)
    )


def _fold(weight: Tensor, bias: Tensor | None, norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Returns filters and bias of a convolution followed by a batch norm with fixed statistics."""
    dtype = torch.promote_types(weight.dtype, torch.float32)
    mean, variance = cast(Tensor, norm.running_mean).to(dtype), cast(Tensor, norm.running_var).to(dtype)
    scale = (variance + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.detach().to(dtype)
    shift = (-mean if bias is None else bias.to(dtype) - mean) * scale
    if norm.bias is not None:
        shift = shift + norm.bias.detach().to(dtype)
    scaled = weight.to(dtype) * scale.reshape(-1, *[1] * (weight.ndim - 1))
    return scaled.to(weight.dtype), shift.to(weight.dtype)


def _function(node: Node) -> str:
    """Returns the name in ``torch.nn.functional`` of what a node computes; nothing for other modules."""
    if isinstance(node.operation, str):
        return node.operation.removesuffix("_with_indices")
    return MODULES.get(type(node.operation), "")


def _activation(node: Node) -> Activation | None:
    name, operation = _function(node), node.operation
    if name not in ACTIVATIONS or len(node.inputs) != 1:
        return None
    if isinstance(operation, nn.PReLU):
        return Activation(name, partial(_prelu, weight=operation.weight.detach()))
    if isinstance(operation, nn.Module):
        own = copy.copy(operation)
        vars(own)["inplace"] = False
        return Activation(name, own.forward)
    options = {key: value for key, value in node.options.items() if key != "inplace"}
    return Activation(name, lambda h: getattr(F, name)(h, *node.arguments, **options))


def _prelu(h: Tensor, weight: Tensor) -> Tensor:
    return F.prelu(h, weight.to(h))


def _pooling(node: Node, dims: int) -> Window | AveragePool | None:
    kind, pool_dims = POOLINGS.get(_function(node), ("", 0))
    if pool_dims != dims:
        return None
    names = MAX_POOL_OPTIONS if kind == "max" else AVG_POOL_OPTIONS
    if isinstance(node.operation, str):
        given = dict(zip(names, node.arguments)) | node.options
    else:
        given = {name: getattr(node.operation, name) for name in names if hasattr(node.operation, name)}
    if given.get("divisor_override") is not None:
        return None
    window = Window.of(
        dims,
        given["kernel_size"],
        stride=given.get("stride") or None,
        padding=given.get("padding", 0),
        dilation=given.get("dilation", 1),
        ceil_mode=given.get("ceil_mode", False),
    )
    return window if kind == "max" else AveragePool(window, given.get("count_include_pad", True))


def _is_nonnegative(graph: Graph, index: int | None) -> bool:
    """Returns whether a node's values come out of an activation without negative ones, pooled or joined or not."""
    if index is None:
        return False
    node = graph.nodes[index]
    if found := _activation(node):
        return found.nonnegative
    if _function(node) in POOLINGS or node.operation in {"cat", "concat"}:
        return all(_is_nonnegative(graph, i) for i in node.inputs)
    return False
