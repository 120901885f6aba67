"""Is this image the only one? The ball around it in which a layer is one affine map, and what that map sees least.

As long as no gate and no switch changes, ``f`` is affine, and so is the margin ``m_i`` by which each of them holds: the
first one changes at ``min_i |m_i| / ||grad m_i||``, the distance of the nearest of the planes ``m_i = 0``, and no
nearer (Lee, Alvarez-Melis and Jaakkola, 2019). In the ball ``||f(a) - f(b)|| >= sigma ||a - b||`` with ``sigma`` the
smallest singular value of ``J``, so features differ between any two images of it where ``sigma > 0``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import torch
from torch import Tensor

from unconv.certify.stability import least_singular_value
from unconv.errors import UnconvError
from unconv.inversion.frozen_network import SideInformation
from unconv.io import finite
from unconv.unseen.directions import least_visible, normal_matrix
from unconv.unseen.pixels import PixelFunction

DIRECT = 1024  # numbers of an image up to which every gradient is computed, one pixel after the other
FAILURE = 1e-9  # chance at which a nearer plane may have been missed, on larger images
BATCH, ENTRIES = 16, 2**25  # images at a time, and margins of all of them
GRADIENTS = 256  # of the nearest planes
CANDIDATES, STEPS = 4, 30  # of the search for the least visible direction of larger images
LINE = (-1.0, 2.0, *(sign * 10.0**power for power in range(1, 6) for sign in (1, -1)))  # in steps of a random image
AFFINE = 1e-8  # relative departure from an affine map that is rounding
EPS = torch.finfo(torch.float64).eps
ROUNDING = 1024 * EPS  # of the largest margin of a tensor: what is below counts as 0
BEYOND = (1e-9, 1e-6, 1e-3)  # how far behind a plane, relative to its distance, a witness is looked for
OTHER = "smooth or other operations beside ReLUs and max poolings: between gates the layer is no affine map"
NONE_TO_FLIP = "its non-linearities are smooth, or no ReLUs, so there are no gates to flip; J is the image's alone"


@dataclass(frozen=True)
class Uniqueness:
    """Where around an image a layer is one affine map, and how well that map tells images apart.

    Distances are Euclidean norms over all numbers of the image, in pixels between 0 and 1; of the network in exact
    arithmetic, up to rounding of float64. That nothing but its gates bends the network is tested at points of a random
    line, out to 1e5 times as far as black is from white.

    Attributes:
        layer: Name of the layer.
        comparisons: Kinks of activations and pairs of pooled entries up to the layer.
        radius: Within the first number no gate and no switch changes; at the second one does, at ``witness``, infinite
            where none was found. ``None`` where ``f`` is not affine between them, so that nothing is shown.
        certain: Whether the first number is proven, or but for a chance of 1e-9 over random probes.
        witness: An image at that distance at which a gate or a switch has changed, as a forward pass shows; its pixels
            may lie just outside of ``[0, 1]``. Shape ``(C, *spatial)``.
        sigma: Interval of the smallest singular value of ``J`` with respect to the image.
        proven: Whether the lower end of ``sigma`` is proven, up to rounding. Otherwise it is 0, and nothing is known.
        undetermined: Dimensions of the image, at least, that ``J`` does not see: inside the radius a whole ball of
            images has exactly these features.
        note: What keeps something from being said.
    """

    layer: str
    comparisons: int
    radius: tuple[float, float] | None
    certain: bool
    witness: Tensor | None = field(repr=False)
    sigma: tuple[float, float]
    proven: bool
    undetermined: int
    note: str = ""

    @property
    def unique(self) -> bool | None:
        """Whether no other image within the radius has these features; ``None`` where neither is shown."""
        if self.radius is None or self.radius[0] == 0:
            return None
        return True if self.sigma[0] > 0 else False if self.undetermined else None

    def document(self) -> dict[str, Any]:
        """Return the result as ``unconv unseen --json`` prints it, of JSON's types only."""
        return {
            "layer": self.layer,
            "comparisons": self.comparisons,
            "radius": None if self.radius is None else [finite(r) for r in self.radius],
            "certain": self.certain,
            "sigma": list(self.sigma),
            "proven": self.proven,
            "undetermined": self.undetermined,
            "unique": self.unique,
            "text": str(self),
            "note": self.note,
        }

    def __str__(self) -> str:
        low, high = self.radius or (0.0, 0.0)
        if self.radius is None:
            where = "no radius is shown"
        elif math.isinf(low):
            where = "no gate and no switch changes anywhere"
        else:
            chance = "" if self.certain else f" (but for a chance of {FAILURE:.0e})"
            some = f", one does at {high:.3g}" if math.isfinite(high) else ""
            where = f"no gate and no switch changes within {low:.3g} of the image{chance}{some}"
        low, high = self.sigma
        least = f"the smallest singular value of J is {low:.3g} to {high:.3g}"
        if self.undetermined:
            seen = f"J does not see {self.undetermined} dimensions of the image or more"
        elif self.proven:
            seen = least if low > 0 else f"the smallest singular value of J is at most {high:.3g}, or rounding"
        else:
            seen = f"the smallest singular value of J is at most {high:.3g}; no lower bound is known"
        follows = {
            True: ": no other image in there has these features",
            False: ": images in there have the same features",
            None: "",
        }[self.unique]
        return f"{self.layer}: {where}; {seen}{follows}{f' ({self.note})' if self.note else ''}"


def find_uniqueness(
    function: PixelFunction, image: Tensor, *, probes: int = 64, whole: int = 3072, seed: int = 0
) -> Uniqueness:
    """Find the radius without changes around an image, and the smallest singular value of the layer there.

    On images of more than 1024 numbers ``||grad m_i||`` of every margin is bounded from random images ``v``: the sum of
    ``k`` values ``<grad m_i, v>^2`` is ``||grad m_i||^2`` times a chi-squared variable of ``k`` degrees of freedom,
    which for no margin is below its quantile but for a chance of 1e-9 (union bound). The nearest planes by that bound
    get their gradient, 256 at most, until the next one is farther than the nearest that is known. Images of at most
    ``whole`` numbers get all of ``J^T J``. In float64; ``UnconvError`` for margins that are not finite, or regions of a
    pooling that differ in size.
    """
    layer, numbers = function.function, image.numel()
    branch = _Branch(function, layer.record(function.to_input(image), "gates"))
    with torch.no_grad():
        features, margins = branch.margins(image)
    generator = torch.Generator().manual_seed(seed)
    count = sum(m.numel() for m in margins)
    if not all(m.isfinite().all() for m in [features, *margins]):
        raise UnconvError(f"the features of layer {layer.layer!r} hold NaN or infinite values")
    note, radius, certain, witness = "", None, numbers <= DIRECT, None
    if not _is_affine(branch, image, [features, *margins], generator):
        note = OTHER if count else NONE_TO_FLIP
    elif not count:
        radius, certain = (math.inf, math.inf), True
    else:
        bounds = _gradient_norms(branch, image, margins, probes, generator)
        radius, witness = _nearest(branch, image, margins, bounds)
    sigma, proven, undetermined = _least_singular_value(function, image, features.numel(), whole, seed)
    return Uniqueness(layer.layer, count, radius, certain, witness, sigma, proven, undetermined, note)


@dataclass(frozen=True)
class _Branch:
    """A layer with the gates and switches of one image."""

    function: PixelFunction
    known: SideInformation

    def margins(self, pixels: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return features and margins of images in this branch."""
        known = self.known.select(torch.zeros(len(pixels), dtype=torch.int64, device=pixels.device))
        return self.function.function.with_margins(self.function.to_input(pixels), known)

    def is_left(self, pixels: Tensor) -> bool:
        """Return whether an image takes another branch."""
        there, known = self.function.function.record(self.function.to_input(pixels), "gates"), self.known
        switches = any(not torch.equal(a, b) for a, b in zip(there.switches, known.switches, strict=True))
        return switches or any(not torch.equal(a, b) for (a, _), (b, _) in zip(there.gates, known.gates, strict=True))


def _is_affine(branch: _Branch, image: Tensor, here: list[Tensor], generator: torch.Generator) -> bool:
    """Return whether features and margins are affine once branches are fixed, by a random line through the image."""
    v = torch.randn(image.shape, generator=generator, dtype=image.dtype).to(image.device)
    with torch.no_grad():
        unit, *ends = [branch.margins(image + t * v) for t in (1.0, *LINE)]
    for own, first, *others in zip(here, *([features, *margins] for features, margins in (unit, *ends)), strict=True):
        slope = first - own
        size = AFFINE * max(own.abs().max().item(), slope.abs().max().item())
        for t, other in zip(LINE, others, strict=True):
            # f(x + t v) = f(x) + t (f(x + v) - f(x)); values that are no numbers, as of logarithms, are no affine map's
            if not (other - own - t * slope).abs().max().item() <= size * max(1.0, abs(t)):
                return False
    return True


def _gradient_norms(
    branch: _Branch, image: Tensor, margins: list[Tensor], probes: int, generator: torch.Generator
) -> list[Tensor]:
    """Return ``||grad m_i||`` of small images, of larger ones what it is below but for a chance of 1e-9."""
    from scipy.stats import chi2

    numbers, count = image.numel(), sum(m.numel() for m in margins)
    direct = numbers <= DIRECT
    squares = [torch.zeros_like(m) for m in margins]
    batch = max(1, min(BATCH, ENTRIES // count))
    for rows in torch.arange(numbers if direct else probes).split(batch):
        if direct:
            v = torch.nn.functional.one_hot(rows, numbers).to(image.dtype)
        else:
            v = torch.randn(len(rows), numbers, generator=generator, dtype=image.dtype)
        with torch.no_grad():
            _, there = branch.margins(image + v.reshape(-1, *image.shape[1:]).to(image.device))
        # affine: m(x + v) - m(x) = <grad m, v>
        for square, own, other in zip(squares, margins, there, strict=True):
            square += (other - own).square().sum(0, keepdim=True)
    least = 1.0 if direct else float(chi2.ppf(FAILURE / count, probes))
    return [(square / least).sqrt() for square in squares]


def _nearest(
    branch: _Branch, image: Tensor, margins: list[Tensor], bounds: list[Tensor]
) -> tuple[tuple[float, float], Tensor | None]:
    """Return the distance of the nearest plane, from below and above, and an image behind it."""
    distances = []
    for margin, bound in zip(margins, bounds, strict=True):
        sure = (margin.abs() - ROUNDING * margin.abs().max()).clamp_min(0)
        # a margin without gradient never changes
        distances.append(torch.where(bound > 0, sure / bound, math.inf).flatten())
    lower = torch.cat(distances)
    nearest = lower.topk(min(GRADIENTS + 1, len(lower)), largest=False)
    sizes = torch.tensor([0, *(m.numel() for m in margins)]).cumsum(0)
    # of planes that are known, and of the next one that is only bounded
    floor, best, witness = math.inf, math.inf, None
    with torch.enable_grad():
        x = image.detach().requires_grad_()
        _, found = branch.margins(x)
        for rank, (distance, place) in enumerate(zip(nearest.values.tolist(), nearest.indices.tolist(), strict=True)):
            if distance >= best or rank == GRADIENTS:
                floor = min(floor, distance)
                break
            tensor = int((sizes <= place).sum()) - 1
            margin = found[tensor].flatten()[place - int(sizes[tensor])]
            (gradient,) = torch.autograd.grad(margin, x, retain_graph=True)
            length = gradient.norm().item()
            if length == 0:
                continue
            slack = ROUNDING * margins[tensor].abs().max().item()
            floor = min(floor, max(0.0, abs(margin.item()) - slack) / length)
            behind = -math.copysign(1.0, margin.item())
            # on the plane either side may be the other branch
            signs = (behind, -behind) if abs(margin.item()) <= slack else (behind,)
            for beyond, sign in product(BEYOND, signs):
                away = sign * gradient.detach() / length
                reached = max(abs(margin.item()) / length * (1 + beyond), 1e-3 * beyond)
                if reached < best and branch.is_left(image + reached * away):
                    best, witness = reached, (image + reached * away)[0]
                    break
    return (min(floor, best), best), witness


def _least_singular_value(
    function: PixelFunction, image: Tensor, outputs: int, whole: int, seed: int
) -> tuple[tuple[float, float], bool, int]:
    """Return an interval of the smallest singular value, whether it is proven, and the least nullity."""
    numbers = image.numel()
    if outputs < numbers:
        return (0.0, 0.0), True, numbers - outputs
    if numbers > whole:
        _, visibility = least_visible(function, image, CANDIDATES, steps=STEPS, seed=seed)
        return (0.0, visibility[0].item()), False, 0
    return least_singular_value(normal_matrix(function, image)), True, 0
