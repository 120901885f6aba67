"""The paper's layer: a convolution with its batch norm, activation and pooling."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from unconv.errors import UnconvError, UsageError
from unconv.io import near_names
from unconv.operators import ConvOperator, gaussian_like
from unconv.sparsity import AveragePool, Code, Pooled, Window

SideInfo = Literal["none", "switches", "gates"]
SIDE_INFO: tuple[SideInfo, ...] = get_args(SideInfo)  # each kind includes those before it

NONNEGATIVE = {"relu", "relu6", "sigmoid", "hardsigmoid", "softplus"}
IMAGE = "image"


@dataclass(frozen=True)
class Activation:
    """A function that is applied to every entry."""

    name: str  # its name in torch.nn.functional; "none" for the identity
    function: Callable[[Tensor], Tensor]

    @property
    def nonnegative(self) -> bool:
        """Whether no output is below zero."""
        return self.name in NONNEGATIVE


def identity(h: Tensor) -> Tensor:
    """Return what is given: the activation of a block that has none."""
    return h


NO_ACTIVATION = Activation("none", identity)


@dataclass(frozen=True, eq=False)
class ConvBlock:
    """One convolution of a network and what the network does to its output before anything else reads it.

    Attributes:
        name: Path of the convolution's module.
        operator: The convolution, with the batch norm folded into its filters.
        bias: Bias of the convolution and the batch norm together. Shape ``(K,)``; ``None`` where there is none.
        activation: The activation.
        pooling: Max pooling, average pooling, or ``None``.
        source: What the convolution reads: ``"image"`` (the network's input), the name of the block whose
            output it is, or ``None`` (anything else, such as a sum of branches).
        nonnegative_input: Whether what it reads comes out of an activation without negative values (or a
            pooling or concatenation of such).
        batch_norm: Path of the batch norm that was folded, or ``None``.
        output: Path of the innermost module whose output is the block's; ``None`` where there is none, as behind a
            function in the middle of a module.
        difference: Largest difference from the network's own output when the block was checked, relative to the
            largest value; ``None`` where it was not checked.
    """

    name: str
    operator: ConvOperator
    bias: Tensor | None
    activation: Activation = NO_ACTIVATION
    pooling: Window | AveragePool | None = None
    source: str | None = None
    nonnegative_input: bool = False
    batch_norm: str | None = None
    output: str | None = None
    difference: float | None = None

    def __repr__(self) -> str:
        return f"ConvBlock({self.name}: {self.kind}, {self.input_shape} -> {self.code_shape})"

    @property
    def kind(self) -> str:
        """Its parts in the order of the paper, such as ``"conv+bn+relu+maxpool"``."""
        norm = "" if self.batch_norm is None else "bn"
        activation = "" if self.activation.name == "none" else self.activation.name
        pooling = "" if self.pooling is None else "maxpool" if isinstance(self.pooling, Window) else "avgpool"
        return "+".join(filter(None, ("conv", norm, activation, pooling)))

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
        """Return ``W x + b``, convolution and batch norm, of inputs ``(N, M, *spatial)``: ``(N, K, *output)``."""
        h = self.operator.forward(x)
        return h if self.bias is None else h + self.bias.reshape(-1, *[1] * self.operator.dims)

    def activate(self, h: Tensor) -> Tensor:
        """Apply the activation to preactivations of any shape."""
        return self.activation.function(h)

    def encode(self, x: Tensor) -> Code:
        """Return the network's own code of inputs ``(N, M, *spatial)``; its values are what the network computes."""
        return self.pool(self.activate(self.preactivation(x)))

    def pool(self, activated: Tensor) -> Code:
        """Apply the pooling alone to activations of shape ``(N, K, *output_spatial)``."""
        if isinstance(self.pooling, Window):
            return Pooled(self.pooling, signed=True).project(activated)
        values = activated if self.pooling is None else self.pooling.forward(activated)
        return Code(values, None, self.operator.output_shape, self.pooling)

    def with_gaussian(self, seed: int) -> ConvBlock:
        """Return the block with Gaussian filters of expected unit norm and no bias, drawn by seed and block's name."""
        # the name is part of the seed, so that a block's filters do not depend on which others are drawn
        own_seed = int.from_bytes(hashlib.sha256(f"{seed}:{self.name}".encode()).digest()[:7], "big")
        weight = gaussian_like(self.operator.weight, own_seed)
        return replace(self, operator=self.operator.with_weight(weight), bias=None, difference=None)

    def with_region(self, region: int | tuple[int, ...]) -> ConvBlock:
        """Return the block with max pooling over regions that do not overlap; UnconvError where it pools already."""
        if self.pooling is not None:
            raise UnconvError(f"conv block {self.name} ({self.kind}) pools already; leave the region out")
        try:
            window = Window.of(self.operator.dims, region)
            window.pooled_shape(self.operator.output_shape[1:])
        except UsageError as error:
            raise UnconvError(f"region {region} does not fit conv block {self.name}: {error}") from None
        return replace(self, pooling=window)

    def to(self, *args: torch.dtype | torch.device | str) -> ConvBlock:
        """Return the block on another device or in another floating-point type; arguments as for ``Tensor.to``."""
        operator = self.operator.to(*args)
        return replace(self, operator=operator, bias=None if self.bias is None else self.bias.to(operator.weight))


@dataclass(frozen=True)
class Skipped:
    """A module that was left out, and why."""

    module: str
    reason: str


@dataclass(frozen=True)
class ConvBlocks:
    """The conv blocks of a network, in the order of execution, and what was left out."""

    blocks: tuple[ConvBlock, ...]
    skipped: tuple[Skipped, ...] = ()
    path: str = ""  # of the graph of the image that they were found with
    branches: tuple[str, ...] = ()  # modules in which values may decide what runs; without any, all take the same path

    def __repr__(self) -> str:
        left_out = f", {len(self.skipped)} left out" if self.skipped else ""
        return "\n".join([f"ConvBlocks({len(self)} conv blocks{left_out})", *(f"  {block}" for block in self.blocks)])

    def __iter__(self) -> Iterator[ConvBlock]:
        return iter(self.blocks)

    def __len__(self) -> int:
        return len(self.blocks)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the conv blocks, in the order of execution."""
        return tuple(block.name for block in self.blocks)

    def get(self, name: str) -> ConvBlock:
        """Return the block of a convolution, or of the module that ends it; a UsageError says why there is none."""
        named = {block.output: block for block in reversed(self.blocks)} | {block.name: block for block in self.blocks}
        if name in named:
            return named[name]
        if inside := [block.name for block in self.blocks if block.name.startswith(f"{name}.")]:
            raise UsageError(f"{name!r} is no conv block, but a module with some; use one of {', '.join(inside)}")
        if reason := next((s.reason for s in self.skipped if s.module == name), None):
            raise UsageError(f"{name!r} is no conv block: {reason}")
        near = self.names if len(self) <= 8 else near_names(name, self.names)
        raise UsageError(f"there is no conv block {name!r}; use one such as {', '.join(near or self.names[:5])}")
