"""Any network as a small graph: what it does to one input, operation by operation, in the order of execution."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakIdKeyDictionary
from torchvision.ops import FrozenBatchNorm2d

from unconv.errors import UnconvError

FrontEnd = Literal["fx", "hooks"]
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict, DataParallel, DistributedDataParallel)
COPIES = {"clone", "contiguous", "detach"}


@dataclass(frozen=True)
class Node:
    """One operation on data that depends on the network's input.

    Operations that hand their input on as it is (identity, dropout in evaluation, copies) leave no node.

    Attributes:
        index: Place in the order of execution. Node 0 is the network's input, the last one its output.
        path: Path of the module; of the module that calls it, for a function.
        operation: The module, or the function's name without underscores: ``"relu"``, ``"add"``,
            ``"input"``, ``"output"``.
        inputs: Node behind each tensor that it reads; ``None`` for a constant, a parameter, or a tensor that
            was changed in place through a view.
        input_shape: Shape of the first tensor that it reads.
        shape: Shape of the first tensor that it gives.
        arguments: A function's positional arguments that are not tensors.
        options: A function's keyword arguments that are not tensors.
        users: Nodes that read it and on which the network's output depends.
    """

    index: int
    path: str
    operation: nn.Module | str
    inputs: tuple[int | None, ...] = ()
    input_shape: tuple[int, ...] = ()
    shape: tuple[int, ...] = ()
    arguments: tuple[Any, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    users: tuple[int, ...] = ()


@dataclass(frozen=True)
class Graph:
    """A network's operations on one input.

    Attributes:
        nodes: In the order of execution.
        traced_by: How it was found: ``"fx"`` (symbolic tracing) or ``"hooks"`` (recording a plain forward pass).
        stopped: Why the forward pass ended before the output, in one line; ``None`` where it did not.
    """

    nodes: tuple[Node, ...]
    traced_by: FrontEnd
    stopped: str | None = None

    def only_reader(self, node: Node) -> Node | None:
        """Returns the node that reads ``node``, where it is the only one and reads nothing else."""
        if len(node.users) != 1:
            return None
        reader = self.nodes[node.users[0]]
        return reader if reader.inputs == (node.index,) else None


def trace(model: nn.Module, example: Tensor, front_end: FrontEnd | None = None) -> Graph:
    """Record what a network in evaluation mode does to an input. The network is left as it was.

    Works on the ``meta`` device too, where nothing is computed.

    Args:
        model: Any module whose forward pass takes one tensor.
        example: Its input, with the batch axis; moved to the model's device and floating-point type.
        front_end: ``"fx"``, ``"hooks"``, or ``None``: fx, and hooks where that fails.

    Returns:
        The graph; up to the operation that failed where the forward pass raised.

    Raises:
        UnconvError: If a module is compiled, so that nothing can be seen of it.
        Exception: What fx raised, under ``front_end="fx"``.
    """
    for path, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule) or "_orig_mod" in module._modules:
            raise UnconvError(f"{path or 'the network'} is compiled; give the nn.Module that it was made from")
    image = as_input_of(model, example)
    lazy = any(is_lazy(p) for p in model.parameters())
    if front_end == "fx" or (front_end is None and not lazy):
        try:
            with evaluating(model):
                return _trace_fx(model, image.clone())
        except Exception:
            if front_end == "fx":
                raise
    with evaluating(model):
        return _trace_hooks(model, image.clone())


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards every module has the attributes and buffers that it had before.

    Args:
        model: The network.

    Yields:
        Nothing.
    """
    # all of them, not only the training flag: a forward pass may leave activations (fx: proxies) on its modules
    saved = [(module, dict(vars(module)), dict(module._buffers)) for module in model.modules()]
    try:
        model.eval()
        with torch.inference_mode(False), torch.no_grad():
            yield
    finally:
        for module, attributes, buffers in saved:
            vars(module).clear()
            vars(module).update(attributes)
            module._buffers.clear()
            module._buffers.update(buffers)


def as_input_of(model: nn.Module, x: Tensor) -> Tensor:
    """An input on the device and in the floating-point type of a network's first parameter.

    Args:
        model: The network.
        x: The input; integers stay integers.

    Returns:
        The tensor, itself where nothing had to change.
    """
    weight = next((p for p in model.parameters() if p.is_floating_point() and not is_lazy(p)), None)
    if weight is None:
        return x
    return x.to(weight.device, weight.dtype if x.is_floating_point() else x.dtype)


def first_line(error: Exception) -> str:
    """Returns an exception's message cut to its first line; its type where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def is_leaf(module: nn.Module) -> bool:
    """Whether a module is one operation, as opposed to one that is walked into.

    Args:
        module: Any module.

    Returns:
        True for torch's own modules except containers, and for every kind of convolution.
    """
    own = type(module).__module__.startswith(("torch.nn.", "torch.ao.nn.")) and not isinstance(module, CONTAINERS)
    return own or isinstance(module, _ConvNd | FrozenBatchNorm2d)


@dataclass(frozen=True)
class _Call:
    """A call about to be made: what it reads, each tensor with its node and version."""

    path: str
    operation: nn.Module | str
    args: Any
    options: Any
    read: list[tuple[Tensor, int | None, int]]


class _Recorder:
    """Turns calls into nodes: a tensor belongs to the node that made it, until it is changed behind its back."""

    def __init__(self, image: Tensor) -> None:
        self.nodes = [Node(0, "", "input", shape=tuple(image.shape))]
        self.makers = WeakIdKeyDictionary()
        self.makers[image] = (0, image._version)

    def begin(self, path: str, operation: nn.Module | str, args: Any, options: Any) -> _Call:
        """Returns a call that is about to be made, with what it reads before it may change that in place."""
        return _Call(path, operation, args, options, self.read((args, options)))

    def end(self, call: _Call, output: Any) -> None:
        """Add the node of a call that was made, if it computed something that depends on the input."""
        outputs = list(_tensors(output))
        function = isinstance(call.operation, str)
        if not outputs or (function and all(index is None for _, index, _ in call.read)):
            return
        if any(output is tensor and tensor._version == version for tensor, _, version in call.read):
            return
        if function and call.operation in COPIES:
            maker = call.read[0][1]
        else:
            maker = len(self.nodes)
            self.nodes.append(
                Node(
                    maker,
                    call.path,
                    call.operation,
                    inputs=tuple(index for _, index, _ in call.read),
                    input_shape=tuple(call.read[0][0].shape) if call.read else (),
                    shape=tuple(outputs[0].shape),
                    arguments=tuple(a for a in call.args if not any(True for _ in _tensors(a))) if function else (),
                    options={k: v for k, v in call.options.items() if not isinstance(v, Tensor)} if function else {},
                )
            )
        for tensor in outputs:
            self.makers[tensor] = (maker, tensor._version)

    def read(self, values: Any) -> list[tuple[Tensor, int | None, int]]:
        """Returns the tensors among some values, each with its node and version."""
        found = []
        for tensor in _tensors(values):
            index, version = self.makers.get(tensor) or (None, 0)
            found.append((tensor, index if tensor._version == version else None, tensor._version))
        return found

    def finish(self, traced_by: FrontEnd, output: Any = None, stopped: str | None = None) -> Graph:
        """Returns the graph, with each node's users filled in."""
        nodes = [*self.nodes, Node(len(self.nodes), "", "output", tuple(index for _, index, _ in self.read(output)))]
        # an output of a type of the user's own, or none: then everything counts as used
        live = {len(self.nodes)} if nodes[-1].inputs else {node.index for node in nodes}
        users: list[list[int]] = [[] for _ in nodes]
        for node in reversed(nodes):
            if node.index in live:
                for index in {i for i in node.inputs if i is not None}:
                    live.add(index)
                    users[index].insert(0, node.index)
        return Graph(tuple(replace(node, users=tuple(users[node.index])) for node in nodes), traced_by, stopped)


class _Tracer(fx.Tracer):
    """The symbolic tracer, stopping at the same modules as the hooks."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return is_leaf(m)


class _Interpreter(fx.Interpreter):
    """Runs a traced graph and records every call."""

    def __init__(self, model: nn.Module, graph: fx.Graph, recorder: _Recorder) -> None:
        super().__init__(model, graph=graph)
        self.recorder = recorder

    def run_node(self, n: fx.Node) -> Any:
        """Returns what one node of the traced graph gives."""
        if n.op not in {"call_module", "call_function", "call_method"}:
            return super().run_node(n)
        args, options = self.fetch_args_kwargs_from_env(n)
        operation: nn.Module | str
        if n.op == "call_module":
            path = str(n.target)
            operation = self.module.get_submodule(path)
        else:
            path = next((path for path, _ in reversed(n.meta.get("nn_module_stack", {}).values())), "")
            operation = _name(n.target)
        call = self.recorder.begin(path, operation, args, options)
        output = super().run_node(n)
        self.recorder.end(call, output)
        return output


def _trace_fx(model: nn.Module, image: Tensor) -> Graph:
    recorder = _Recorder(image)
    output = _Interpreter(model, _Tracer().trace(model), recorder).run(image)
    return recorder.finish("fx", output)


class _Mode(TorchFunctionMode):
    """Records the leaf modules that it watches and the functions that run outside of them."""

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self.recorder = recorder
        self.running: list[tuple[str, _Call | None]] = []

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        path, leaf_call = self.running[-1] if self.running else ("", None)
        if leaf_call:
            return func(*args, **options)
        call = self.recorder.begin(path, _name(func), args, options)
        output = func(*args, **options)
        self.recorder.end(call, output)
        return output

    def watch(self, path: str, module: nn.Module) -> Iterator[RemovableHandle]:
        """Hook a module, so that its path is known while it runs and a leaf is recorded."""
        leaf = is_leaf(module)
        lazy = any(is_lazy(p) for p in module.parameters(recurse=False))

        def enter(_: nn.Module, args: Any, options: Any) -> None:
            self.running.append((path, self.recorder.begin(path, module, args, options) if leaf else None))
            if lazy:
                raise ValueError(f"{path} is not initialised; run one batch through the network first")

        def leave(_: nn.Module, args: Any, options: Any, output: Any) -> None:
            call = self.running[-1][1]
            if call:
                self.recorder.end(call, output)
            self.running.pop()

        # a lazy module has a hook of its own that would initialise it: stay ahead of that
        yield module.register_forward_pre_hook(enter, prepend=lazy, with_kwargs=True)
        yield module.register_forward_hook(leave, with_kwargs=True, always_call=True)


def _trace_hooks(model: nn.Module, image: Tensor) -> Graph:
    recorder = _Recorder(image)
    mode = _Mode(recorder)
    with ExitStack() as hooks:
        for path, submodule in _outside_leaves(model):
            for handle in mode.watch(path, submodule):
                hooks.callback(handle.remove)
        try:
            with mode:
                output = model(image)
        except Exception as error:
            return recorder.finish("hooks", stopped=first_line(error))
        return recorder.finish("hooks", output)


def _outside_leaves(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    inside: set[nn.Module] = set()
    for path, module in model.named_modules():
        if module not in inside:
            yield path, module
            if is_leaf(module):
                inside.update(module.modules())


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def _name(function: Any) -> str:
    return getattr(function, "__name__", str(function)).strip("_")
