"""A network as a function of its image, with the non-linearities that are known to a decoder held fixed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from unconv.conv_block import ConvBlock
from unconv.errors import UnconvError
from unconv.inversion.convolution import CONVOLUTIONS, fixed_convolution
from unconv.sparsity import Window

SideInfo = Literal["none", "switches", "gates"]
SIDE_INFO: tuple[SideInfo, ...] = ("none", "switches", "gates")

MAX_POOLS = {
    **{f"max_pool{d}d": f"max_pool{d}d" for d in (1, 2, 3)},
    **{f"max_pool{d}d_with_indices": f"max_pool{d}d" for d in (1, 2, 3)},
    **{f"adaptive_max_pool{d}d": f"adaptive_max_pool{d}d" for d in (1, 2, 3)},
    **{f"adaptive_max_pool{d}d_with_indices": f"adaptive_max_pool{d}d" for d in (1, 2, 3)},
}
PIECEWISE_LINEAR = ("relu", "relu6", "leaky_relu", "hardtanh", "hardsigmoid", "prelu")


@dataclass(frozen=True)
class SideInformation:
    """What a decoder knows about a batch of images besides the features.

    Attributes:
        side_info: ``"none"``, ``"switches"`` (of every max pooling) or ``"gates"`` (and the branch of every ReLU).
        switches: Per max pooling, in the order of execution, the flat place that each region reads. Shape
            ``(N, K, *pooled)``.
        gates: Per piecewise linear activation, in the order of execution, slope and offset of the branch
            that each entry is on. Each of shape ``(N, K, *spatial)``.
    """

    side_info: SideInfo = "none"
    switches: tuple[Tensor, ...] = ()
    gates: tuple[tuple[Tensor, Tensor | None], ...] = ()

    def at(self, rows: Tensor) -> SideInformation:
        """The knowledge about some of the images. ``rows``: indices, int64."""
        gates = tuple((slope[rows], None if offset is None else offset[rows]) for slope, offset in self.gates)
        return SideInformation(self.side_info, tuple(s[rows] for s in self.switches), gates)


NO_SIDE_INFORMATION = SideInformation()


class LayerFunction:
    """The code of one stage as a function of the network's input.

    The network runs in evaluation mode up to the stage's convolution, whatever its architecture; the stage itself
    follows as it was cut out. Poolings read the known switches and ReLUs take the known branches: module or
    function, in place or not. Activations without linear pieces run as they are.
    """

    def __init__(self, model: nn.Module, stage: ConvBlock, input_shape: Sequence[int]) -> None:
        """Prepare a copy of the network.

        Args:
            model: The network.
            stage: One of its stages, also with an imposed region.
            input_shape: Shape of one image, the one that the stage was cut out for.

        Raises:
            UnconvError: If the network has no module of the stage's name.
        """
        self.stage = stage
        self.input_shape = tuple(int(n) for n in input_shape)
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        for parameter in self.model.parameters():
            parameter.data = _channels_last(parameter.data)
        try:
            self._convolution = self.model.get_submodule(stage.name)
        except AttributeError:
            raise UnconvError(f"the network has no module {stage.name!r}; give a stage of this network") from None

    def __call__(self, x: Tensor, known: SideInformation = NO_SIDE_INFORMATION) -> Tensor:
        """The stage's code values for images, differentiable.

        Args:
            x: Images. Shape ``(N, *input)``.
            known: What is held fixed.

        Returns:
            Shape ``(N, *stage.code_shape)``.

        Raises:
            UnconvError: If what is known comes from another network or image size.
        """
        with torch.enable_grad() if x.requires_grad else torch.no_grad():
            return self._run(_channels_last(x), _Held(known))

    def record(self, x: Tensor, side_info: SideInfo) -> SideInformation:
        """What a decoder of some kind is told about true images.

        Args:
            x: Images. Shape ``(N, *input)``.
            side_info: The kind.

        Returns:
            The knowledge.
        """
        recorder = _Recorder()
        with torch.no_grad():
            self._run(_channels_last(x), recorder)
        return SideInformation(
            side_info,
            tuple(recorder.switches) if side_info != "none" else (),
            tuple(recorder.gates) if side_info == "gates" else (),
        )

    def _run(self, x: Tensor, mode: _Surgeon) -> Tensor:
        reached: list[Tensor] = []

        def stop(_: nn.Module, args: tuple[Tensor, ...], options: dict[str, Tensor]) -> None:
            reached.append(args[0] if args else options["input"])
            raise _Enough

        handle = self._convolution.register_forward_pre_hook(stop, with_kwargs=True)
        try:
            with mode:
                # a copy, for networks whose first operation works in place
                self.model(x.clone())
        except _Enough:
            pass
        finally:
            handle.remove()
        if not reached:
            raise UnconvError(f"the forward pass does not reach {self.stage.name}; give a stage of this network")
        pooling = self.stage.pooling
        with mode:
            h = self.stage.activate(self.stage.preactivation(reached[0]))
        if isinstance(pooling, Window):
            h = mode.pool(h, pooling.max_pool)
        elif pooling is not None:
            h = pooling.forward(h)
        mode.finish()
        return h


def _channels_last(x: Tensor) -> Tensor:
    # oneDNN and cuDNN have their fastest convolutions there, on the CPU up to twice as fast
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x


def _fixed_batch_norm(
    x: Tensor,
    mean: Tensor | None,
    variance: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    # with fixed statistics one multiply-add, and so are its derivatives; torch's second derivative is twenty of them
    if training or mean is None or variance is None:
        return F.batch_norm(x, mean, variance, weight, bias, training, momentum, eps)
    scale = torch.rsqrt(variance + eps) if weight is None else weight * torch.rsqrt(variance + eps)
    shift = -mean * scale if bias is None else bias - mean * scale
    column = (-1, *[1] * (x.ndim - 2))
    return torch.addcmul(shift.view(column), x, scale.view(column))


def _hardsigmoid(h: Tensor) -> Tensor:
    # torch's own has no second derivative, which the products with its derivative need
    return F.hardtanh(h / 6 + 0.5, 0.0, 1.0)


class _Enough(BaseException):
    """Ends a forward pass of which the rest is not needed."""


class _Surgeon(TorchFunctionMode):
    """Sees every max pooling and every piecewise linear activation of a forward pass, in order."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        options = kwargs or {}
        name = getattr(func, "__name__", "").strip("_")
        if name in MAX_POOLS:
            wanted = name.endswith("with_indices") or options.get("return_indices", False)
            options = {k: v for k, v in options.items() if k != "return_indices"}
            pool = getattr(F, MAX_POOLS[name])
            h, *numbers = args
            if name.endswith("with_indices") or not name.startswith("max"):
                numbers = numbers[: 5 if name.startswith("max") else 1]
            if wanted:
                return func(*args, **(kwargs or {}))
            return self.pool(h, lambda h: pool(h, *numbers, **options, return_indices=True))
        if name in PIECEWISE_LINEAR:
            options = {k: v for k, v in options.items() if k != "inplace"}
            h, *numbers = args
            if name == "hardsigmoid":
                return self.activate(h, _hardsigmoid)
            if name in {"relu", "relu6"}:
                numbers = []
            elif name in {"leaky_relu", "hardtanh"}:
                numbers = [n for n in numbers if not isinstance(n, bool)]
            return self.activate(h, lambda h: getattr(F, name)(h, *numbers, **options))
        if name in CONVOLUTIONS:
            return fixed_convolution(func, args, options)
        if func is F.scaled_dot_product_attention:
            with sdpa_kernel(SDPBackend.MATH):  # the fused ones have no second derivative
                return func(*args, **options)
        if func is F.batch_norm:
            return _fixed_batch_norm(*args, **options)
        return func(*args, **options)

    def pool(self, h: Tensor, pooling: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Tensor:
        """Max pooling that gives its values and switches."""
        return pooling(h)[0]

    def activate(self, h: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        """A piecewise linear activation, out of place."""
        return function(h)

    def finish(self) -> None:
        """The end of the forward pass."""


class _Recorder(_Surgeon):
    def __init__(self) -> None:
        super().__init__()
        self.switches: list[Tensor] = []
        self.gates: list[tuple[Tensor, Tensor | None]] = []

    def pool(self, h: Tensor, pooling: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Tensor:
        values, switches = pooling(h)
        self.switches.append(switches)
        return values

    def activate(self, h: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        with torch.enable_grad():
            leaf = h.detach().requires_grad_()
            y = function(leaf)
            (slope,) = torch.autograd.grad(y.sum(), leaf)
        offset = (y - slope * leaf).detach()
        self.gates.append((slope, offset if offset.any() else None))
        return y.detach()


class _Held(_Surgeon):
    def __init__(self, known: SideInformation) -> None:
        super().__init__()
        self.known = known
        self.pools = 0
        self.activations = 0

    def pool(self, h: Tensor, pooling: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Tensor:
        if self.known.side_info == "none":
            return pooling(h)[0]
        switches = self._next(self.known.switches, self.pools, "switches", h)
        self.pools += 1
        if h.ndim != 4:
            return h.flatten(2).gather(2, switches.flatten(2)).reshape(switches.shape)
        # places before channels, as they lie in memory
        places = switches.permute(0, 2, 3, 1)
        read = h.permute(0, 2, 3, 1).flatten(1, 2).gather(1, places.flatten(1, 2))
        return read.unflatten(1, places.shape[1:3]).permute(0, 3, 1, 2)

    def activate(self, h: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        if self.known.side_info != "gates":
            return function(h)
        slope, offset = self._next(self.known.gates, self.activations, "gates", h)
        self.activations += 1
        if slope.shape != h.shape:
            raise UnconvError(f"the gates have shape {tuple(slope.shape)}, the network {tuple(h.shape)}; give its own")
        y = h * slope
        return y if offset is None else y + offset

    def finish(self) -> None:
        told, used = len(self.known.switches), self.pools
        if self.known.side_info != "none" and told != used:
            raise UnconvError(
                f"switches of {told} poolings are given, the network has {used} up to there; give its own"
            )

    def _next(self, of: tuple[Any, ...], index: int, what: str, h: Tensor) -> Any:
        if index >= len(of):
            raise UnconvError(f"the {what} are known of {len(of)} layers only, and the network has more; give its own")
        first = of[index] if isinstance(of[index], Tensor) else of[index][0]
        if first.shape[:2] != h.shape[:2]:
            raise UnconvError(
                f"the {what} have shape {tuple(first.shape)} where the network has {tuple(h.shape)}; give its own"
            )
        return of[index]
