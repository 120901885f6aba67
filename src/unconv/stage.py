"""Stages: a convolution with its batch norm, activation and pooling, cut out of any network."""

from __future__ import annotations

import copy
import hashlib
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import takewhile
from typing import Any, TypeGuard, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.parameter import is_lazy
from torchvision.ops import FrozenBatchNorm2d

from unconv import notebook
from unconv.errors import UnconvError, UsageError
from unconv.operators import ConvOperator, gaussian_like
from unconv.sparsity import AveragePool, Code, Pooled, Window
from unconv.trace import FrontEnd, Graph, Node, as_input_of, evaluating, first_line, trace

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
NONNEGATIVE = {"relu", "relu6", "sigmoid", "hardsigmoid", "softplus"}
CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
FUNCTIONAL = re.compile(r"conv(_transpose)?[123]d|convolution|deform_conv2d")
IMAGE = "image"


@dataclass(frozen=True)
class Activation:
    """A function that is applied to every entry.

    Attributes:
        name: Its name in ``torch.nn.functional``; ``"none"`` for the identity.
        function: The function, out of place.
    """

    name: str
    function: Callable[[Tensor], Tensor]

    @property
    def nonnegative(self) -> bool:
        """Whether no output is below zero."""
        return self.name in NONNEGATIVE


def identity(h: Tensor) -> Tensor:
    """The activation of a stage that has none.

    Args:
        h: Anything.

    Returns:
        The same.
    """
    return h


NO_ACTIVATION = Activation("none", identity)


@dataclass(frozen=True, eq=False)
class Stage:
    """One convolution of a network and what the network does to its output before anything else reads it.

    Attributes:
        name: Path of the convolution's module.
        operator: The convolution, with the batch norm folded into its filters.
        bias: Bias of the convolution and the batch norm together. Shape ``(K,)``; ``None`` where there is none.
        activation: The activation.
        pooling: Max pooling, average pooling, or ``None``.
        source: What the convolution reads: ``"image"`` (the network's input), the name of the stage whose
            output it is, or ``None`` (anything else, such as a sum of branches).
        nonnegative_input: Whether what it reads comes out of an activation without negative values (or a
            pooling or concatenation of such).
        batch_norm: Path of the batch norm that was folded, or ``None``.
    """

    name: str
    operator: ConvOperator
    bias: Tensor | None
    activation: Activation = NO_ACTIVATION
    pooling: Window | AveragePool | None = None
    source: str | None = None
    nonnegative_input: bool = False
    batch_norm: str | None = None

    def __repr__(self) -> str:
        return f"Stage({self.name}: {self.kind}, {self.input_shape} -> {self.code_shape})"

    def _repr_html_(self) -> str:
        weight = self.operator.weight
        rows = {
            "stage": self.name,
            "parts": self.kind,
            "input": self.input_shape,
            "code": self.code_shape,
            "filters": tuple(weight.shape),
            "reads": self.source or "something that is not the output of one stage",
        }
        # a single tap per filter is no picture
        if not notebook.is_picture(weight) or max(weight.shape[2:]) < 2:
            return notebook.table(rows)
        return notebook.table(rows) + notebook.mosaic(weight, "The first filters, each scaled to its own range")

    @property
    def kind(self) -> str:
        """Its parts in the order of the paper, such as ``"conv+bn+relu+maxpool"``."""
        parts = ["conv"]
        parts += ["bn"] if self.batch_norm is not None else []
        parts += [self.activation.name] if self.activation.name != "none" else []
        if self.pooling is not None:
            parts.append("maxpool" if isinstance(self.pooling, Window) else "avgpool")
        return "+".join(parts)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input, ``(M, *spatial)``."""
        return self.operator.input_shape

    @property
    def window(self) -> Window | None:
        """The regions of the pooling, of either kind."""
        return self.pooling.window if isinstance(self.pooling, AveragePool) else self.pooling

    @property
    def code_shape(self) -> tuple[int, ...]:
        """Shape of one code's values, ``(K, *pooled)``."""
        channels, *spatial = self.operator.output_shape
        return (channels, *(self.window.pooled_shape(spatial) if self.window else spatial))

    def preactivation(self, x: Tensor) -> Tensor:
        """The convolution with its bias and batch norm, ``W x + b``.

        Args:
            x: Inputs. Shape ``(N, M, *spatial)``.

        Returns:
            Shape ``(N, K, *output_spatial)``.
        """
        h = self.operator.forward(x)
        return h if self.bias is None else h + self.bias.reshape(-1, *[1] * self.operator.dims)

    def activate(self, h: Tensor) -> Tensor:
        """The activation.

        Args:
            h: Preactivations, any shape.

        Returns:
            The same shape.
        """
        return self.activation.function(h)

    def encode(self, x: Tensor) -> Code:
        """The network's own code: convolution, activation, pooling (max pooling by value, with its switches).

        Args:
            x: Inputs. Shape ``(N, M, *spatial)``.

        Returns:
            The code; its values are what the network computes there.
        """
        return self.pool(self.activate(self.preactivation(x)))

    def pool(self, activated: Tensor) -> Code:
        """The pooling alone.

        Args:
            activated: Activations. Shape ``(N, K, *output_spatial)``.

        Returns:
            The code.
        """
        if isinstance(self.pooling, Window):
            return Pooled(self.pooling, signed=True).project(activated)
        values = activated if self.pooling is None else self.pooling.forward(activated)
        return Code(values, None, self.operator.output_shape, self.pooling)

    def with_gaussian(self, seed: int) -> Stage:
        """The stage with Gaussian filters of expected unit norm, no bias and no batch norm.

        Args:
            seed: Seed; the filters are those of ``gaussian_copy`` with the same seed.

        Returns:
            The new stage.
        """
        weight = gaussian_like(self.operator.weight, _seed(seed, self.name))
        return replace(self, operator=self.operator.with_weight(weight), bias=None)

    def with_region(self, region: int | tuple[int, ...]) -> Stage:
        """The stage with max pooling over non-overlapping regions, imposed where the network has none.

        Args:
            region: Size of the regions, one number or one per axis.

        Returns:
            The new stage.

        Raises:
            UnconvError: If the stage pools already, or its map is smaller than one region.
        """
        if self.pooling is not None:
            raise UnconvError(f"stage {self.name} ({self.kind}) pools already; leave the region out")
        try:
            window = Window.of(self.operator.dims, region)
            window.pooled_shape(self.operator.output_shape[1:])
        except ValueError as error:
            raise UnconvError(f"region {region} does not fit stage {self.name}: {error}") from None
        return replace(self, pooling=window)

    def to(self, *args: torch.dtype | torch.device | str) -> Stage:
        """The stage on another device or in another floating-point type.

        Args:
            *args: As for ``torch.Tensor.to``.

        Returns:
            The new stage.
        """
        operator = self.operator.to(*args)
        return replace(self, operator=operator, bias=None if self.bias is None else self.bias.to(operator.weight))


@dataclass(frozen=True)
class Skipped:
    """A module that was left out, and why.

    Attributes:
        module: Its path.
        reason: The reason, in one line.
    """

    module: str
    reason: str


@dataclass(frozen=True)
class Stages:
    """What was found in a network.

    Attributes:
        stages: In the order of execution.
        skipped: Convolutions that are no stage, and what else was left out.
        traced_by: How the network was traced, ``"fx"`` or ``"hooks"``.
    """

    stages: tuple[Stage, ...]
    skipped: tuple[Skipped, ...]
    traced_by: FrontEnd

    def __iter__(self) -> Iterator[Stage]:
        return iter(self.stages)

    def __len__(self) -> int:
        return len(self.stages)

    def _repr_html_(self) -> str:
        found = notebook.grid(
            ("stage", "parts", "input", "code", "reads"),
            [(s.name, s.kind, s.input_shape, s.code_shape, s.source) for s in self.stages],
        )
        left_out = notebook.grid(("left out", "why"), [(s.module, s.reason) for s in self.skipped])
        return found + left_out if self.skipped else found

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the stages, in the order of execution."""
        return tuple(stage.name for stage in self.stages)

    def get(self, name: str) -> Stage:
        """The stage of a name.

        Args:
            name: Path of its convolution.

        Returns:
            The stage.

        Raises:
            UsageError: If there is none; the message lists the stages.
        """
        for stage in self.stages:
            if stage.name == name:
                return stage
        reason = next((f" ({s.reason})" for s in self.skipped if s.module == name), "")
        raise UsageError(f"there is no stage {name!r}{reason}; the stages are {', '.join(self.names)}")


def find_stages(model: nn.Module, example: Tensor, *, front_end: FrontEnd | None = None) -> Stages:
    """Cut a network in evaluation mode into stages. The network is left as it was.

    A stage is a convolution, then each of these where it is the only reader of what comes before: a batch norm
    with running statistics, an activation, a max or average pooling (or max pooling, then ReLU: they commute).
    Where the forward pass fails after the first convolution, the stages up to there are found.

    Args:
        model: Any module whose forward pass takes one tensor.
        example: An input, with the batch axis; only its shape matters unless the network looks at its values.
        front_end: How to trace, see ``trace``.

    Returns:
        The stages, and what was left out.

    Raises:
        UnconvError: If there is no convolution, or the forward pass fails before the first one.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from unconv import find_stages
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2))
        >>> find_stages(net.eval(), torch.zeros(1, 3, 16, 16)).get("0")
        Stage(0: conv+bn+relu+maxpool, (3, 16, 16) -> (8, 8, 8))
    """
    graph = trace(model, example, front_end)
    stages: list[Stage] = []
    skipped: dict[str, Skipped] = {}
    ends: dict[int | None, str] = {0: IMAGE}
    called: set[str] = set()

    def skip(module: str, reason: str) -> None:
        skipped.setdefault(module, Skipped(module, reason))

    for node in graph.nodes:
        conv = node.operation
        if isinstance(conv, str):
            if FUNCTIONAL.fullmatch(conv):
                skip(node.path or "the network itself", f"calls {conv} as a function; only nn.Conv modules are stages")
        elif is_convolution(conv):
            reason = _refusal(conv, node)
            if reason or not isinstance(conv, _ConvNd):
                skip(node.path, reason)
            elif node.path in called:
                skip(node.path, "called several times; the stage is the first call")
            else:
                stage, end, stopper = _cut(graph, node, conv)
                stages.append(replace(stage, source=ends.get(node.inputs[0])))
                ends[end.index] = stage.name
                if stopper:
                    skip(stopper, f"batch norm without running statistics cannot be folded; {stage.name} ends there")
            called.add(node.path)

    unreached = "never called in the forward pass"
    if graph.stopped:
        unreached = f"not reached, the forward pass stopped: {graph.stopped}"
    for path, module in model.named_modules():
        if is_convolution(module) and path not in called:
            skip(path, _refusal(module) or unreached)

    if behind := _behind_patches(model, stages, skipped):
        skip(behind, "patch embedding only: attention takes over from the patches, and is no convolution to invert")
    if not stages and not skipped:
        raise UnconvError("the network has no convolution; it needs an nn.Conv1d, nn.Conv2d or nn.Conv3d")
    if not stages and graph.stopped:
        raise UnconvError(f"the network cannot take an input of shape {tuple(example.shape)}: {graph.stopped}")
    return Stages(tuple(stages), tuple(skipped.values()), graph.traced_by)


def _behind_patches(model: nn.Module, stages: Sequence[Stage], skipped: Collection[str]) -> str:
    """Returns the path of a vision transformer's blocks; nothing where it has other convolutions than patches."""
    operators = [stage.operator for stage in stages if stage.source == IMAGE]
    patches = [op for op in operators if tuple(op.weight.shape[2:]) == op.stride and min(op.stride) > 1]
    if not stages or skipped or len(patches) < len(stages):
        return ""
    paths = [path.split(".") for path, module in model.named_modules() if "attention" in type(module).__name__.lower()]
    shared = takewhile(lambda level: len(set(level)) == 1, zip(*paths))
    return ".".join(level[0] for level in shared) if paths else ""


def is_convolution(module: nn.Module) -> bool:
    """Whether a module is a convolution of any kind, transposed and quantised ones included.

    Args:
        module: Any module.

    Returns:
        True for those that become a stage or are named as left out.
    """
    return isinstance(module, _ConvNd) or _is_quantised(module)


def capture(model: nn.Module, names: Iterable[str], x: Tensor) -> dict[str, Tensor]:
    """What convolutions read when a network runs on a batch, as copies that nothing in place can change.

    The forward pass stops after the last one, so what lies behind need not work. Of a convolution that is
    called several times, the first call counts.

    Args:
        model: The network; run in evaluation mode and left as it was.
        names: Paths of the convolutions.
        x: The batch. Shape ``(N, *input)``; moved to the network's device and floating-point type.

    Returns:
        Per name, in the order of ``names``, the input. Shape ``(N, M, *spatial)``.

    Raises:
        UsageError: If the network has no such module.
        UnconvError: If the forward pass fails or ends before all were reached, or an input is not finite.
    """
    modules = dict(model.named_modules())
    wanted = tuple(dict.fromkeys(names))
    for name in wanted:
        if name not in modules:
            raise UsageError(f"the network has no module {name!r}")
    found: dict[str, Tensor] = {}

    def keep(name: str, _: nn.Module, args: Any, options: Any) -> None:
        if name not in found:
            found[name] = (args[0] if args else options["input"]).clone()
        if len(found) == len(wanted):
            raise _Enough

    with evaluating(model), ExitStack() as hooks:
        for name in wanted:
            handle = modules[name].register_forward_pre_hook(partial(keep, name), with_kwargs=True)
            hooks.callback(handle.remove)
        try:
            model(as_input_of(model, x).clone())
        except _Enough:
            pass
        except Exception as error:
            raise UnconvError(
                f"the network cannot take an input of shape {tuple(x.shape)}: {first_line(error)}"
            ) from error
    for name in wanted:
        if name not in found:
            raise UnconvError(f"the forward pass does not reach {name} on an input of shape {tuple(x.shape)}")
        finite = found[name].flatten(1).isfinite().all(1)
        if not finite.all():
            # an axis that is not the batch (frames, patches) holds as many entries per image
            image = int((~finite).nonzero()[0]) * len(x) // len(finite)
            raise UnconvError(f"the input of stage {name} has NaN or infinite values for image {image} of the batch")
    return {name: found[name] for name in wanted}


class _Enough(BaseException):
    """Ends a forward pass of which the rest is not needed; no ``except Exception`` of a network swallows it."""


def gaussian_copy(model: nn.Module, seed: int, stages: Iterable[Stage]) -> nn.Module:
    """A copy of a network in which stages have Gaussian filters of expected unit norm.

    Their biases become zero and the batch norms folded into them the identity. The filters of a stage depend on
    the seed and its name only, not on which others are drawn.

    Args:
        model: The network.
        seed: Seed.
        stages: Stages of that network: all (what ``find_stages`` gives) or some.

    Returns:
        The copy.

    Raises:
        UnconvError: If filters are no parameter of their own but computed from others (weight norm).
    """
    stages = tuple(stages)
    for stage in stages:
        if model.get_submodule(stage.name)._parameters.get("weight") is None:
            raise UnconvError(f"the filters of {stage.name} are computed from others; remove its parametrization first")
    other = copy.deepcopy(model)
    with torch.no_grad():
        for stage in stages:
            state = other.get_submodule(stage.name).state_dict(keep_vars=True)
            state["weight"].copy_(gaussian_like(state["weight"], _seed(seed, stage.name)))
            if "bias" in state:
                state["bias"].zero_()
            if stage.batch_norm is not None:
                norm = cast(_BatchNorm, other.get_submodule(stage.batch_norm))
                values = {"running_mean": 0.0, "running_var": 1.0 - norm.eps, "weight": 1.0, "bias": 0.0}
                for name, tensor in norm.state_dict(keep_vars=True).items():
                    if name in values:
                        tensor.fill_(values[name])
    return other


def _seed(seed: int, name: str) -> int:
    """Returns the seed of one stage's draw."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:7], "big")


def _cut(graph: Graph, node: Node, conv: _ConvNd) -> tuple[Stage, Node, str | None]:
    """Returns the stage of one convolution, its last node, and the batch norm that ended it, if one did."""
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
    return Stage(node.path, operator, bias, activation, pooling, None, nonnegative, batch_norm), end, stopper


def _refusal(conv: nn.Module, call: Node | None = None) -> str:
    """Returns why a convolution (and its call) cannot become a stage; nothing where it can."""
    if not isinstance(conv, _ConvNd):
        return "quantised filters; give the floating-point network"
    if isinstance(conv, _ConvTransposeNd):
        return "transposed convolution"
    if any(is_lazy(p) for p in conv.parameters()):
        return "not initialised; run one batch through the network first"
    if not conv.weight.is_floating_point():
        return f"filters of type {conv.weight.dtype}; only real floating-point ones are supported"
    dims = conv.weight.ndim - 2
    if not _inherits(conv, CONVOLUTIONS[dims], "forward", "_conv_forward"):
        return f"its class {type(conv).__name__} computes a convolution of its own kind"
    if conv.padding_mode != "zeros" and any(_padding(conv)):
        return f"padding mode {conv.padding_mode!r}; only zeros are supported"
    if conv.padding == "same" and any(total % 2 for total in _same(conv)):
        return "padding 'same' differs on the two sides of an even filter"
    if call and len(call.input_shape) != dims + 2:
        return "called without a batch axis"
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
