"""Finding the conv blocks of a network: cutting its graph at every convolution, and checking what was cut."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeGuard, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.overrides import TorchFunctionMode
from torchvision.ops import FrozenBatchNorm2d

from unconv.conv_block import IMAGE, NO_ACTIVATION, Activation, ConvBlock, ConvBlocks, Skipped
from unconv.errors import UnconvError
from unconv.graph import (
    NOT_REACHED,
    Graph,
    Node,
    another_image,
    as_input_of,
    check_visible,
    evaluating,
    first_line,
    record,
    trace,
)
from unconv.linalg import column, tiny
from unconv.operators import ConvOperator
from unconv.sparsity import AveragePool, Window

# modules that are one function of torch.nn.functional, by that function's name
NAMED_ALIKE = (
    *(nn.ReLU, nn.ReLU6, nn.PReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish),
    *(nn.Hardsigmoid, nn.Hardtanh, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Softsign),
)
POOLS = {
    getattr(nn, f"{kind}Pool{dims}d"): f"{kind.lower()}_pool{dims}d" for kind in ("Max", "Avg") for dims in (1, 2, 3)
}
MODULES: dict[type[nn.Module], str] = {kind: kind.__name__.lower() for kind in NAMED_ALIKE}
MODULES |= {nn.LeakyReLU: "leaky_relu"} | POOLS
POOLINGS = {name: (name[:3], int(name[-2])) for name in MODULES.values() if "_pool" in name}
MAX_POOL_OPTIONS = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
AVG_POOL_OPTIONS = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
ACTIVATIONS = set(MODULES.values()) - set(POOLINGS)

FUNCTIONAL = re.compile(r"conv(_transpose)?[123]d|convolution|deform_conv2d")
CLASSES = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d)
CONV_ARGUMENTS = ("weight", "bias", "stride", "padding", "dilation", "groups")
CHANGING_SHAPE = "the shape of its input depends on the image's values"
TOLERANCE = 3e-3  # largest difference between a block and the network, relative to the largest value (TF32: 1e-3)


def find_conv_blocks(model: nn.Module, x: Tensor) -> ConvBlocks:
    """Cut a network in evaluation mode into conv blocks. The network is left as it was.

    A conv block is a convolution, then each of these where it is the only reader of what comes before: a batch norm
    with running statistics, an activation, a max or average pooling (or max pooling, then ReLU: they commute).
    Every block is checked against the network's own output on the image, and left out by name where it differs.
    Where the forward pass fails after the first convolution, the blocks up to there are found.

    Args:
        model: Any module whose forward pass takes one tensor.
        x: An input, with the batch axis; its first image is used.

    Returns:
        The conv blocks, and what was left out.

    Raises:
        UnconvError: If there is no convolution, the forward pass fails before the first one, or a module is compiled.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from unconv import find_conv_blocks
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2))
        >>> find_conv_blocks(net.eval(), torch.zeros(1, 3, 16, 16)).get("0")
        ConvBlock(0: conv+bn+relu+maxpool, (3, 16, 16) -> (8, 8, 8))
    """
    check_visible(model)
    image = as_input_of(model, x[:1])
    skipped: dict[str, str] = {}
    # filters are read before the network is as it was: the forward pass's hooks compute some (weight_norm, prune)
    with evaluating(model):
        graph = record(model, image)
        cuts = _cut_all(graph, skipped)
        reasons = {path: _refusal(m) for path, m in model.named_modules() if isinstance(m, _ConvNd)}
    called = {node.path for node in graph.nodes if not isinstance(node.operation, str)}
    for path, reason in reasons.items():
        if path not in called:
            skipped.setdefault(path, reason or graph.unreached)

    if not cuts and not skipped:
        raise UnconvError("the network has no convolution; it needs an nn.Conv1d, nn.Conv2d or nn.Conv3d")
    if not cuts and graph.stopped:
        raise UnconvError(f"the network cannot take an input of shape {tuple(x.shape)}: {graph.stopped}")
    blocks = [cut.block for cut in cuts]
    if cuts and image.device.type != "meta":
        blocks = _checked(model, image, graph, cuts, skipped)
    left_out = tuple(Skipped(module, reason) for module, reason in skipped.items())
    return ConvBlocks(tuple(blocks), left_out, graph.path, graph.reads_values)


@dataclass(frozen=True)
class _Cut:
    """A conv block, and its first and last node."""

    block: ConvBlock
    start: int
    end: int


def _cut_all(graph: Graph, skipped: dict[str, str]) -> list[_Cut]:
    """Return the conv blocks of a graph; the convolutions that are none go to ``skipped`` with the reason."""
    cuts: list[_Cut] = []
    sources: dict[int | None, str] = {0: IMAGE}
    called: set[str] = set()
    for node in graph.nodes:
        conv = node.operation
        if isinstance(conv, str):
            if FUNCTIONAL.fullmatch(conv):
                path = node.path or "the network itself"
                skipped.setdefault(path, f"calls {conv} as a function; only nn.Conv modules are conv blocks")
        elif isinstance(conv, _ConvNd):
            if reason := _refusal(conv, node):
                skipped.setdefault(node.path, reason)
            elif node.path in called:
                skipped.setdefault(node.path, "called several times; the conv block is the first call")
            else:
                block, end, stopper = _cut(graph, node, conv)
                block = replace(block, source=sources.get(node.inputs[0]), output=graph.modules.get(end.index) or None)
                cuts.append(_Cut(block, node.index, end.index))
                sources[end.index] = block.name
                if stopper:
                    reason = f"batch norm without running statistics cannot be folded; {block.name} ends there"
                    skipped.setdefault(stopper, reason)
            called.add(node.path)
    return cuts


def _checked(
    model: nn.Module, image: Tensor, graph: Graph, cuts: Sequence[_Cut], skipped: dict[str, str]
) -> list[ConvBlock]:
    """Return the blocks that compute what the network does; the others go to ``skipped`` with the difference."""
    keep = {cut.start for cut in cuts} | {cut.end for cut in cuts}
    # another image shows filters that depend on the first one, and factors that a constant one hides
    probe = another_image(image)
    kept = trace(model, probe, keep)
    if kept.path != graph.path:
        probe, kept = image, trace(model, image, keep)
    outputs, blocks = {IMAGE: probe}, []
    for cut in cuts:
        block = cut.block
        if kept.path != graph.path:
            skipped.setdefault(block.name, "the network takes another path in every forward pass")
            continue
        x, expected = kept.values[cut.start][0], kept.values[cut.end][1]
        if x.shape[1:] != block.input_shape or not len(x):
            skipped.setdefault(block.name, CHANGING_SHAPE if len(x) else NOT_REACHED)
            continue
        try:
            with torch.no_grad():
                difference = _difference(block.encode(x.to(block.operator.weight)).values, expected)
        except Exception as error:
            skipped.setdefault(block.name, f"its parts as read fail on its input: {first_line(error)}")
            continue
        if difference <= max(TOLERANCE, 4 * torch.finfo(expected.dtype).eps):
            outputs[block.name] = expected
            linked = block.source in outputs and _difference(outputs[block.source], x) <= TOLERANCE
            nonnegative = block.nonnegative_input and not bool((x < 0).any())
            source = block.source if linked else None
            blocks.append(replace(block, source=source, nonnegative_input=nonnegative, difference=difference))
        else:
            reason = f"its parts as read differ from the network's own output by {difference:.2g} times its largest "
            reason += "value; a hook, a replaced forward or training mode changes them"
            skipped.setdefault(block.name, reason)
    return blocks


def _difference(values: Tensor, expected: Tensor) -> float:
    """Return max |values - expected| / max |expected|; zero where the expected values overflow."""
    if values.shape != expected.shape:
        return math.inf
    if not expected.isfinite().all():
        return 0.0
    largest = expected.abs().max().clamp_min(tiny(expected))
    return float((values - expected.to(values)).abs().max() / largest.to(values))


def _cut(graph: Graph, node: Node, conv: _ConvNd) -> tuple[ConvBlock, Node, str | None]:
    """Return a convolution's block, the block's last node, and the path of the batch norm that ended it, if any."""
    conv = cast(_ConvNd, _plain_convolution(conv, node.input_shape))  # without a refusal there is one
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
    if reader and (own_activation := _activation(reader)):
        activation = own_activation
        end, reader = reader, graph.only_reader(reader)
    if reader and (own_pooling := _pooling(reader, weight.ndim - 2)):
        pooling = own_pooling
        end, reader = reader, graph.only_reader(reader)
        if reader and isinstance(pooling, Window) and activation is NO_ACTIVATION:
            late = _activation(reader)
            if late and late.name == "relu":
                activation, end = late, reader

    geometry = {"stride": conv.stride, "dilation": conv.dilation, "groups": conv.groups}
    operator = ConvOperator(weight, node.input_shape[1:], padding=_padding(conv), **geometry)
    nonnegative = _is_nonnegative(graph, node.inputs[0])
    return ConvBlock(node.path, operator, bias, activation, pooling, None, nonnegative, batch_norm), end, stopper


def _refusal(conv: _ConvNd, call: Node | None = None) -> str:
    """Return why a convolution, with its call where there is one, cannot be a conv block; empty where it can."""
    if isinstance(conv, _ConvTransposeNd):
        return "transposed convolution"
    if not conv.weight.is_floating_point():
        return f"filters of type {conv.weight.dtype}; only real floating-point ones are supported"
    dims = conv.weight.ndim - 2
    if call and len(call.input_shape) != dims + 2:
        return "called without a batch axis"
    if call and _plain_convolution(conv, call.input_shape) is None:
        if "forward" in vars(conv):
            return "its forward was replaced by one that is no plain convolution of its input"
        return f"its class {type(conv).__name__} computes a convolution of its own kind"
    if conv.padding_mode != "zeros" and any(_padding(conv)):
        return f"padding mode {conv.padding_mode!r}; only zeros are supported"
    if conv.padding == "same" and any(total % 2 for total in _same_padding(conv)):
        return "padding 'same' differs on the two sides of an even filter"
    return ""


def _padding(conv: _ConvNd) -> tuple[int, ...]:
    if conv.padding == "same":
        return tuple(total // 2 for total in _same_padding(conv))
    return (0,) * (conv.weight.ndim - 2) if isinstance(conv.padding, str) else conv.padding


def _same_padding(conv: _ConvNd) -> list[int]:
    """Return the padding of both sides together that keeps the size at stride 1."""
    return [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]


def _inherits(module: nn.Module, base: type[nn.Module], *methods: str) -> bool:
    """Return whether a module runs these methods of its base class, not some of its own."""
    return all(getattr(getattr(module, m), "__func__", None) is getattr(base, m) for m in methods)


def _is_batch_norm(operation: nn.Module | str) -> TypeGuard[_BatchNorm]:
    bases = (_BatchNorm, nn.SyncBatchNorm)
    own = isinstance(operation, _BatchNorm) and any(_inherits(operation, base, "forward") for base in bases)
    return own or isinstance(operation, FrozenBatchNorm2d)


def _fold(weight: Tensor, bias: Tensor | None, norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Return filters and bias of a convolution followed by a batch norm with fixed statistics."""
    dtype = torch.promote_types(weight.dtype, torch.float32)
    mean, variance = cast(Tensor, norm.running_mean).to(dtype), cast(Tensor, norm.running_var).to(dtype)
    scale = (variance + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.detach().to(dtype)
    shift = (-mean if bias is None else bias.to(dtype) - mean) * scale
    if norm.bias is not None:
        shift = shift + norm.bias.detach().to(dtype)
    scaled = weight.to(dtype) * column(scale, weight)
    return scaled.to(weight.dtype), shift.to(weight.dtype)


def _function(node: Node) -> str:
    """Return the name in ``torch.nn.functional`` of what a node computes; nothing for other modules."""
    if isinstance(node.operation, str):
        return node.operation.removesuffix("_with_indices")
    return MODULES.get(type(node.operation), "")


def _activation(node: Node) -> Activation | None:
    name, operation = _function(node), node.operation
    if name not in ACTIVATIONS or len(node.inputs) != 1:
        return None
    if isinstance(operation, nn.PReLU):
        weight = operation.weight.detach()
        return Activation(name, lambda h: F.prelu(h, weight.to(h)))
    if isinstance(operation, nn.Module):
        own = copy.copy(operation)
        vars(own)["inplace"] = False
        return Activation(name, partial(type(own).forward, own))  # a forward of the instance's own is seen in the check
    options = {key: value for key, value in node.options.items() if key != "inplace"}
    return Activation(name, lambda h: getattr(F, name)(h, *node.arguments, **options))


def _pooling(node: Node, dims: int) -> Window | AveragePool | None:
    kind, pool_dims = POOLINGS.get(_function(node), ("", 0))
    if pool_dims != dims:
        return None
    names = MAX_POOL_OPTIONS if kind == "max" else AVG_POOL_OPTIONS
    if isinstance(node.operation, str):
        arguments = dict(zip(names, node.arguments)) | node.options
    else:
        arguments = {name: getattr(node.operation, name) for name in names if hasattr(node.operation, name)}
    if arguments.get("divisor_override") is not None:
        return None
    given = {name: arguments[name] for name in ("padding", "dilation", "ceil_mode") if name in arguments}
    window = Window.of(dims, arguments["kernel_size"], stride=arguments.get("stride") or None, **given)
    return window if kind == "max" else AveragePool(window, arguments.get("count_include_pad", True))


def _is_nonnegative(graph: Graph, index: int | None) -> bool:
    """Return whether a node's values come out of an activation without negative ones, pooled or joined or not."""
    if index is None:
        return False
    node = graph.nodes[index]
    if activation := _activation(node):
        return activation.nonnegative
    if _function(node) in POOLINGS or node.operation in {"cat", "concat"}:
        return all(_is_nonnegative(graph, i) for i in node.inputs)
    return False


def _plain_convolution(module: _ConvNd, shape: tuple[int, ...]) -> _ConvNd | None:
    """Return the convolution of torch's own class that a module computes on inputs of a shape, or None.

    A class of its own counts where its forward pass hands its input to one convolution as it is, with filters that do
    not depend on the input, and returns what comes out: weight standardisation (Qiao et al. 2019), scaled or not.
    """
    base = CLASSES[module.weight.ndim - 2]
    if _inherits(module, base, "forward") and _inherits(module, base, "_conv_forward"):
        return module
    generator = torch.Generator().manual_seed(0)
    probes = [torch.randn(1, *shape[1:], generator=generator).to(module.weight) for _ in range(2)]
    arguments, again = (_only_call(module, x) for x in probes)
    if not arguments or not again:
        return None
    pairs = [(arguments.get(name), again.get(name)) for name in CONV_ARGUMENTS]
    if not all(torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else a == b for a, b in pairs):
        return None
    sizes = (module.in_channels, module.out_channels, module.kernel_size)
    options = {name: arguments[name] for name in CONV_ARGUMENTS[2:] if name in arguments}
    plain = base(*sizes, **options, bias=False, device="meta")
    for name in CONV_ARGUMENTS[:2]:
        if arguments.get(name) is not None:
            setattr(plain, name, nn.Parameter(arguments[name].detach(), requires_grad=False))
    return plain.eval()


def _only_call(module: nn.Module, x: Tensor) -> dict[str, Any] | None:
    """Return the arguments of the convolution that a module hands its input to, where that is all it does with it."""
    watch = _ConvWatch()
    try:
        with torch.no_grad(), watch:
            y = module(x)
    except Exception:
        # a class of someone else's own raises anything
        return None
    arguments, output = watch.calls[0] if len(watch.calls) == 1 else ({}, None)
    return arguments if output is y and arguments.pop("input", None) is x else None


class _ConvWatch(TorchFunctionMode):
    """Keeps the named arguments and the output of every convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[dict[str, Any], Tensor]] = []

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if func in CONVOLUTIONS:
            self.calls.append((dict(zip(("input", *CONV_ARGUMENTS), args)) | (kwargs or {}), output))
        return output
