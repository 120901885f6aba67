"""The linear map ``W`` of one convolution on a fixed input shape, and the test that its adjoint is one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from operator import index
from typing import Any, Literal, Protocol, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import grad as conv_grad

from unconv.errors import UsageError, check_choice
from unconv.linalg import norms, tiny
from unconv.solvers.solution import System

Boundary = Literal["full", "cropped"]
"""Whether the adjoint keeps its whole output (``ConvOperator.full``) or what lies on the unpadded input."""

CONVOLVE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
CONVOLVE_ADJOINT = {1: conv_grad.conv1d_input, 2: conv_grad.conv2d_input, 3: conv_grad.conv3d_input}


class LinearOperator(System, Protocol):
    """What the solvers ask of a linear map: two shapes (without the batch) and two directions, for any batch."""

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Return the shape of one input."""
        ...

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Return the shape of one output."""
        ...


def check_convolution(operator: object, or_else: str = "") -> None:
    """Refuse what is no ``ConvOperator``, in one line (``UsageError``)."""
    if not isinstance(operator, ConvOperator):
        raise UsageError(
            f"operator is a {type(operator).__name__}; give a ConvOperator{or_else}. A matrix A (outputs, inputs) is "
            "ConvOperator(A[:, :, None], (inputs, 1))"
        )


def check_linear(operator: object) -> None:
    """Refuse what is no linear operator, in one line (``UsageError``)."""
    if not hasattr(operator, "output_shape"):
        check_convolution(operator, " or another linear operator")


def per_axis(value: int | Sequence[int], dims: int, name: str) -> tuple[int, ...]:
    """Return a hyper-parameter of a convolution or pooling as one number per spatial axis; ``name`` is for errors."""
    try:
        values = tuple(map(index, value)) if isinstance(value, Iterable) else (index(value),) * dims
    except TypeError:
        raise UsageError(f"{name} is {value!r}; give one whole number or {dims}") from None
    if len(values) == 1:
        values *= dims
    if len(values) != dims:
        raise UsageError(f"{name} has {len(values)} entries for {dims} spatial axes; give one number or {dims}")
    return values


class ConvOperator:
    """The convolution ``x -> W x`` (cross-correlation, zero padding) of one filter bank, as a linear map.

    ``W`` holds all shifts of all filters as rows; ``adjoint`` is its exact transpose, the transposed
    convolution (paper, section 2). 1-D to 3-D, any stride, padding, dilation and groups.

    Example:
        >>> import torch
        >>> from unconv import ConvOperator
        >>> edges = torch.tensor([[[-1.0, 1.0]]])  # one filter, one channel, two taps
        >>> W = ConvOperator(edges, (1, 4))
        >>> W.forward(torch.tensor([[[0.0, 0.0, 3.0, 3.0]]]))
        tensor([[[0., 3., 0.]]])
        >>> W.adjoint(torch.tensor([[[0.0, 3.0, 0.0]]]))
        tensor([[[ 0., -3.,  3.,  0.]]])
    """

    def __init__(
        self,
        weight: Tensor,
        input_shape: Sequence[int],
        *,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
    ) -> None:
        """Fix a filter bank to one input shape.

        Args:
            weight: Filters. Shape ``(K, M // groups, *kernel)`` with one to three kernel axes.
            input_shape: Shape of one input, ``(M, *spatial)``.
            stride: Step between shifts, one number or one per axis.
            padding: Zeros added on both sides, one number or one per axis.
            dilation: Step between filter taps, one number or one per axis.
            groups: Number of channel groups that are convolved separately.

        Raises:
            UsageError: If the shapes do not fit together; the message says which and what would.
        """
        what = (
            f"of shape {tuple(weight.shape)}, {weight.dtype}" if isinstance(weight, Tensor) else type(weight).__name__
        )
        if not isinstance(weight, Tensor) or weight.ndim - 2 not in CONVOLVE or not weight.numel():
            raise UsageError(f"weight is {what}; expected filters (K, M // groups, *kernel), a tensor, 1-D to 3-D")
        if not weight.dtype.is_floating_point:
            raise UsageError(f"weight is {what}; expected a floating-point type")
        self.weight = weight.detach()
        self.input_shape = tuple(int(n) for n in input_shape)
        self.dims = dims = weight.ndim - 2
        self.stride = per_axis(stride, dims, "stride")
        self.padding = per_axis(padding, dims, "padding")
        self.dilation = per_axis(dilation, dims, "dilation")
        self.groups = int(groups)
        if len(self.input_shape) != dims + 1 or min(self.dilation) < 1:
            raise UsageError(
                f"input shape {self.input_shape} and dilation {self.dilation} do not fit {dims}-D filters; expected "
                "(M, *spatial) and at least 1"
            )
        try:
            # of no inputs at all: torch checks the geometry, and says how large an output is
            output = self.forward(self.weight.new_empty(0, *self.input_shape))
        except RuntimeError as error:
            raise UsageError(
                f"input shape {self.input_shape} does not fit {self.groups} groups of filters {tuple(weight.shape)}: "
                f"{str(error).splitlines()[0]}"
            ) from error
        self.output_shape = tuple(output.shape[1:])

    def __repr__(self) -> str:
        usual = {"stride": (1,) * self.dims, "padding": (0,) * self.dims, "dilation": (1,) * self.dims, "groups": 1}
        extra = [f"{name}={value}" for name, value in self.geometry.items() if value != usual[name]]
        kernel = "x".join(str(k) for k in self.weight.shape[2:])
        return f"ConvOperator({', '.join([f'{self.input_shape} -> {self.output_shape}', f'kernel={kernel}', *extra])})"

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the filters."""
        return self.weight.dtype

    @property
    def device(self) -> torch.device:
        """Device of the filters."""
        return self.weight.device

    @property
    def geometry(self) -> dict[str, Any]:
        """Stride, padding, dilation and groups, as the keyword arguments of the constructor."""
        return {"stride": self.stride, "padding": self.padding, "dilation": self.dilation, "groups": self.groups}

    @property
    def spread(self) -> tuple[int, ...]:
        """Places from the first to the last tap of a filter, per axis."""
        return tuple(d * (k - 1) for k, d in zip(self.weight.shape[2:], self.dilation, strict=True))

    @property
    def reach(self) -> tuple[int, ...]:
        """Farthest shift, in outputs and per axis, at which the patches of two outputs overlap."""
        return tuple(spread // s for spread, s in zip(self.spread, self.stride, strict=True))

    def forward(self, x: Tensor) -> Tensor:
        """The convolution ``W x``: ``(*batch, M, *spatial)`` to ``(*batch, K, *output)``; else a UsageError."""
        batch = _batch_shape(x, self.input_shape, "input")
        flat = x if len(batch) == 1 else x.reshape(-1, *self.input_shape)
        h = CONVOLVE[self.dims](flat, self.weight, None, self.stride, self.padding, self.dilation, self.groups)
        return h if len(batch) == 1 else h.reshape(*batch, *self.output_shape)

    def adjoint(self, z: Tensor) -> Tensor:
        """The transposed one ``W^T z``: ``(*batch, K, *output)`` to ``(*batch, M, *spatial)``; else a UsageError."""
        batch = _batch_shape(z, self.output_shape, "activation")
        flat = z if len(batch) == 1 else z.reshape(-1, *self.output_shape)
        x = CONVOLVE_ADJOINT[self.dims]((len(flat), *self.input_shape), self.weight, flat, **self.geometry)
        return x if len(batch) == 1 else x.reshape(*batch, *self.input_shape)

    def norm(self, *, tolerance: float = 1e-6, max_steps: int = 300, seed: int = 0) -> float:
        """Spectral norm ``max ||W x|| / ||x||``, from below, by Golub-Kahan-Lanczos bidiagonalisation.

        Filters are scaled to a largest entry of 1 first, so the norm of small ones, of 1e-25 say, is as exact.

        Args:
            tolerance: Stop when the squared norm has moved by less than this, relatively, over the last half of steps.
            max_steps: Largest number of products with ``W^T W``.
            seed: Seed of the random start.

        Returns:
            The norm.

        Raises:
            UsageError: If ``max_steps`` is below 1 or ``tolerance`` below 0.
        """
        from unconv.solvers.lanczos import bidiagonalise  # which inversion has no use for

        if max_steps < 1 or not tolerance >= 0:
            raise UsageError(f"max_steps is {max_steps} and tolerance {tolerance}; expected at least 1 and at least 0")
        scale = self.weight.abs().max().item()
        if scale == 0:
            return 0.0
        unit = self.with_weight((self.weight.double() / scale).to(self.weight))
        generator = torch.Generator().manual_seed(seed)
        start = torch.randn(1, *self.input_shape, generator=generator, dtype=torch.float64)
        start = (start / start.norm()).to(self.weight)
        estimates: list[float] = []
        steps = bidiagonalise(unit.forward, unit.adjoint, start, max_steps=max_steps)
        for step, bidiagonal in enumerate(steps, start=1):
            if step % 5 == 0 or step == max_steps or bidiagonal.exhausted:
                estimate = torch.linalg.matrix_norm(bidiagonal.matrix(), 2).item() ** 2
                estimates.append(estimate)
                # it can rest at the second largest for a while, so a rest counts that is as long as the way to it
                rest = len(estimates) // 2
                if len(estimates) > 2 and estimate - estimates[-1 - rest] <= tolerance * estimate:
                    break
        return scale * math.sqrt(max(estimates))

    def to_dense(self) -> Tensor:
        """Return the matrix ``W`` itself, shape ``(prod(output_shape), prod(input_shape))``, for small problems."""
        n = math.prod(self.input_shape)
        identity = torch.eye(n, dtype=self.dtype, device=self.device)
        return self.forward(identity.reshape(n, *self.input_shape)).reshape(n, -1).T.contiguous()

    def at(self, boundary: Boundary) -> ConvOperator:
        """Return the operator with one of the two boundaries; a UsageError if there is no such one."""
        check_choice(get_args(Boundary), boundary=boundary)
        return self.full() if boundary == "full" else self

    def full(self) -> ConvOperator:
        """Return the same filters and shifts on the padded input, larger by twice the padding, without padding.

        Its adjoint keeps the full output, as in the paper's Figure 3; cropped to the unpadded input, filters at the
        border lose part of their norm.
        """
        return self.unpadded([n + 2 * p for n, p in zip(self.input_shape[1:], self.padding, strict=True)])

    def unpadded(self, spatial: Sequence[int]) -> ConvOperator:
        """Return the same filters, without padding, on a map of another size."""
        return ConvOperator(self.weight, (self.input_shape[0], *spatial), **self.geometry | {"padding": 0})

    def with_weight(self, weight: Tensor) -> ConvOperator:
        """Return the operator of another filter bank of the same shape; a UsageError if the shape differs."""
        if weight.shape != self.weight.shape:
            raise UsageError(f"weight has shape {tuple(weight.shape)}; expected {tuple(self.weight.shape)}")
        return ConvOperator(weight, self.input_shape, **self.geometry)

    def normalised(self) -> ConvOperator:
        """Return the operator with every filter scaled to unit norm; zero filters stay zero."""
        # divided by its largest entry first, and in float64: squares of small entries vanish
        flat = self.weight.double().flatten(1)
        flat = flat / flat.abs().amax(1, keepdim=True).clamp_min(tiny(flat))
        unit = flat / flat.norm(dim=1, keepdim=True).clamp_min(tiny(flat))
        return self.with_weight(unit.reshape(self.weight.shape).to(self.weight))

    def gaussian(self, seed: int) -> ConvOperator:
        """Return the operator with i.i.d. Gaussian filters of expected unit norm, variance ``1 / (M l^d / groups)``."""
        return self.with_weight(gaussian_like(self.weight, seed))

    def to(self, *args: torch.dtype | torch.device | str) -> ConvOperator:
        """Return the operator on another device or in another floating-point type; arguments as for ``Tensor.to``."""
        return self.with_weight(self.weight.to(*args))  # pyright: ignore


def gaussian_like(weight: Tensor, seed: int) -> Tensor:
    """Return Gaussian filters of expected unit norm (Theorem 3.1's scale), of the shape, dtype and device of others."""
    # drawn on the CPU in float64, so that every device and type gets the same
    generator = torch.Generator().manual_seed(seed)
    draw = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
    return (draw / math.sqrt(weight[0].numel())).to(weight)


def adjoint_gap(operator: LinearOperator, x: Tensor, z: Tensor) -> float:
    """The largest ``|<Wx, z> - <x, W^T z>|`` of a batch, relative to norms: rounding only, for an exact adjoint."""
    h, a = operator.forward(x), operator.adjoint(z)
    left = (h * z).flatten(1).sum(1)
    right = (x * a).flatten(1).sum(1)
    scale = norms(h) * norms(z) + norms(x) * norms(a)
    return ((left - right).abs() / scale.clamp_min(tiny(scale))).max().item()


def _batch_shape(tensor: Tensor, shape: tuple[int, ...], what: str) -> tuple[int, ...]:
    if not isinstance(tensor, Tensor):
        raise UsageError(f"{what} is a {type(tensor).__name__}; expected a tensor")
    if tensor.ndim < len(shape) or tuple(tensor.shape[tensor.ndim - len(shape) :]) != shape:
        raise UsageError(f"{what} has shape {tuple(tensor.shape)}; expected (*batch, {', '.join(map(str, shape))})")
    return tuple(tensor.shape[: tensor.ndim - len(shape)])
