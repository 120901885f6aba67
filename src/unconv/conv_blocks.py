"""The stages of a network: finding them all, their true inputs, and a copy with Gaussian filters."""

from __future__ import annotations

import copy
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import takewhile
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from unconv import html_repr
from unconv.block_extraction import cut_out, is_convolution, refusal
from unconv.conv_block import IMAGE, ConvBlock, filter_seed
from unconv.errors import UnconvError, UsageError
from unconv.operators import gaussian_like
from unconv.tracing import FrontEnd, as_input_of, evaluating, first_line, trace

FUNCTIONAL = re.compile(r"conv(_transpose)?[123]d|convolution|deform_conv2d")


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
class ConvBlocks:
    """What was found in a network.

    Attributes:
        stages: In the order of execution.
        skipped: Convolutions that are no stage, and what else was left out.
        traced_by: How the network was traced, ``"fx"`` or ``"hooks"``.
    """

    stages: tuple[ConvBlock, ...]
    skipped: tuple[Skipped, ...]
    traced_by: FrontEnd

    def __iter__(self) -> Iterator[ConvBlock]:
        return iter(self.stages)

    def __len__(self) -> int:
        return len(self.stages)

    def _repr_html_(self) -> str:
        found = html_repr.grid(
            ("stage", "parts", "input", "code", "reads"),
            [(s.name, s.kind, s.input_shape, s.code_shape, s.source) for s in self.stages],
        )
        left_out = html_repr.grid(("left out", "why"), [(s.module, s.reason) for s in self.skipped])
        return found + left_out if self.skipped else found

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the stages, in the order of execution."""
        return tuple(stage.name for stage in self.stages)

    def get(self, name: str) -> ConvBlock:
        """The stage of a name.

        Args:
            name: Path of its convolution.

        Returns:
            The stage.

        Raises:
            UsageError: If there is none; the message lists the stages, or those inside a block of that name.
        """
        for stage in self.stages:
            if stage.name == name:
                return stage
        inside = [stage.name for stage in self.stages if stage.name.startswith(f"{name}.")]
        if inside:
            raise UsageError(f"{name!r} is no stage, but a block with some; use one of {', '.join(inside)}")
        reason = next((f" ({s.reason})" for s in self.skipped if s.module == name), "")
        raise UsageError(f"there is no stage {name!r}{reason}; the stages are {', '.join(self.names)}")


def find_conv_blocks(model: nn.Module, example: Tensor, *, front_end: FrontEnd | None = None) -> ConvBlocks:
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
        >>> from unconv import find_conv_blocks
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2))
        >>> find_conv_blocks(net.eval(), torch.zeros(1, 3, 16, 16)).get("0")
        ConvBlock(0: conv+bn+relu+maxpool, (3, 16, 16) -> (8, 8, 8))
    """
    graph = trace(model, example, front_end)
    stages: list[ConvBlock] = []
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
            reason = refusal(conv, node)
            if reason or not isinstance(conv, _ConvNd):
                skip(node.path, reason)
            elif node.path in called:
                skip(node.path, "called several times; the stage is the first call")
            else:
                stage, end, stopper = cut_out(graph, node, conv)
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
            skip(path, refusal(module) or unreached)

    if behind := _behind_patches(model, stages, skipped):
        skip(behind, "patch embedding only: attention takes over from the patches, and is no convolution to invert")
    if not stages and not skipped:
        raise UnconvError("the network has no convolution; it needs an nn.Conv1d, nn.Conv2d or nn.Conv3d")
    if not stages and graph.stopped:
        raise UnconvError(f"the network cannot take an input of shape {tuple(example.shape)}: {graph.stopped}")
    return ConvBlocks(tuple(stages), tuple(skipped.values()), graph.traced_by)


def _behind_patches(model: nn.Module, stages: Sequence[ConvBlock], skipped: Collection[str]) -> str:
    """Returns the path of a vision transformer's blocks; nothing where it has other convolutions than patches."""
    operators = [stage.operator for stage in stages if stage.source == IMAGE]
    patches = [op for op in operators if tuple(op.weight.shape[2:]) == op.stride and min(op.stride) > 1]
    if not stages or skipped or len(patches) < len(stages):
        return ""
    paths = [path.split(".") for path, module in model.named_modules() if "attention" in type(module).__name__.lower()]
    shared = takewhile(lambda level: len(set(level)) == 1, zip(*paths))
    return ".".join(level[0] for level in shared) if paths else ""


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


def gaussian_copy(model: nn.Module, seed: int, stages: Iterable[ConvBlock]) -> nn.Module:
    """A copy of a network in which stages have Gaussian filters of expected unit norm.

    Their biases become zero and the batch norms folded into them the identity. The filters of a stage depend on
    the seed and its name only, not on which others are drawn.

    Args:
        model: The network.
        seed: Seed.
        stages: ConvBlocks of that network: all (what ``find_conv_blocks`` gives) or some.

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
            state["weight"].copy_(gaussian_like(state["weight"], filter_seed(seed, stage.name)))
            if "bias" in state:
                state["bias"].zero_()
            if stage.batch_norm is not None:
                norm = cast(_BatchNorm, other.get_submodule(stage.batch_norm))
                values = {"running_mean": 0.0, "running_var": 1.0 - norm.eps, "weight": 1.0, "bias": 0.0}
                for name, tensor in norm.state_dict(keep_vars=True).items():
                    if name in values:
                        tensor.fill_(values[name])
    return other
