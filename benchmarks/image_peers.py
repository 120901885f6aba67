"""The image from pool(1) to equal error beside Adam and L-BFGS: ``python benchmarks/image_peers.py --images DIR``.

VGG-19 with ImageNet weights (``$UNCONV_DATA/vgg19-blocks1-3.safetensors``), 224x224, nothing known but the features,
ten images of a folder. Each side makes the fewest steps whose relative error is at most 0.15, image by image. Adam's
rate and the number of L-BFGS's pairs are the best on two other images of the folder; both start from the mean colour.
Ours is the linear decoder, and its refinement where that does not do. Fit and calibration, once per network, are left
out of one ratio and in the other, over all images. Writes ``image_peers.json`` beside this file.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unconv.evaluate.run_directory import environment
from unconv.inversion.calibration import calibrate
from unconv.inversion.frozen_network import LayerFunction
from unconv.inversion.gauss_newton import GaussNewtonConfig
from unconv.inversion.invert import invert_features
from unconv.inversion.linear import fit_linear_decoders
from unconv.inversion.reference_images import reference_images
from unconv.io import write_json
from unconv.linalg import relative_norm
from unconv.stationary import StationaryPreconditioner

sys.path.insert(0, str(Path(__file__).parents[1] / "experiments"))
from linear_inversion import DEPTHS, MEAN, SHAPE, STRIDES, network, test_images

LEVEL = 0.15  # relative error that both sides have to reach
MOST = 200  # steps
SHORT = 12  # passes that our refinement is calibrated for: the level is near
RATES = (0.03, 0.1, 0.3, 1.0)  # of Adam, in units of the contrast of images
PAIRS = (10, 30)  # that L-BFGS keeps
TUNING = 2  # images, behind those that are reported, that these are chosen on
LAYER = "pool1"

Reached = tuple[int, float]  # steps, and seconds that they took
Watch = Callable[[Tensor], None]  # is shown every estimate


class Enough(Exception):
    """Raised where the level is reached."""


def to_level(image: Tensor, solve: Callable[[Watch], object]) -> Reached:
    """Return steps and seconds until ``solve``, which shows every estimate, is near enough; ``MOST`` where it is not.

    Computing errors is not timed.
    """
    steps, checking, start = 0, 0.0, time.perf_counter()

    def watch(estimate: Tensor) -> None:
        nonlocal steps, checking
        now = time.perf_counter()
        steps += 1
        near = relative_norm(estimate - image, image).item() <= LEVEL
        checking += time.perf_counter() - now
        if near:
            raise Enough

    try:
        solve(watch)
        steps = MOST
    except Enough:
        pass
    return steps, time.perf_counter() - start - checking


def adam(function: LayerFunction, features: Tensor, rate: float, watch: Watch) -> None:
    """Run Adam on the relative squared misfit."""
    x = torch.zeros(1, *SHAPE).requires_grad_()
    optimizer = torch.optim.Adam([x], lr=rate)
    for _ in range(MOST):
        optimizer.zero_grad()
        ((function(x) - features).square().sum() / features.square().sum()).backward()
        optimizer.step()
        watch(x.detach())


def lbfgs(function: LayerFunction, features: Tensor, unit: float, pairs: int, watch: Watch) -> None:
    """Run L-BFGS with a strong Wolfe line search; a step is an evaluation."""
    # in units of the contrast and of a loss of the image's size, so that the first step has a sensible length
    z = torch.zeros(1, *SHAPE).requires_grad_()
    optimizer = torch.optim.LBFGS([z], max_iter=MOST, max_eval=MOST, history_size=pairs, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        watch(unit * z.detach())
        value = z.numel() * (function(unit * z) - features).square().sum() / features.square().sum()
        z.grad = torch.autograd.grad(value, z)[0].contiguous()  # L-BFGS views it as a vector
        return value.detach()

    optimizer.step(closure)  # pyright: ignore[reportArgumentType]


def main() -> None:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--count", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    chosen = parser.parse_args()
    net, images = network(), test_images(chosen.images, chosen.count + TUNING)
    tuning, images = images[chosen.count :], images[: chosen.count]
    # the block alone: nobody pays for what comes behind it
    block = net[: DEPTHS[LAYER]]
    function = LayerFunction(block, str(DEPTHS[LAYER] - 1), SHAPE)
    unit = tuning.std().item()
    start = time.perf_counter()
    references = reference_images(SHAPE, exclude=torch.cat([images, tuning])).images * 255 - MEAN
    decoder = fit_linear_decoders(lambda x: {LAYER: block(x)}, references.split(8), [LAYER])[LAYER]
    fit = time.perf_counter() - start
    setup, preconditioner, config = 0.0, None, GaussNewtonConfig()

    def ours(image: Tensor) -> Reached:
        nonlocal setup, preconditioner, config
        features = function(image)
        found = to_level(image, lambda watch: watch(decoder(features, SHAPE)))
        if found[0] < MOST:
            return 0, found[1]
        if preconditioner is None:
            begun, unseen = time.perf_counter(), decoder.unseen()
            assert unseen is not None
            examples, estimates, residuals = unseen
            preconditioner = StationaryPreconditioner.of(function, references, residuals, (STRIDES[LAYER],) * 2)
            config = calibrate(function, preconditioner, examples, estimates, most=SHORT).applied(config, "none")
            setup = time.perf_counter() - begun
        refine = partial(invert_features, function, features, passes=MOST, decoder=decoder)
        return to_level(image, lambda watch: refine(preconditioner=preconditioner, config=config, progress=watch))

    def tuned(name: str, solvers: dict[Any, Callable[[Tensor], Reached]]) -> Any:
        """Return the setting with the fewest seconds on the images that are not reported."""
        took = {setting: sum(solve(x[None])[1] for x in tuning) for setting, solve in solvers.items()}
        print(f"{name}: {', '.join(f'{setting}: {t / len(tuning):.1f} s' for setting, t in took.items())}", flush=True)
        return min(took, key=lambda setting: took[setting])

    def by_adam(rate: float) -> Callable[[Tensor], Reached]:
        return lambda x: to_level(x, partial(adam, function, function(x), rate * unit))

    def by_lbfgs(pairs: int) -> Callable[[Tensor], Reached]:
        return lambda x: to_level(x, partial(lbfgs, function, function(x), unit, pairs))

    rate = tuned("Adam", {rate: by_adam(rate) for rate in RATES})
    pairs = tuned("L-BFGS", {pairs: by_lbfgs(pairs) for pairs in PAIRS})
    solvers = {"ours": ours, "Adam": by_adam(rate), "L-BFGS": by_lbfgs(pairs)}
    rows: dict[str, list[Reached]] = {name: [] for name in solvers}
    for x in images:  # all sides in turn, so that a noisy machine meets them alike
        for name, solve in solvers.items():
            rows[name].append(solve(x[None]))
        print({name: found[-1] for name, found in rows.items()}, flush=True)
    totals = {name: sum(t for _, t in found) for name, found in rows.items()}
    best = min(totals["Adam"], totals["L-BFGS"])
    document = {
        "command": "python benchmarks/image_peers.py --images ilsvrc-val-227",
        "level": LEVEL,
        "count": len(images),
        "rate": rate,
        "pairs": pairs,
        "fit_seconds": fit,
        "preconditioner_seconds": setup,
        "images": {name: [{"steps": n, "seconds": t} for n, t in found] for name, found in rows.items()},
        "ratio_per_image": best / totals["ours"],
        "ratio_with_fit": best / (totals["ours"] + fit + setup),
        "environment": environment(),
    }
    print({name: document[name] for name in ("fit_seconds", "ratio_per_image", "ratio_with_fit")})
    write_json(chosen.out, document)


if __name__ == "__main__":
    main()
