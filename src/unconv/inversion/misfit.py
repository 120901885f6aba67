"""How far images are from what is known of them: their features, and with side information the branches taken."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from unconv.errors import UnconvError
from unconv.inversion.frozen_network import NO_SIDE_INFORMATION, LayerFunction, SideInformation
from unconv.linalg import column, norms


def check_features(function: LayerFunction, features: Tensor, *, gradient: bool = True) -> None:
    """Raise UnconvError where features are not those of the layer, or no gradient passes and one is needed."""
    if tuple(features.shape[1:]) != function.shape:
        raise UnconvError(
            f"the features have shape {tuple(features.shape[1:])}, layer {function.layer!r} gives {function.shape}; "
            "give the features of this layer"
        )
    if not torch.isfinite(features).all():
        raise UnconvError(f"the features of layer {function.layer!r} hold NaN or infinite values")
    if gradient and not function.differentiable:
        raise UnconvError(f"no gradient passes from layer {function.layer!r} to the image; use method='linear'")


def is_constant(features: Tensor) -> Tensor:
    """Return which images have features that are one number everywhere. Shape ``(N,)``, bool."""
    flat = features.flatten(1)
    return (flat == flat[:, :1]).all(1) & ((flat.shape[1] > 1) | (flat[:, 0] == 0))


class Misfit:
    """``||f(x) - y||^2 / 2``, ``f`` having its known branches held fixed, plus violations of what is known of them.

    A pooling that reads a known place does not see whether other entries rise above it, nor a known gate whether its
    unit would have been on. So ``||own - known||^2 / 2``, between what the network itself and what the known branches
    make of a layer's input, is added for every pooling and activation with known branches, in units in which its
    values count as much as the features: at the true image all of it vanishes.
    """

    def __init__(self, function: LayerFunction, features: Tensor, known: SideInformation) -> None:
        """Keep what is known of ``N`` images; ``features``: shape ``(N, *function.shape)``."""
        self.function, self.features, self.known = function, features, known
        size = norms(features)
        self.size = torch.where(size > 0, size, 1.0)
        self._weights: Tensor | None = None
        self._scale: Tensor | None = None

    def weigh(self, x: Tensor) -> None:
        """Weigh violations by the sizes of values at first images of all rows. ``x``: shape ``(N, *input_shape)``."""
        if self.known.side_info != "none":
            with torch.no_grad():
                _, violations = self.function.with_violations(x, self.known)
            sizes = torch.stack([size for _, size in violations]) if violations else x.new_ones(1, len(x))
            # w_l = ||y||^2 / ||a_l||^2
            self._weights = torch.where(sizes > 0, self.size.square() / sizes, 0.0)

    def forgive(self, x: Tensor, share: float) -> None:
        """Count large residuals linearly from now on: those beyond a share of their root mean square at images ``x``.

        A few features on wrong branches then bend the image no more than the many that fit (pseudo-Huber loss; Hartley
        and Zisserman 2004, A6.8). From now on every branch is the network's own.
        """
        self.known, self._weights = NO_SIDE_INFORMATION, None
        with torch.no_grad():
            residual = self.function(x) - self.features
        largest = torch.maximum(share * norms(residual), torch.finfo(residual.dtype).eps * self.size)
        self._scale = largest / residual[0].numel() ** 0.5

    def __call__(self, x: Tensor, rows: Tensor) -> Tensor:
        """Return the misfit of images of some rows, differentiable. Shape ``(R,)``."""
        if self._weights is None:
            return self._squares(self.function(x), rows) / 2
        y, violations = self.function.with_violations(x, self.known.select(rows))
        squares = self._squares(y, rows)
        for (excess, _), weight in zip(violations, self._weights, strict=False):
            squares = squares + weight[rows] * excess
        return squares / 2

    def _squares(self, y: Tensor, rows: Tensor) -> Tensor:
        residual = y - self.features[rows]
        if self._scale is None:
            return residual.square().flatten(1).sum(1)
        # 2 d^2 (sqrt(1 + r^2 / d^2) - 1), which is r^2 for small r and 2 d |r| for large ones
        d = column(self._scale[rows], residual)
        return (2 * d.square() * ((1 + (residual / d).square()).sqrt() - 1)).flatten(1).sum(1)

    def with_gradient(self, x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the misfit and its gradient: one pass."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            value = self(x, rows)
            (gradient,) = torch.autograd.grad(value.sum(), x)
        return value.detach(), gradient


@torch.no_grad()
def best_fit(
    function: LayerFunction, features: Tensor, known: SideInformation, images: Sequence[Tensor]
) -> Tensor | None:
    """Return, row by row, the images ``(N, *input_shape)`` of least misfit; ``None`` where there are none."""
    if len(images) < 2:
        return images[0] if images else None
    misfit, rows = Misfit(function, features, known), torch.arange(len(features), device=features.device)
    misfit.weigh(images[0])
    values = torch.stack([misfit(x, rows) for x in images])
    best = values.nan_to_num(torch.inf, torch.inf).argmin(0)
    return torch.stack(list(images))[best, rows]
