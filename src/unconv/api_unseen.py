"""What a layer cannot see, and what no attacker can do, as functions of a model and images."""

from __future__ import annotations

import copy
import itertools
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Unpack

import torch
from torch import Tensor

from unconv.api_options import Model, ModelOptions, open_model
from unconv.errors import UnconvError, UsageError, check_whole
from unconv.evaluate.linear_fit import references_for
from unconv.evaluate.network import Images, Opened
from unconv.inversion.box import Box
from unconv.inversion.frozen_network import LayerFunction
from unconv.inversion.linear import fit_linear_decoders
from unconv.tracing import capture as capture_features
from unconv.unseen.attack import most_likely
from unconv.unseen.image_prior import ImagePrior
from unconv.unseen.leakage import (
    ASSUMPTIONS,
    BEATEN,
    EMPTY,
    QUANTISED,
    Leakage,
    LinearModel,
    beaten,
    quantisation_noise,
)
from unconv.unseen.metamers import Metamer, find_metamer
from unconv.unseen.pixels import PixelFunction
from unconv.unseen.uniqueness import Uniqueness, find_uniqueness

LIMIT = 8  # images, where no other number is given
BATCH = 4


def leakage(
    model: Model,
    layer: str,
    images: Images | None = None,
    *,
    sigma: float | None = None,
    relative_sigma: float | None = None,
    bits: int | None = None,
    passes: int = 40,
    probes: int = 32,
    reference_images: str | Path | None = None,
    **options: Unpack[ModelOptions],
) -> Leakage:
    """Bound the error of any attacker who sees a layer's noisy features, beside what our attack attains.

    The Fisher-information bound of unbiased attackers (dFIL: Maeng, Guo, Kariyappa and Suh, NeurIPS 2023) and the
    Bayesian one of all attackers (van Trees 1968; Gill and Levit 1995), with a Gaussian prior; the attack knows the
    same prior, and takes the most likely image.

    Args:
        model: As for ``unconv.invert``.
        layer: Any module that a gradient passes through, such as ``"layer1"``.
        images: As for ``unconv.invert``, all of one size; the first 8 where ``limit`` is not given.
        sigma: Standard deviation of white Gaussian noise on the features. One of these three:
        relative_sigma: The same in units of the features' root mean square over the images.
        bits: Quantise features evenly, between their least and largest value over the images, to so many bits.
        passes: Forward and backward passes of the attack per image; 0 for the linear attack alone.
        probes: Backward passes for each of the two estimates that the bounds are made of.
        reference_images: Folder of images like those under test, for the prior and the linear attack; synthetic ones
            and packaged photographs where ``None``.
        **options: As for ``unconv.invert``.

    Returns:
        Bounds and attained errors: mean squares per number of the image, pixels between 0 and 1.

    Raises:
        UsageError: If not exactly one of the three is given, or a value is out of range.
        UnconvError: If no gradient passes from the layer to the image, or features are not finite.
    """
    if sum(value is not None for value in (sigma, relative_sigma, bits)) != 1:
        raise UsageError("the noise is missing or given twice; give sigma=0.1, relative_sigma=0.1 or bits=8")
    check_whole(0, passes=passes)
    check_whole(2, probes=probes)
    for name, value in (("sigma", sigma), ("relative_sigma", relative_sigma)):
        if value is not None and not 0 <= value < math.inf:
            raise UsageError(f"{name} is {value}; it is a standard deviation, a number of at least 0")
    opened, x = open_images(model, layer, images, options)
    function = opened.network.function(layer, x.shape[1:])
    pixels = PixelFunction(function, opened.network.box)
    with torch.no_grad():
        features = torch.cat([function(part) for part in x.split(BATCH)])
    if not features.isfinite().all():
        raise UnconvError(f"the features of layer {layer!r} hold NaN or infinite values")
    size = features.double().square().mean().sqrt().item()
    seed = options.get("seed", 0)
    generator = torch.Generator().manual_seed(seed)
    if bits is not None:
        noise, noisy = quantisation_noise(features, bits)
    else:
        noise = sigma if sigma is not None else size * (relative_sigma or 0.0)
        noisy = features + noise * torch.randn(features.shape, generator=generator).to(features)
    references, notes = references_for(opened.network, opened.images, tuple(x.shape[1:]), reference_images, seed)
    references = references.to(x)
    begun = time.perf_counter()
    prior = ImagePrior.of(pixels.to_pixels(references))
    linear_model = LinearModel.of(pixels, pixels.to_pixels(x), prior, probes=probes, seed=seed)
    bound = linear_model.bound(noise, probes=probes, seed=seed + 1)
    bounded = time.perf_counter()

    def capture(batch: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            clean = function(batch)
        return {layer: clean + noise * torch.randn(clean.shape, generator=generator).to(clean)}

    decoder = fit_linear_decoders(capture, references.split(BATCH), [layer])[layer]
    start, true = pixels.to_pixels(decoder(noisy, x.shape[1:]).to(x)), pixels.to_pixels(x)
    estimates = {"linear": start if pixels.box is None else start.clamp(0, 1)}
    if noise > 0 and passes:
        estimates["most likely"] = most_likely(linear_model, noisy, estimates["linear"], noise, passes=passes)
    attained = {name: (found - true).flatten(1).double().square().mean(1) for name, found in estimates.items()}
    result = Leakage(
        layer=layer,
        sigma=noise,
        relative_sigma=noise / size if size > 0 else math.inf,
        bits=bits,
        bound=bound,
        attained=attained,
        in_pixels=pixels.box is not None,
        assumptions=ASSUMPTIONS + (() if bits is None else (QUANTISED,)),
        seconds=(bounded - begun, time.perf_counter() - bounded),
    )
    notes += [EMPTY] if noise == 0 else []
    notes += [BEATEN] if beaten(result) else []
    return replace(result, notes=tuple(notes))


def metamers(
    model: Model,
    layer: str,
    image: Images | None = None,
    *,
    psnr: float = 15.0,
    tolerance: float = 1e-3,
    passes: int = 1500,
    directions: int = 0,
    **options: Unpack[ModelOptions],
) -> Metamer:
    """Search for an image as different as wanted that a layer does not tell from a given one.

    Args:
        model: As for ``unconv.invert``.
        layer: Any module that a gradient passes through, such as ``"features.17"``.
        image: As the images of ``unconv.invert``; the first one counts.
        psnr: Between the two images, at most, in dB. Where none is found there, it is raised by 5 dB at a time.
        tolerance: Relative difference of features at which they count as equal, 1e-5 or more.
        passes: Forward and backward passes of the search.
        directions: How many directions with the smallest ``||J v|| / ||v||``: on images of at most 4096 numbers from
            the whole Jacobian, with its nullity, at a product per number; on larger ones by search (LOBPCG).
        **options: As for ``unconv.invert``.

    Returns:
        The two images and their relative difference, from plain forward passes; ``agrees`` says whether it is within
        the tolerance.

    Raises:
        UsageError: If a number is out of range.
        UnconvError: If no gradient passes from the layer to the image, or features are not finite.
    """
    check_whole(2, passes=passes)
    check_whole(0, directions=directions)
    for name, value, least in (("psnr", psnr, 5), ("tolerance", tolerance, 1e-5)):
        if not least <= value < math.inf:
            raise UsageError(f"{name} is {value}; it is a number of at least {least}")
    opened, x = open_images(model, layer, image, options | {"limit": 1})
    pixels = PixelFunction(opened.network.function(layer, x.shape[1:]), opened.network.box)

    def verify(shown: Tensor) -> Tensor:
        features = capture_features(opened.network.module, [layer], pixels.to_input(shown))[layer]
        if not features.isfinite().all():
            raise UnconvError(f"the features of layer {layer!r} hold NaN or infinite values")
        return features

    return find_metamer(
        pixels,
        pixels.to_pixels(x),
        verify,
        psnr=psnr,
        tolerance=tolerance,
        passes=passes,
        directions=directions,
        seed=options.get("seed", 0),
    )


def uniqueness(
    model: Model,
    layer: str,
    image: Images | None = None,
    *,
    probes: int = 64,
    whole: int = 3072,
    **options: Unpack[ModelOptions],
) -> Uniqueness:
    """Bound the ball around an image in which no gate and no switch changes, and how well the layer sees it there.

    In the ball the layer is one affine map; where its smallest singular value is above 0, no other image there has the
    same features. Computed in float64. ``unconv.certify.relu.relu_bracket`` reaches farther, for one ReLU layer.

    Args:
        model: As for ``unconv.invert``.
        layer: Any module that a gradient passes through, such as ``"features.2"``.
        image: As the images of ``unconv.invert``; the first one counts.
        probes: Random images that bound the gradients of gates, a forward pass each.
        whole: Images of at most so many numbers get all singular values, at three passes per number.
        **options: As for ``unconv.invert``.

    Returns:
        The radius and the smallest singular value, each from below and above.

    Raises:
        UsageError: If a number is out of range.
        UnconvError: If no gradient passes from the layer to the image, features are not finite, or values of the image
            choose the way through the network.
    """
    check_whole(16, probes=probes)
    check_whole(0, whole=whole)
    opened, x = open_images(model, layer, image, options | {"limit": 1})
    if branches := opened.network.layers(x).branches:
        raise UnconvError(f"values choose the way in {branches[0]}, so the layer is no piecewise affine map")
    network = copy.deepcopy(opened.network.module).double()
    exact = LayerFunction(network, layer, x.shape[1:])
    box = opened.network.box
    pixels = PixelFunction(exact, None if box is None else Box(box.low.double(), box.high.double()))
    image_pixels = pixels.to_pixels(x.double())
    return find_uniqueness(pixels, image_pixels, probes=probes, whole=whole, seed=options.get("seed", 0))


def open_images(model: Model, layer: str, images: Images | None, options: ModelOptions) -> tuple[Opened, Tensor]:
    """Open a model and images of one size; return them and the images as the network receives them."""
    limit = options.get("limit")
    opened, _ = open_model(model, images, options | {"limit": LIMIT if limit is None else limit})
    opened.network.layers(opened.example()).get(layer)
    opened.covered([layer], [layer])
    inputs = list(itertools.chain.from_iterable(batch.inputs for batch in opened.images))
    if len({x.shape for x in inputs}) > 1:
        raise UsageError("images differ in size after preprocessing; give size")
    return opened, torch.stack(inputs).to(opened.network.device)
