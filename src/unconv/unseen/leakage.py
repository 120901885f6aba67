"""What no attacker can do with noisy features: lower bounds of the mean squared error of any reconstruction.

Features ``y = f(x) + sigma n`` with white Gaussian ``n`` have Fisher information ``J^T J / sigma^2`` about the image.
Errors are mean squares per number of the image, pixels between 0 and 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from unconv.errors import UnconvError, UsageError
from unconv.io import finite
from unconv.linalg import dots
from unconv.stationary import Blocks, StationaryConfig, StationaryPreconditioner, smoothed_covariance
from unconv.unseen.image_prior import ImagePrior
from unconv.unseen.pixels import Interval, PixelFunction, mean_interval

BLOCK = 4  # pixels per axis of a block, at most: four are 48 numbers, whose matrices are factorised in seconds
PAIRS, MISSED = 8, 2.0  # images of the prior, and the factor by which their features may vary more than expected
PRIOR_PROBES = 32  # white images, each at the cost of two Fourier transforms
ASSUMPTIONS = (
    "noise: white and Gaussian, of standard deviation sigma, added to the features",
    "unbiased bound: holds for attackers whose error is zero on average for every image; a prior does without that",
    "Bayesian bound: holds on average over images from a prior whose Fisher information is that of a Gaussian with the "
    "covariance of the reference images, alike at every pixel; photographs are not Gaussian, so it is a model there",
    "Fisher information: averaged over the given images",
)
EMPTY = "without noise the bounds are empty: they say that the error is at least 0"
BEATEN = (
    "an attack did better than the Bayesian bound on these images, so they are not like the prior's; give "
    "reference_images of their kind"
)
QUANTISED = (
    "quantisation: taken for noise of its variance, step^2 / 12; its error is not Gaussian, so nothing is proven"
)


@dataclass(frozen=True)
class LeakageBound:
    """Lower bounds of the error of any attacker, and how much the features say.

    Attributes:
        sigma: Standard deviation of the noise, in the units of the features.
        trace: ``tr(J^T J)``, a mean over images, with its 95 % interval.
        dfil: Fisher information per number of the image, ``tr(J^T J) / (d sigma^2)``; infinite without noise.
        unbiased: No unbiased attacker has a smaller mean squared error: ``1 / dfil`` at the upper end of the trace.
        bayes: No attacker has a smaller one on average over the prior (van Trees), at the lower end of its interval.
        bayes_estimate: The same bound as estimated, without that margin.
        prior_variance: Error of an attacker who sees nothing and answers with the mean image.
        bits_per_pixel: Estimate of the information about a pixel, all its channels; ``None`` without noise.
        probes: Backward passes that the bounds are estimated from.
    """

    sigma: float
    trace: Interval
    dfil: float
    unbiased: float
    bayes: float
    bayes_estimate: float
    prior_variance: float
    bits_per_pixel: float | None
    probes: int


@dataclass(frozen=True)
class Leakage:
    """How well the images behind a layer's noisy features can be reconstructed: bounds beside what an attack attains.

    Attributes:
        layer: Name of the layer.
        sigma: Standard deviation of the noise, in the units of the features.
        relative_sigma: The same in units of the features' root mean square.
        bits: Bits per feature that the noise stands for; ``None`` where noise was given.
        bound: The lower bounds.
        attained: Mean squared error of every image by each attack. Shape ``(N,)`` each.
        in_pixels: Whether errors are of pixels between 0 and 1; else of what the network receives.
        assumptions: What the bounds take for granted.
        notes: Remarks on this result.
        seconds: Time taken for the bounds and for the attacks.
    """

    layer: str
    sigma: float
    relative_sigma: float
    bits: int | None
    bound: LeakageBound
    attained: dict[str, Tensor] = field(repr=False)
    in_pixels: bool
    assumptions: tuple[str, ...] = field(default=ASSUMPTIONS, repr=False)
    notes: tuple[str, ...] = ()
    seconds: tuple[float, float] = (0.0, 0.0)

    @property
    def best(self) -> tuple[str, float] | None:
        """The attack with the least mean squared error over the images, and that error; ``None`` without attacks."""
        errors = {name: values.mean().item() for name, values in self.attained.items()}
        name = min(errors, key=lambda name: errors[name], default=None)
        return None if name is None else (name, errors[name])

    @property
    def gap_db(self) -> float | None:
        """Decibels between the Bayesian bound and the best attack; ``None`` where one of them is missing."""
        if self.best is None or not self.bound.bayes > 0 or not self.best[1] > 0:
            return None
        return 10 * math.log10(self.best[1] / self.bound.bayes)

    def document(self) -> dict[str, Any]:
        """Return the result as ``unconv unseen --json`` prints it; ``None`` for what is infinite or not known."""
        bound = self.bound
        return {
            "layer": self.layer,
            "sigma": self.sigma,
            "relative_sigma": finite(self.relative_sigma),
            "bits": self.bits,
            "in_pixels": self.in_pixels,
            "trace": {name: finite(getattr(bound.trace, name)) for name in ("value", "low", "high")},
            "dfil": finite(bound.dfil),
            "unbiased_bound": finite(bound.unbiased),
            "bayesian_bound": bound.bayes,
            "bayesian_bound_estimate": bound.bayes_estimate,
            "prior_variance": bound.prior_variance,
            "bits_per_pixel_estimate": bound.bits_per_pixel,
            "attained": {name: values.mean().item() for name, values in self.attained.items()},
            "attained_margin": {name: finite(_margin(values)) for name, values in self.attained.items()},
            "psnr": {
                "bayesian_bound": decibels(bound.bayes),
                "unbiased_bound": decibels(bound.unbiased),
                "prior": decibels(bound.prior_variance),
                **{name: decibels(values.mean().item()) for name, values in self.attained.items()},
            }
            if self.in_pixels
            else None,
            "gap_db": self.gap_db,
            "probes": bound.probes,
            "images": max((len(values) for values in self.attained.values()), default=0),
            "assumptions": list(self.assumptions),
            "notes": list(self.notes),
            "seconds": list(self.seconds),
        }

    def __repr__(self) -> str:
        best = "no attack" if self.best is None else f"{self.best[0]} attains {self.best[1]:.3g}"
        return f"Leakage({self.layer}, sigma {self.sigma:.3g}: error at least {self.bound.bayes:.3g}, {best})"


def beaten(result: Leakage) -> bool:
    """Return whether an attack is below the Bayesian bound by more than its own sampling error, 2 standard errors."""
    return any(errors.mean().item() + _margin(errors) < result.bound.bayes for errors in result.attained.values())


def _margin(errors: Tensor) -> float:
    """Return two standard errors of a mean over images; infinite for one image."""
    return 2 * errors.std().item() / math.sqrt(len(errors)) if len(errors) > 1 else math.inf


def decibels(error: float) -> float | None:
    """Return the PSNR of a mean squared error of pixels between 0 and 1; ``None`` where it is infinite or unknown."""
    return -10 * math.log10(error) if 0 < error < math.inf else None


def quantisation_noise(features: Tensor, bits: int) -> tuple[float, Tensor]:
    """Quantise features evenly between their ends; return ``step / sqrt(12)``, the size of uniform errors, and them."""
    if not 1 <= bits <= 32:
        raise UsageError(f"bits is {bits}; expected 1 to 32")
    low, high = features.min().double(), features.max().double()
    step = (high - low).item() / (2**bits - 1)
    if step == 0:
        return 0.0, features
    return step / math.sqrt(12), (((features.double() - low) / step).round() * step + low).to(features)


@dataclass(frozen=True)
class LinearModel:
    """A layer and images as a linear Gaussian model that is alike at every block of pixels."""

    function: PixelFunction
    images: Tensor  # pixels of the images at which it is linearised; shape (N, C, *spatial)
    model: StationaryPreconditioner  # the average of J^T J and the covariance of the prior, diagonalised together
    prior: ImagePrior
    pulls: Tensor  # J^T u of the probes that the average is taken from; shape (probes, C, *spatial)

    @staticmethod
    def of(
        function: PixelFunction,
        images: Tensor,
        prior: ImagePrior,
        *,
        probes: int = 32,
        batch_size: int = 4,
        seed: int = 0,
    ) -> LinearModel:
        """Estimate the average of ``J^T J``; ``UnconvError`` if features change more over the prior than it says.

        ``probes``: backward passes; more where images are small, for as many samples as matrices need.
        """
        shape = tuple(images.shape[1:])
        blocks = Blocks.of(shape, [math.gcd(*shape[1:])] * (len(shape) - 1), BLOCK)
        smoothing = min(2, max(0, min(blocks.grid) // 8))
        samples = (2 * smoothing + 1) ** len(blocks.grid)
        probes = max(probes, math.ceil(4 * blocks.width / samples))
        generator = torch.Generator().manual_seed(seed)
        order = torch.arange(probes) % len(images)
        pulls = torch.cat([function.pull(images[rows], generator) for rows in order.split(batch_size)])
        _check_information(function, prior, pulls, order, batch_size, generator)
        config = StationaryConfig(smoothing=smoothing, taper=0.0)
        normal = smoothed_covariance(pulls, blocks, config).to(torch.complex128)
        model = StationaryPreconditioner(normal, prior.in_blocks(blocks), blocks)
        return LinearModel(function, images, model, prior, pulls)

    def bound(self, sigma: float, *, probes: int = 32, batch_size: int = 4, seed: int = 1) -> LeakageBound:
        """Return the bounds at a noise level; empty ones at 0.

        For every symmetric ``G`` and ``A = E[J^T J] / sigma^2 + C^-1``, van Trees' ``tr A^-1 >= (tr G)^2 / tr(G A G)``.
        ``G`` is a sum of two posterior covariances, the model's and that of independent cosines, the weights chosen on
        the model's probes; ``tr(G J^T J G) = E ||G J^T u||^2`` is sampled with new probes ``u`` from the true
        Jacobians, and ``tr(G C^-1 G)`` with white images: a model that does not fit costs tightness, not validity. The
        ``seed`` of the new probes is another one than that of the model.
        """
        if not 0 <= sigma < math.inf:
            raise UsageError(f"sigma is {sigma}; it is a standard deviation, a number of at least 0")
        generator = torch.Generator().manual_seed(seed)
        order = torch.arange(max(probes, len(self.images))) % len(self.images)
        pulled = torch.cat([self.function.pull(self.images[rows], generator) for rows in order.split(batch_size)])
        trace = mean_interval(dots(pulled.double(), pulled.double()), order)
        if not math.isfinite(trace.value):
            raise UnconvError("the Jacobian holds NaN or infinite values; check the weights and the images")
        numbers = self.images[0].numel()
        if sigma == 0:
            return LeakageBound(0.0, trace, math.inf, 0.0, 0.0, 0.0, self.prior.variance, None, len(order))
        weight = _multiplicity(self.model.blocks)[..., None]
        gains = self.model.gains.double() / sigma**2
        # tr M = sum_k tr M_k, exact
        spectrum = self.model.factor.to(torch.complex128).abs().square().sum(-2) / (1 + gains)
        cosines = self.prior.posterior(self.pulls, sigma)
        totals = torch.stack([(weight * spectrum).sum(), cosines.diagonal(dim1=-2, dim2=-1).sum()])

        def filtered(v: Tensor) -> Tensor:
            by_cosines = self.prior.apply(cosines, v)
            return torch.stack([self.model.apply(v, sigma**2).to(by_cosines), by_cosines])

        white = torch.randn(PRIOR_PROBES, *self.images.shape[1:], generator=generator)
        seen = filtered(white)
        known = filtered(self.pulls).flatten(2)
        precise = torch.stack([self.prior.precision(part) for part in seen])
        # G = w_1 M + w_2 D with the largest (tr G)^2 / tr(G A G), as far as the model's probes tell
        form = torch.einsum("ind,jnd->ij", known, known) / (len(self.pulls) * sigma**2)
        form += torch.einsum("ind,jnd->ij", seen.flatten(2), precise.flatten(2)) / PRIOR_PROBES
        if not form.isfinite().all():
            raise UnconvError(f"sigma is {sigma} and J as small, which float32 cannot square; scale the features")
        mix = torch.linalg.lstsq(form, totals[:, None], driver="gelsd").solution[:, 0]
        total = (mix @ totals).item()
        seen, precise = (torch.tensordot(mix, part, 1) for part in (seen, precise))
        prior_part = mean_interval(dots(seen, precise), torch.arange(PRIOR_PROBES))
        new = torch.tensordot(mix, filtered(pulled.cpu()), 1)
        noise_part = mean_interval(dots(new, new), order)
        bayes, estimate = (
            # who answers with the mean image reaches the prior's variance, so more is the sampling alone
            min(total**2 / (prior + noise / sigma**2) / numbers, self.prior.variance)
            for prior, noise in ((prior_part.high, noise_part.high), (prior_part.value, noise_part.value))
        )
        nats = (weight * torch.log1p(gains)).sum().item() / 2
        dfil = trace.value / (numbers * sigma**2)
        unbiased = numbers * sigma**2 / trace.high if trace.high > 0 else math.inf
        bits = nats / math.log(2) / math.prod(self.images.shape[2:])
        return LeakageBound(sigma, trace, dfil, unbiased, bayes, estimate, self.prior.variance, bits, len(order))


def _check_information(
    function: PixelFunction,
    prior: ImagePrior,
    pulls: Tensor,
    order: Tensor,
    batch_size: int,
    generator: torch.Generator,
) -> None:
    """Refuse layers whose Jacobians, at the given images, do not account for how features change over the prior.

    For Gaussian images ``tr Cov f(x) <= E tr(J C J^T)`` (Chernoff 1981; Chen 1982); rounding, or activations so steep
    that no given image is on the slope, break it.
    """
    # E ||C^1/2 J^T u||^2 = E tr(J C J^T)
    explained = mean_interval(dots(pulls.double().cpu(), prior.apply(prior.covariance, pulls)), order)
    drawn = prior.sample(2 * PAIRS, generator).to(pulls)
    with torch.no_grad():
        one, other = (torch.cat([function(x) for x in part.split(batch_size)]) for part in drawn.chunk(2))
    difference = (one - other).double()
    changed = mean_interval(dots(difference, difference) / 2, torch.arange(PAIRS))
    if changed.low > MISSED * explained.high:
        raise UnconvError(
            f"the features of layer {function.function.layer!r} change more between images than their Jacobian "
            "accounts for, as behind rounding or very steep activations, so no bound is known"
        )


def _multiplicity(blocks: Blocks) -> Tensor:
    """Return how often each frequency of ``rfftn`` stands in the whole transform."""
    last = blocks.grid[-1]
    # all but the first stand for their conjugates too, and, where their number is even, all but the last
    twice = [0 < wave < last / 2 for wave in range(last // 2 + 1)]
    return (1.0 + torch.tensor(twice).double()).expand(*blocks.grid[:-1], -1)
