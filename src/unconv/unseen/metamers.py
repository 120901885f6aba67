"""Metamers of a layer: directions that it hardly sees, and images that differ while their features agree."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from unconv.inversion.jacobian import Jacobian
from unconv.linalg import dots, norms, relative_norm, tiny
from unconv.solvers.lbfgs import LbfgsConfig, lbfgs
from unconv.stationary import StationaryPreconditioner
from unconv.unseen.directions import least_visible, local_model, whole_jacobian
from unconv.unseen.pixels import PixelFunction

WHOLE = 4096  # numbers of an image whose Jacobian is decomposed
PROBES, STEPS_OF_DIRECTIONS = 4, 40  # of larger images
PULL = 0.1  # relative difference of features that weighs as much as missing a tenth of the distance
STEPS = LbfgsConfig(tolerance=0.98, memory=40, stalled=1e-3, patience=100)


@dataclass(frozen=True)
class Metamer:
    """An image that a layer does not tell from another one, as far as a search came.

    Attributes:
        layer: Name of the layer.
        image: The image, in pixels. Shape ``(C, *spatial)``.
        metamer: The other one.
        psnr: Between the two, in dB, from pixels between 0 and 1; from the image's own range where these are not known.
        relative_difference: ``||f(metamer) - f(image)|| / ||f(image)||``, from plain forward passes of the network.
        tolerance: The largest relative difference at which features count as equal.
        directions: Unit vectors that the layer hardly sees, the least visible first. Shape ``(n, C, *spatial)``.
        visibility: ``||J v||`` of each, in units of the root mean square over all directions. Shape ``(n,)``;
            the smallest singular value is at most the first one.
        nullity: Number of singular values of ``J`` that are rounding; ``None`` where no directions were asked for, or
            the image is too large to decompose ``J``.
        passes: Forward and backward passes of the search for the image.
        note: Why features differ by more than the tolerance; empty where they do not.
    """

    layer: str
    image: Tensor = field(repr=False)
    metamer: Tensor = field(repr=False)
    psnr: float
    relative_difference: float
    tolerance: float
    directions: Tensor = field(repr=False)
    visibility: Tensor = field(repr=False)
    nullity: int | None
    passes: int
    note: str = ""

    @property
    def agrees(self) -> bool:
        """Whether the features agree to the tolerance."""
        return self.relative_difference <= self.tolerance

    def document(self) -> dict[str, Any]:
        """Return the result as ``unconv unseen --json`` prints it, of JSON's types only."""
        return {
            "layer": self.layer,
            "psnr": self.psnr,
            "relative_difference": self.relative_difference,
            "tolerance": self.tolerance,
            "agrees": self.agrees,
            "visibility": self.visibility.tolist(),
            "nullity": self.nullity,
            "numbers": self.image.numel(),
            "passes": self.passes,
            "note": self.note,
        }


def find_metamer(
    function: PixelFunction,
    image: Tensor,
    verify: Callable[[Tensor], Tensor],
    *,
    psnr: float,
    tolerance: float,
    passes: int,
    directions: int,
    seed: int,
) -> Metamer:
    """Search for an image at a distance whose features agree.

    From a random image at the distance, drawn where a block-circulant model of ``J^T J`` sees least, L-BFGS minimises
    ``||f(x) - f(image)||^2``, the distance held by a penalty, preconditioned by the same model. Where that fails, the
    distance is made smaller, by 5 dB at a time, while passes are left. Of what does not agree it returns what comes
    closest. ``verify``: a plain forward pass, pixels to features.
    """
    generator = torch.Generator().manual_seed(seed)
    model = local_model(function, image, generator)
    peak = 1.0 if function.box is not None else max((image.max() - image.min()).item(), torch.finfo(image.dtype).tiny)
    features = verify(image)
    best: tuple[float, Tensor] | None = None
    left, wanted = passes, psnr
    while left > 0 and (best is None or best[0] > tolerance):
        distance = peak * 10 ** (-wanted / 20)
        most = left if best else math.ceil(left / 2)
        found, spent = _search(function, image, model, distance, tolerance, most, generator)
        difference = relative_norm(verify(found) - features, features).item()
        if best is None or difference < best[0]:
            best = difference, found
        left, wanted = left - spent, wanted + 5
    assert best is not None
    hidden = hidden_directions(function, image, directions) if directions else (image[:0], torch.zeros(0), None)
    mean = (best[1] - image).double().square().mean().item()
    failed = f"none was found in {passes} passes, which does not show that there is none; give more passes"
    return Metamer(
        layer=function.function.layer,
        image=image[0],
        metamer=best[1][0],
        psnr=10 * math.log10(peak**2 / mean) if mean > 0 else math.inf,
        relative_difference=best[0],
        tolerance=tolerance,
        directions=hidden[0],
        visibility=hidden[1],
        nullity=hidden[2],
        passes=passes - left,
        note="" if best[0] <= tolerance else failed,
    )


def _search(
    function: PixelFunction,
    image: Tensor,
    model: StationaryPreconditioner,
    distance: float,
    tolerance: float,
    passes: int,
    generator: torch.Generator,
) -> tuple[Tensor, int]:
    """Return an image at a root mean square distance with features like another's, and the passes spent."""
    nu = (tolerance / 20) ** 2
    boxed = function.box is not None

    def pixels(z: Tensor) -> Tensor:
        # every z is an image within [0, 1]
        return (1 - torch.cos(math.pi * z)) / 2 if boxed else z

    centre = torch.arccos((1 - 2 * image).clamp(-1, 1)) / math.pi if boxed else image
    direction = model.apply(torch.randn(image.shape, generator=generator).to(image), nu)
    # the start at the distance, by bisection
    low, high = 0.0, 4 * distance / direction.square().mean().sqrt().item()
    for _ in range(40):
        middle = (low + high) / 2
        far = (pixels(centre + middle * direction) - image).square().mean().sqrt().item() > distance
        low, high = (low, middle) if far else (middle, high)
    with torch.no_grad():
        features = function(image)
    size = norms(features)

    def evaluate(z: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            x = pixels(z)
            # (||f(x) - f(image)|| / ||f(image)||)^2 + (p 10 (1 - d / distance)_+)^2, in units of the tolerance
            difference = (function(x) - features).flatten(1).square().sum(1) / size**2
            reached = (x - image).flatten(1).square().mean(1).sqrt() / distance
            value = (difference + (PULL * 10 * (1 - reached).clamp_min(0)) ** 2) / (2 * tolerance**2)
            return value.detach(), torch.autograd.grad(value.sum(), z)[0]

    def metric(v: Tensor, value: Tensor, rows: Tensor) -> Tensor:
        return model.apply(v, nu)

    found = lbfgs(evaluate, centre + low * direction, max_passes=passes, metric=metric, config=STEPS)
    return pixels(found.value), found.passes[0]


def hidden_directions(function: PixelFunction, image: Tensor, count: int) -> tuple[Tensor, Tensor, int | None]:
    """Return unit vectors with the smallest ``||J v||``, these norms as ``Metamer`` has them, and the nullity.

    The whole Jacobian is decomposed, at a product per number; on a large image it is searched, without nullity.
    """
    shape, numbers = image.shape[1:], image.numel()
    if numbers > WHOLE:
        pulled = function.pull(image.expand(PROBES, *shape), torch.Generator().manual_seed(0))
        mean = dots(pulled, pulled).mean().div(numbers).sqrt().clamp_min(tiny(image)).cpu()  # tr J^T J = E ||J^T u||^2
        found, visibility = least_visible(function, image, count, steps=STEPS_OF_DIRECTIONS)
        return found, visibility / mean, None
    columns = whole_jacobian(function, image, Jacobian.forward).double()
    squares, vectors = torch.linalg.eigh(columns @ columns.T)
    values = squares.clamp_min(0).sqrt()
    # the root of an eigenvalue of J J^T errs by the root of its rounding, whatever the type of the image
    eps = max(torch.finfo(image.dtype).eps, torch.finfo(torch.float64).eps ** 0.5)
    rounding = eps * max(numbers, columns.shape[1]) ** 0.5 * values[-1]
    directions = vectors[:, :count].T
    mean = squares.sum().div(numbers).sqrt().clamp_min(tiny(squares))
    visibility = norms(directions @ columns) / mean
    # rounding of the eigenvalues does not keep the order of the smallest
    order = visibility.argsort()
    return directions[order].reshape(-1, *shape).to(image), visibility[order], int((values <= rounding).sum())
