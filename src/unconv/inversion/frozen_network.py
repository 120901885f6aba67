"""A layer's features as a function of the image, with the non-linearities that a decoder knows held fixed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from unconv.block_extraction import MAX_POOL_OPTIONS
from unconv.conv_block import SIDE_INFO, SideInfo
from unconv.errors import UnconvError
from unconv.graph import Enough, as_input_of, evaluating, find_module, first_line, image_by_image, pick
from unconv.inversion.convolution import CONVOLUTIONS, fixed_convolution
from unconv.linalg import tiny
from unconv.operators import per_axis
from unconv.sparsity import Window

TOLERANCE = 1e-3  # of the largest feature, between the network's own features and those that are followed
ROUNDINGS = 8  # in the type of the features, where that is more: bfloat16 has three digits

MAX_POOLS = [f"{kind}_pool{d}d" for kind in ("max", "adaptive_max") for d in (1, 2, 3)]
PIECEWISE_LINEAR = ("relu", "relu6", "leaky_relu", "hardtanh", "hardsigmoid", "prelu")


@dataclass(frozen=True)
class SideInformation:
    """What a decoder knows about a batch of images besides the features."""

    # "none", "switches" (of every max pooling) or "gates" (and the branch of every ReLU)
    side_info: SideInfo = "none"
    # per max pooling, in the order of execution, the flat place of each region's maximum; shape (N, K, *pooled)
    switches: tuple[Tensor, ...] = ()
    # per piecewise linear activation, in the order of execution, slope and offset of the branch that each entry is on.
    # Each of the shape of the activation.
    gates: tuple[tuple[Tensor, Tensor | None], ...] = ()

    def select(self, indices: Tensor) -> SideInformation:
        """Return the side information of some of the images. ``indices``: int64."""
        gates = tuple((slope[indices], None if offset is None else offset[indices]) for slope, offset in self.gates)
        return SideInformation(self.side_info, tuple(s[indices] for s in self.switches), gates)


NO_SIDE_INFORMATION = SideInformation()


class LayerFunction:
    """The features of one layer as a differentiable function of the network's input.

    The network's own forward pass runs, in evaluation mode and with its hooks, and stops behind the layer's module
    (its first call). Nothing of the network is copied or changed. Known switches are read by max poolings, known
    gates replace ReLUs by the branches that were taken; activations without linear pieces run as they are.
    """

    def __init__(self, model: nn.Module, layer: str, input_shape: Sequence[int], example: Tensor | None = None) -> None:
        """Prepare the function by two forward passes for an ``example`` that reaches the layer, or noise.

        UsageError if there is no such layer; UnconvError if it is not reached, or gives no floating-point tensor.
        """
        self.model = model
        self.layer = layer
        self.input_shape = tuple(int(n) for n in input_shape)
        self._module, self._place = find_module(model, layer)
        self._parameters = {name: p.detach() for name, p in model.named_parameters(remove_duplicate=False)}
        self._write_back = False
        noise = torch.rand(1, *self.input_shape, generator=torch.Generator().manual_seed(0)) - 0.5
        self._prepare(as_input_of(model, noise if example is None else example.detach().clone()))

    def __repr__(self) -> str:
        return f"LayerFunction({self.layer}: {self.input_shape} -> {self.shape})"

    def _prepare(self, x: Tensor) -> None:
        try:
            own = self._run(x, None)
            tolerance = max(TOLERANCE, ROUNDINGS * torch.finfo(self._precision).eps)
            mode = _FollowingMode()
            y = self(x.requires_grad_(), mode=mode)
        except UnconvError:
            raise
        except Exception as error:
            raise UnconvError(
                f"the network cannot take an image of shape {self.input_shape}: {first_line(error)}"
            ) from error
        self.shape = tuple(own.shape[1:])
        self.differentiable = y.requires_grad
        kinds = (True, mode.pools > 0, mode.activations > 0)
        self.side_info_kinds: tuple[SideInfo, ...] = tuple(k for k, there in zip(SIDE_INFO, kinds) if there)
        if _difference(y, own) > tolerance:
            # some module drops what its in-place ReLU returns and goes on with what it gave in
            self._write_back = True
            difference = _difference(self(x), own)
            if _difference(self._run(x, None), own) > tolerance:
                raise UnconvError(f"the forward pass up to {self.layer} does not give the same features twice")
            if difference > tolerance:
                raise UnconvError(
                    f"features of {self.layer} differ by {difference:.2g} of their size from the network's own once "
                    "its non-linearities are followed, so it cannot be inverted; in half precision, switch autocast off"
                )

    def __call__(
        self, x: Tensor, known: SideInformation = NO_SIDE_INFORMATION, *, mode: _FollowingMode | None = None
    ) -> Tensor:
        """The features ``(N, *shape)`` of images ``(N, *input_shape)``, differentiable once and twice.

        What is ``known`` is held fixed, or ``mode`` runs the non-linearities. UnconvError if it is another network's.
        """
        # oneDNN and cuDNN have their fastest convolutions in channels_last, on the CPU up to twice as fast
        x = x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x
        return self._run(x, mode or _FollowingMode(known))

    def with_violations(self, x: Tensor, known: SideInformation) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """The features, and how far images are from taking the known branches.

        For each known pooling and activation ``||own - known||^2``, between what the network itself and what the known
        branches make of its input (0 at images that take them), and ``||known||^2``. Each of shape ``(N,)``.
        """
        violations: list[tuple[Tensor, Tensor]] = []
        return self(x, mode=_FollowingMode(known, violations=violations)), violations

    def with_margins(self, x: Tensor, known: SideInformation) -> tuple[Tensor, list[Tensor]]:
        """The features, and by how much each gate and each switch holds, on the known branches.

        For each activation its input less each of its kinks, ``(N, K, *spatial, kinks)``; for each max pooling the
        entry that won less each entry of its region, ``(N, K, *pooled, entries)``. A branch changes where one changes
        sign. UnconvError if a pooling's regions differ in size.
        """
        margins: list[Tensor] = []
        return self(x, mode=_FollowingMode(known, margins=margins)), margins

    def record(self, x: Tensor, side_info: SideInfo) -> SideInformation:
        """Return the side information of a kind of true images ``(N, *input_shape)``."""
        if side_info == "none":
            return NO_SIDE_INFORMATION
        mode = _RecordingMode(gates=side_info == "gates")
        self(x.detach(), mode=mode)
        return SideInformation(side_info, tuple(mode.switches), tuple(mode.gates))

    def _run(self, x: Tensor, mode: _FollowingMode | None) -> Tensor:
        output: list[Any] = []

        def stop(_: nn.Module, __: Any, y: Any) -> None:
            output.append(y)
            raise Enough

        if mode is not None:
            mode.write_back = self._write_back
        with evaluating(self.model, gradients=x.requires_grad, freeze=False):
            handle = self._module.register_forward_hook(stop)
            try:
                with mode or nullcontext():
                    # a copy, for networks whose first operation works in place
                    functional_call(self.model, self._parameters, (x.clone(),), tie_weights=False)
            except Enough:
                pass
            finally:
                handle.remove()
            if not output:
                raise UnconvError(f"the forward pass does not reach {self.layer} on images of {tuple(x.shape[1:])}")
            if mode is not None:
                mode.finish()
            return self._features(output[0], x)

    def _features(self, output: Any, x: Tensor) -> Tensor:
        features = pick(output, self._place, self.layer)
        if not features.is_floating_point():
            raise UnconvError(f"layer {self.layer} gives {features.dtype}, no floating-point tensor to invert")
        self._precision = features.dtype
        return image_by_image(features, len(x), self.layer).to(torch.promote_types(features.dtype, x.dtype))


def _difference(a: Tensor, b: Tensor) -> float:
    """Return the largest difference in units of the largest value of the second tensor."""
    a, b = a.detach().nan_to_num(), b.detach().nan_to_num()
    return ((a - b).abs().max() / b.abs().max().clamp_min(tiny(b))).item()


def _fixed_batch_norm(args: tuple[Any, ...], options: dict[str, Any]) -> Tensor:
    # with fixed statistics one multiply-add, and so are its derivatives; torch's second derivative is twenty of them
    names = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
    said = dict(zip(names, args, strict=False)) | options
    x, (mean, variance, weight, bias) = said["input"], (said.get(name) for name in names[1:5])
    if said.get("training") or mean is None or variance is None:
        return F.batch_norm(*args, **options)
    scale = torch.rsqrt(variance + said.get("eps", 1e-5))
    scale = scale if weight is None else weight * scale
    shift = -mean * scale if bias is None else bias - mean * scale
    column = (-1, *[1] * (x.ndim - 2))
    return torch.addcmul(shift.view(column), x, scale.view(column))


def _hardsigmoid(h: Tensor) -> Tensor:
    # torch's own has no second derivative, which products with the Jacobian need
    return F.hardtanh(h / 6 + 0.5, 0.0, 1.0)


class _FollowingMode(TorchFunctionMode):
    """Sees every max pooling and every piecewise linear activation, in order, and takes the branches that are known."""

    def __init__(
        self,
        known: SideInformation = NO_SIDE_INFORMATION,
        *,
        violations: list[tuple[Tensor, Tensor]] | None = None,
        margins: list[Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.known = known
        self.violations, self.margins = violations, margins  # where they go, if anywhere
        self.write_back = False  # whether activations in place change the tensor that they were given
        self.pools = self.activations = 0  # how many there were so far
        self.pooling: tuple[str, dict[str, Any]] = ("", {})  # name and options of the last pooling
        self.kinks: tuple[float, ...] = ()  # where the last activation bends

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        options = kwargs or {}
        own_name = getattr(func, "__name__", "")
        name = own_name.strip("_")
        if name in MAX_POOLS and not options.get("return_indices", False):
            options = {k: v for k, v in options.items() if k != "return_indices"}
            pooling = getattr(F, name)
            h, *numbers = args or (options.pop("input"),)
            numbers = numbers[: 5 if name.startswith("max") else 1]
            self.pools += 1
            self.pooling = name, dict(zip(MAX_POOL_OPTIONS, numbers)) | options
            return self.pool(h, lambda h: pooling(h, *numbers, **options, return_indices=True))
        if name in PIECEWISE_LINEAR:
            in_place = own_name.endswith("_") or options.get("inplace", False) or any(a is True for a in args)
            options = {k: v for k, v in options.items() if k != "inplace"}
            h, *numbers = args or (options.pop("input"),)
            numbers = [n for n in numbers if not isinstance(n, bool)]
            function = _hardsigmoid if name == "hardsigmoid" else getattr(F, name)
            self.activations += 1
            self.kinks = _kinks(name, numbers, options)
            write_back = in_place and self.write_back
            y = self.activate(h.clone() if write_back else h, lambda h: function(h, *numbers, **options))
            return h.copy_(y) if write_back else y
        if name in CONVOLUTIONS:
            return fixed_convolution(func, args, options)
        if func is F.scaled_dot_product_attention:
            with sdpa_kernel(SDPBackend.MATH):  # the fused ones have no second derivative
                return func(*args, **options)
        if func is F.batch_norm:
            return _fixed_batch_norm(args, options)
        return func(*args, **options)

    def pool(self, h: Tensor, pooling: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Tensor:
        """Run a max pooling, given as a function that returns values and switches."""
        if self.known.side_info == "none":
            return pooling(h)[0]
        switches = self._next(self.known.switches, self.pools, "switches", h)
        if h.ndim != 4:
            values = h.flatten(2).gather(2, switches.flatten(2)).reshape(switches.shape)
        else:
            # places before channels, as they lie in memory
            places = switches.permute(0, 2, 3, 1)
            values = h.permute(0, 2, 3, 1).flatten(1, 2).gather(1, places.flatten(1, 2))
            values = values.unflatten(1, places.shape[1:3]).permute(0, 3, 1, 2)
        if self.margins is not None:
            places, inside = (part.to(h.device) for part in _regions(*self.pooling, h.shape[2:]))
            # what lies beyond the border never wins: the winner stands in its place
            entries = h.flatten(2)[:, :, places.clamp(0, math.prod(h.shape[2:]) - 1)]
            self.margins.append((values[..., None] - entries) * inside)
        return self._compared(values, lambda: pooling(h)[0])

    def activate(self, h: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        """Run a piecewise linear activation, out of place."""
        if self.known.side_info != "gates":
            return function(h)
        slope, offset = self._next(self.known.gates, self.activations, "gates", h)
        y = h * slope
        if self.margins is not None:
            self.margins.append(torch.stack([h - kink for kink in self.kinks], -1))
        return self._compared(y if offset is None else y + offset, lambda: function(h))

    def finish(self) -> None:
        """End the forward pass."""
        known = len(self.known.switches)
        if self.known.side_info != "none" and known != self.pools:
            raise UnconvError(
                f"switches of {known} poolings are given, the network has {self.pools} up to there; give its own"
            )

    def _compared(self, values: Tensor, own: Callable[[], Tensor]) -> Tensor:
        if self.violations is not None:
            excess = own() - values
            self.violations.append((excess.square().flatten(1).sum(1), values.detach().square().flatten(1).sum(1)))
        return values

    def _next(self, known: tuple[Any, ...], count: int, what: str, h: Tensor) -> Any:
        if count > len(known):
            raise UnconvError(f"the {what} of {len(known)} layers only are given, and the network has more")
        entry = known[count - 1]
        first = entry if isinstance(entry, Tensor) else entry[0]
        axes = 2 if what == "switches" else None
        if first.shape[:axes] != h.shape[:axes]:
            raise UnconvError(
                f"the {what} have shape {tuple(first.shape)} where the network has {tuple(h.shape)}; give its own"
            )
        return entry


def _kinks(name: str, numbers: Sequence[Any], options: dict[str, Any]) -> tuple[float, ...]:
    """Return where a piecewise linear activation bends."""
    if name == "hardtanh":
        ends = dict(zip(("min_val", "max_val"), numbers)) | options
        return ends.get("min_val", -1.0), ends.get("max_val", 1.0)
    return {"relu6": (0.0, 6.0), "hardsigmoid": (-3.0, 3.0)}.get(name, (0.0,))


def _regions(name: str, options: dict[str, Any], spatial: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return the flat places of each region of a max pooling, ``(*pooled, entries)``, and which are on the map."""
    given: dict[str, Any] = {key: value for key, value in options.items() if key in MAX_POOL_OPTIONS}
    if name.startswith("adaptive"):
        pooled = per_axis(options.get("output_size") or given["kernel_size"], len(spatial), "pooled size")
        if any(n % p for n, p in zip(spatial, pooled, strict=True)):
            raise UnconvError(f"adaptive max pooling of {tuple(spatial)} to {pooled} has regions of different sizes")
        given = {"kernel_size": tuple(n // p for n, p in zip(spatial, pooled, strict=True))}
    given["stride"] = given.get("stride") or None
    window = Window.of(len(spatial), given.pop("kernel_size"), **given)
    pooled = window.pooled_shape(spatial)
    places, inside = (part.T.unflatten(0, pooled) for part in window.places(spatial))
    return places, inside


class _RecordingMode(_FollowingMode):
    """Keeps the switches, and where asked the gates."""

    def __init__(self, *, gates: bool) -> None:
        super().__init__()
        self.switches: list[Tensor] = []
        self.gates: list[tuple[Tensor, Tensor | None]] = []
        self._keep_gates = gates

    def pool(self, h: Tensor, pooling: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Tensor:
        values, switches = pooling(h)
        self.switches.append(switches)
        return values

    def activate(self, h: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        if not self._keep_gates:
            return function(h)
        with torch.enable_grad():
            leaf = h.detach().requires_grad_()
            y = function(leaf)
            (slope,) = torch.autograd.grad(y.sum(), leaf)
        offset = (y - slope * leaf).detach()
        self.gates.append((slope, offset if offset.any() else None))
        return y.detach()
