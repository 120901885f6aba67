"""An image from a layer's features: the one entry to all methods."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor

from unconv.errors import UnconvError, UsageError, check_choice, check_whole
from unconv.inversion.box import Box
from unconv.inversion.frozen_network import NO_SIDE_INFORMATION, LayerFunction, SideInformation
from unconv.inversion.gauss_newton import GaussNewtonConfig, gauss_newton
from unconv.inversion.misfit import check_features, is_constant
from unconv.linalg import relative_norm
from unconv.solvers.solution import Solution, Status
from unconv.stationary import StationaryPreconditioner

if TYPE_CHECKING:
    from unconv.inversion.gradient import GradientConfig

Method = Literal["linear", "gauss-newton", "gradient"]
METHODS: tuple[Method, ...] = get_args(Method)
Decoder = Callable[[Tensor, Sequence[int]], Tensor]
"""Maps features and the shape of one image to estimates, such as a ``LinearDecoder``."""


def invert_features(
    function: LayerFunction,
    features: Tensor,
    known: SideInformation = NO_SIDE_INFORMATION,
    *,
    method: Method = "gauss-newton",
    passes: int | None = None,
    box: Box | None = None,
    initial: Tensor | None = None,
    decoder: Decoder | None = None,
    preconditioner: StationaryPreconditioner | None = None,
    config: GaussNewtonConfig | GradientConfig | None = None,
    progress: Callable[[Tensor], None] | None = None,
) -> Solution[Tensor]:
    """Recover images ``(N, *function.input_shape)`` from a layer's features ``(N, *function.shape)``.

    ``method`` is ``"linear"``, which needs the layer's ``decoder``, ``"gauss-newton"``, which makes the most of few
    passes with its ``preconditioner``, or ``"gradient"``; ``initial`` is the decoder's estimate where ``None``.
    ``history`` holds ``||f(x) - y|| / ||y||`` at the start and after every step. ``"constant"``: the features say
    nothing, and the image is where the solver began.

    UsageError if the method does not exist, has no decoder, or another method's config is given; UnconvError if the
    features are not the layer's, no gradient passes to the image, or the result is not finite.
    """
    check_choice(METHODS, method=method)
    check_whole(0, passes=passes)
    kind = {"gauss-newton": "GaussNewtonConfig", "gradient": "GradientConfig"}.get(method)
    if config is not None and type(config).__name__ != kind:
        raise UsageError(f"config is of type {type(config).__name__}; method {method!r} takes {kind or 'none'}")
    if method == "linear" and decoder is None:
        raise UsageError("method 'linear' needs the layer's decoder; fit one with fit_linear_decoders")
    check_features(function, features, gradient=method != "linear")
    linear = None
    if decoder is not None:
        linear = decoder(features, function.input_shape).to(features)
        linear = linear if box is None else box.project(linear)
    start = linear if initial is None else initial
    options: dict[str, Any] = {"initial": start, "box": box, "passes": passes, "config": config, "watch": progress}
    if method == "linear":
        assert linear is not None
        solution = _evaluated(function, features, linear)
    elif method == "gradient":
        from unconv.inversion.gradient import gradient_descent

        solution = gradient_descent(function, features, known, **options)
    else:
        solution = gauss_newton(function, features, known, linear=linear, preconditioner=preconditioner, **options)
    if not torch.isfinite(solution.value).all():
        raise UnconvError(f"inverting layer {function.layer!r} by {method} gave NaN or infinite values")
    return solution


@torch.no_grad()
def _evaluated(function: LayerFunction, features: Tensor, estimate: Tensor) -> Solution[Tensor]:
    """Return a closed-form estimate with its misfit; no pass was needed for it."""
    history = relative_norm(function(estimate) - features, features).unsqueeze(0)
    status: tuple[Status, ...] = tuple("constant" if c else "converged" for c in is_constant(features).tolist())
    return Solution(estimate, history, status, (0,) * len(features))
