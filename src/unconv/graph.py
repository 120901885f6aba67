"""Any network as a small graph: what it does to one input, operation by operation, in the order of execution."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Container, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from unittest import mock

import torch
import torch.utils.checkpoint as checkpoint
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakIdKeyDictionary
from torchvision.ops import FrozenBatchNorm2d

from unconv.errors import UnconvError, UsageError
from unconv.io import near_names

OUTPUT = "output"  # the layer that is the whole network
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict, DataParallel, DistributedDataParallel)
COPIES = {"clone", "contiguous", "detach"}
NOT_REACHED = "this image does not reach it: values decide what runs; an image that reaches it has to come first"
# functions that turn values into Python values or sizes, with which a forward pass can choose its way
VALUE_READERS = {
    *("__array__", "__bool__", "__contains__", "__float__", "__index__", "__int__"),
    *("allclose", "argwhere", "equal", "is_nonzero", "item", "masked_select", "nonzero", "numpy", "tolist", "unique"),
}


@dataclass(frozen=True)
class Node:
    """One operation on data that depends on the network's input; the first node is that input, the last the output.

    Operations that hand their input on as it is (identity, dropout in evaluation, copies) leave no node.
    """

    index: int  # place in the order of execution
    path: str  # of the module; of the module that calls it, for a function
    operation: nn.Module | str  # the module, or a function's name without underscores: "relu", "input", "output"
    # node behind each tensor that it reads; None for a constant, a parameter, or what was changed through a view
    inputs: tuple[int | None, ...] = ()
    input_shape: tuple[int, ...] = ()  # of the first tensor that it reads
    shape: tuple[int, ...] = ()  # of the first tensor that it gives
    arguments: tuple[Any, ...] = ()  # a function's, without tensors
    options: dict[str, Any] = field(default_factory=dict)  # a function's keyword arguments, without tensors
    users: tuple[int, ...] = ()  # nodes that read it and on which the network's output depends


@dataclass(frozen=True)
class Graph:
    """A network's operations on one input."""

    nodes: tuple[Node, ...]
    stopped: str | None = None  # why the forward pass ended before the output, in one line
    reads_values: tuple[str, ...] = ()  # modules that turn tensors into Python values, which may decide what runs
    # by a node's index: the innermost module whose output, at its first call, is what the node gave
    modules: dict[int, str] = field(default_factory=dict)
    # what kept nodes read and gave, by index: copies of their first tensors
    values: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def only_reader(self, node: Node) -> Node | None:
        """Return the node that reads ``node``, where it is the only one and reads nothing else."""
        if len(node.users) != 1:
            return None
        reader = self.nodes[node.users[0]]
        return reader if reader.inputs == (node.index,) else None

    @property
    def unreached(self) -> str:
        """Why a module was not called."""
        if self.stopped:
            return f"not reached, the forward pass stopped: {self.stopped}"
        return NOT_REACHED if self.reads_values else "never called in the forward pass"

    @property
    def path(self) -> str:
        """The way that the input took: a hash of the operations, of what reads what and what reads nothing."""
        names = [n.operation if isinstance(n.operation, str) else type(n.operation).__name__ for n in self.nodes]
        steps = [(n.path, name, n.inputs, 0 in n.input_shape) for n, name in zip(self.nodes, names, strict=True)]
        return hashlib.sha256(repr((steps, self.stopped is None)).encode()).hexdigest()[:16]


def trace(model: nn.Module, example: Tensor, keep: Container[int] = ()) -> Graph:
    """Return what a network does to an input; nodes in ``keep`` leave values. The network is left as it was."""
    check_visible(model)
    with evaluating(model):
        return record(model, example, keep)


def record(model: nn.Module, example: Tensor, keep: Container[int] = ()) -> Graph:
    """Return the same within ``evaluating``, where modules keep what their hooks left on them."""
    image = as_input_of(model, example).clone()
    mode = _Recorder(image, keep)
    with ExitStack() as hooks:
        for path, module in _outside_leaves(model):
            for handle in mode.watch(path, module):
                hooks.callback(handle.remove)
        try:
            with mode:
                output = model(image)
        except Exception as error:
            return mode.finish(stopped=first_line(error))
        return mode.finish(output)


def check_visible(model: nn.Module) -> None:
    """Raise UnconvError if a module is compiled, so that nothing can be seen of it."""
    for path, module in model.named_modules():
        compiled = "_orig_mod" in module._modules or getattr(module, "_compiled_call_impl", None)
        if compiled or isinstance(module, torch.jit.ScriptModule):
            raise UnconvError(f"{path or 'the network'} is compiled; give the nn.Module that it was made from")


@contextmanager
def evaluating(model: nn.Module, *, gradients: bool = False, freeze: bool = True) -> Iterator[None]:
    """Evaluation mode, with gradients to the input alone or without any; afterwards the network is as it was.

    That is: attributes and buffers of every module, and which parameters need gradients (left alone without
    ``freeze``, as torch.func asks). Checkpointed parts run plainly: checkpointing has no second derivatives.
    """
    # all of them, not only the training flag: a forward pass may leave activations on its modules
    modules = list(model.modules())
    saved = [(module, dict(vars(module)), dict(module._buffers)) for module in modules]
    buffers: list[tuple[Tensor, int, Tensor]] = []
    parameters = list(model.parameters()) if freeze else []
    flags = [(p, p.requires_grad) for p in parameters if not p.is_inference()]
    try:
        if any(module.training for module in modules):
            model.eval()
        # torch's own modules change no buffer in evaluation mode, and count no version in training mode
        for module in (m for m in modules if m.training or not is_leaf(m)):
            own = [b for b in module._buffers.values() if b is not None and not b.is_inference()]
            buffers += [(b, -1 if module.training else b._version, b.clone()) for b in own]
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        with torch.inference_mode(False), torch.set_grad_enabled(gradients), _without_checkpoints():
            yield
    finally:
        for module, attributes, own_buffers in saved:
            vars(module).clear()
            vars(module).update(attributes)
            module._buffers.clear()
            module._buffers.update(own_buffers)
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        for buffer, version, values in buffers:
            if buffer._version != version:
                buffer.data.copy_(values)  # without a new version, which a backward pass would object to


@contextmanager
def _without_checkpoints() -> Iterator[None]:
    def plain(function: Callable[..., Any], _: bool, *args: Any) -> Any:
        return function(*args)

    def nothing(*_: Any, **__: Any) -> Iterator[None]:
        yield

    with (
        mock.patch.object(checkpoint.CheckpointFunction, "apply", plain),
        mock.patch.object(checkpoint, "_checkpoint_without_reentrant_generator", nothing),
    ):
        yield


def as_input_of(model: nn.Module, x: Tensor) -> Tensor:
    """Return an input on the device and in the floating-point type of a network's first parameter."""
    weight = next((p for p in model.parameters() if p.is_floating_point()), None)
    if weight is None:
        return x
    return x.to(weight.device, weight.dtype if x.is_floating_point() else x.dtype)


def another_image(image: Tensor) -> Tensor:
    """Return a second image with values of the same kind: the first one turned round, with noise."""
    turned = image.flip(list(range(2, image.ndim)))
    if not image.is_floating_point():
        return turned
    noise = torch.rand(image.shape, generator=torch.Generator().manual_seed(0)).to(image)
    return turned + 0.5 * noise * (image.abs().max() or 1.0)


def first_line(error: Exception) -> str:
    """Return an exception's message cut to its first line; its type where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def is_leaf(module: nn.Module) -> bool:
    """Return whether a module is one operation: torch's own except containers, and every kind of convolution."""
    own = type(module).__module__.startswith("torch.nn.") and not isinstance(module, CONTAINERS)
    own = own and "forward" not in vars(module)  # one that was replaced may do anything
    return own or isinstance(module, _ConvNd | FrozenBatchNorm2d)


def tensors_of(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested tuples, lists and dicts."""
    yield from (tensor for _, tensor in places_of(value))


class Enough(BaseException):
    """Ends a forward pass of which the rest is not needed; no ``except Exception`` of a network swallows it."""


def find_module(model: nn.Module, layer: str) -> tuple[nn.Module, str]:
    """Return the module of a layer, and the place of the layer in its output; UsageError where there is none."""
    modules = dict(model.named_modules(remove_duplicate=False))
    modules = {OUTPUT: model} | {path: module for path, module in modules.items() if path}
    path = layer if layer in modules else layer.split("[")[0]
    if path not in modules:
        near = near_names(path, modules)
        raise UsageError(f"the network has no layer {path!r}" + (f"; near: {', '.join(near)}" if near else ""))
    return modules[path], layer[len(path) :]


def places_of(output: Any, place: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a module's output with their places, ``[0]`` or ``['key']``; one alone has none."""
    if isinstance(output, Tensor):
        yield place, output
    elif isinstance(output, list | tuple | dict):
        for key, item in output.items() if isinstance(output, dict) else enumerate(output):
            yield from places_of(item, f"{place}[{key!r}]")


def pick(output: Any, place: str, layer: str) -> Tensor:
    """Return the tensor at a place of a module's output; UsageError where there is none."""
    found = dict(places_of(output))
    if place not in found:
        raise UsageError(f"there is no layer {layer!r}; the places in its output are {', '.join(found) or 'none'}")
    return found[place]


def image_by_image(y: Tensor, count: int, layer: str) -> Tensor:
    """Return features with one row per image: an axis folded into the batch (frames, windows) becomes its own."""
    if not y.ndim or not len(y) or len(y) % count:
        raise UnconvError(f"layer {layer} has shape {tuple(y.shape)} for {count} images: no batch axis")
    return y if len(y) == count else y.unflatten(0, (count, -1))


@dataclass(frozen=True)
class _Call:
    """A call about to be made."""

    path: str
    operation: nn.Module | str
    args: Any
    options: Any
    read: list[tuple[Tensor, int | None, int]]  # each tensor that it reads, with its node and version
    value: Tensor | None


class _Recorder(TorchFunctionMode):
    """Turns calls of leaf modules, and of functions outside of them, into nodes; a tensor belongs to its maker."""

    def __init__(self, image: Tensor, keep: Container[int]) -> None:
        super().__init__()
        self.keep = keep
        self.nodes = [Node(0, "", "input", shape=tuple(image.shape))]
        self.values: dict[int, tuple[Tensor, Tensor]] = {}
        self.value_readers: dict[str, None] = {}
        self.makers = WeakIdKeyDictionary()
        self.makers[image] = (0, _version(image))
        self.modules: dict[int, str] = {}
        self.running: list[tuple[str, _Call | None]] = []
        self.left: set[str] = set()

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        path, leaf_call = self.running[-1] if self.running else ("", None)
        if leaf_call:
            return func(*args, **options)
        name = getattr(func, "__name__", str(func))
        call = self.begin(path, name.strip("_"), args, options)
        output = func(*args, **options)
        self.end(call, output)
        # a mask as an index picks as many entries as it has ones
        masked = name == "__getitem__" and any(t.dtype == torch.bool for t in tensors_of(args[1:]))
        if (masked or name in VALUE_READERS) and any(index is not None for _, index, _ in call.read):
            self.value_readers[path] = None
        return output

    def watch(self, path: str, module: nn.Module) -> Iterator[RemovableHandle]:
        """Hook a module, so that its path is known while it runs and a leaf is recorded."""
        leaf = is_leaf(module)

        def enter(_: nn.Module, args: Any, options: Any) -> None:
            self.running.append((path, self.begin(path, module, args, options) if leaf else None))

        def computed(_: nn.Module, args: Any, options: Any, output: Any) -> None:
            # what hooks of the user's own do to the output follows, as operations by themselves
            if self.running and self.running[-1][0] == path and (call := self.running[-1][1]):
                self.end(call, output)
                self.running[-1] = (path, None)

        def leave(_: nn.Module, args: Any, options: Any, output: Any) -> None:
            # not where a hook before ours raised, so that the module was never entered
            if self.running and self.running[-1][0] == path:
                if path not in self.left and isinstance(output, Tensor) and output in self.makers:
                    self.modules.setdefault(self.makers[output][0], path)
                self.left.add(path)
                self.running.pop()

        yield module.register_forward_pre_hook(enter, with_kwargs=True)
        yield module.register_forward_hook(computed, with_kwargs=True, prepend=True)
        yield module.register_forward_hook(leave, with_kwargs=True, always_call=True)

    def begin(self, path: str, operation: nn.Module | str, args: Any, options: Any) -> _Call:
        """Return a call that is about to be made, with what it reads before it may change that in place."""
        read = self.read((args, options))
        kept = read[0][0].clone() if read and len(self.nodes) in self.keep else None
        return _Call(path, operation, args, options, read, kept)

    def end(self, call: _Call, output: Any) -> None:
        """Add the node of a call that was made, if it computed something that depends on the input."""
        outputs = list(tensors_of(output))
        function = isinstance(call.operation, str)
        if not outputs or (function and all(index is None for _, index, _ in call.read)):
            return
        if any(output is tensor and _version(tensor) == version for tensor, _, version in call.read):
            return
        if function and call.operation in COPIES:
            maker = call.read[0][1]
        else:
            maker = len(self.nodes)
            inputs = tuple(index for _, index, _ in call.read)
            input_shape = tuple(call.read[0][0].shape) if call.read else ()
            node = Node(maker, call.path, call.operation, inputs, input_shape, tuple(outputs[0].shape))
            if function:
                arguments = tuple(a for a in call.args if not any(True for _ in tensors_of(a)))
                options = {k: v for k, v in call.options.items() if not isinstance(v, Tensor)}
                node = replace(node, arguments=arguments, options=options)
            self.nodes.append(node)
            if call.value is not None:
                self.values[maker] = (call.value, outputs[0].clone())
        for tensor in outputs:
            self.makers[tensor] = (maker, _version(tensor))

    def read(self, values: Any) -> list[tuple[Tensor, int | None, int]]:
        """Return the tensors among some values, each with its node and version."""
        read = []
        for tensor in tensors_of(values):
            index, version = self.makers.get(tensor) or (None, 0)
            read.append((tensor, index if _version(tensor) == version else None, _version(tensor)))
        return read

    def finish(self, output: Any = None, stopped: str | None = None) -> Graph:
        """Return the graph, with each node's users filled in."""
        nodes = [*self.nodes, Node(len(self.nodes), "", "output", tuple(index for _, index, _ in self.read(output)))]
        # an output of a type of the user's own, or none: then everything counts as used
        live = {len(self.nodes)} if nodes[-1].inputs else {node.index for node in nodes}
        users: list[list[int]] = [[] for _ in nodes]
        for node in reversed(nodes):
            if node.index in live:
                for index in {i for i in node.inputs if i is not None}:
                    live.add(index)
                    users[index].insert(0, node.index)
        read = tuple(replace(node, users=tuple(users[node.index])) for node in nodes)
        return Graph(read, stopped, tuple(self.value_readers), self.modules, self.values)


def _version(tensor: Tensor) -> int:
    """Return how often a tensor was changed in place; tensors made in inference mode do not count it."""
    return 0 if tensor.is_inference() else tensor._version


def _outside_leaves(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    inside: set[nn.Module] = set()
    for path, module in model.named_modules():
        if module not in inside:
            yield path, module
            if is_leaf(module):
                inside.update(module.modules())
