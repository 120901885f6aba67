"""One way of inverting one stage for a batch: what came out, image by image, whatever goes wrong with one of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from unconv.errors import UnconvError
from unconv.evaluate.aggregate import mean
from unconv.evaluate.batch_size import TOO_LARGE, is_out_of_memory
from unconv.evaluate.network import Captured, Network
from unconv.evaluate.sparsity_stats import IMPOSED, paper_k
from unconv.images import quality
from unconv.inversion.methods import Inversion, InversionMethod, SolverOptions, coded_stage, invert_batch
from unconv.linalg import relative_norm

EMPTY = dict.fromkeys(("relative_error", "psnr", "ssim", "seconds", "picture"))


class Reconstruction(NamedTuple):
    """What one way gave for one image.

    Attributes:
        numbers: ``{"relative_error", "psnr", "ssim", "seconds", "status", "picture"}``.
        picture: The reconstruction in pixels, shape ``(C, H, W)``, where it is an image.
        estimate: What was recovered; ``None`` where the way is not open to the stage.
        reference: What it should be, the same shape.
    """

    numbers: dict[str, Any]
    picture: Tensor | None
    estimate: Tensor | None
    reference: Tensor


def invert_images(
    network: Network,
    captured: Captured,
    name: str,
    way: InversionMethod,
    region: int | None,
    fractions: Mapping[str, float],
    tuning: SolverOptions,
) -> list[Reconstruction]:
    """Invert one stage for a batch, one way, and compare with the truth.

    Args:
        network: The network.
        captured: The images with the inputs of the stages that ``stages_needed`` names.
        name: The stage.
        way: How.
        region: Side of the regions imposed on a stage without pooling.
        fractions: Shares of non-zero regions by name, 0 to 1, under ``IMPOSED`` and the name behind imposed regions;
            read for the paper's code alone.
        tuning: What the solvers are told besides.

    Returns:
        Per image, what came out. A way that is not open to the stage has no error, and says why in its status.
    """
    stage, most, count = captured.stages.get(name), network.room.most, len(captured.batch.names)

    def apart(pieces: Iterable[Captured]) -> list[Reconstruction]:
        return [
            outcome
            for piece in pieces
            for outcome in invert_images(network, piece, name, way, region, fractions, tuning)
        ]

    if most is not None and most < count:
        return apart(captured.pieces(most))
    k = None
    if way.code == "paper":
        k = paper_k(coded_stage(stage, "network", region), fractions.get(IMPOSED + name, fractions[name]))
    truth = captured.inputs[name] if way.recovered == "layer" else captured.batch.inputs
    try:
        found = invert_batch(
            network.module,
            captured.stages,
            name,
            captured.batch.inputs.to(network.device),
            captured.inputs,
            way,
            k=k,
            region=region,
            box=network.box,
            tuning=tuning,
            decoder=network.decoders.get(name),
        )
        return _outcomes(network, found, is_image=way.recovered == "image" or stage.source == "image")
    except UnconvError as error:
        if count > 1:  # one image may have spoilt it for the others
            return apart(captured.singly())
        return [Reconstruction(EMPTY | {"status": str(error)}, None, None, truth[0])]
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    # here the error, which holds what was in memory, is gone
    if count == 1:
        return [Reconstruction(EMPTY | {"status": TOO_LARGE}, None, None, truth[0])]
    network.room.shrink(count // 2)
    return apart(captured.pieces(count // 2))


def _outcomes(network: Network, found: Inversion, *, is_image: bool) -> list[Reconstruction]:
    errors = relative_norm(found.estimate - found.reference, found.reference).tolist()
    results: list[Reconstruction] = []
    pixels = _pixels(network, found.estimate, found.reference) if is_image else None
    for i, error in enumerate(errors):
        if not math.isfinite(error):
            status = "what is to be recovered is zero, so there is no relative error"
            results.append(Reconstruction(EMPTY | {"status": status}, None, found.estimate[i], found.reference[i]))
            continue
        numbers = EMPTY | {"relative_error": error, "seconds": found.seconds, "status": found.status[i]}
        if pixels is not None:
            quality_of = {"psnr": pixels[1][i], "ssim": pixels[2][i]}
            numbers |= {name: value if math.isfinite(value) else None for name, value in quality_of.items()}
        picture = None if pixels is None else pixels[0][i]
        results.append(Reconstruction(numbers, picture, found.estimate[i], found.reference[i]))
    return results


def inverting(name: str, way: InversionMethod, outcomes: Sequence[Reconstruction]) -> str:
    """What to say when a batch has been inverted.

    Args:
        name: The stage.
        way: How.
        outcomes: What came out.

    Returns:
        ConvBlock, method and mean relative error.
    """
    error = mean(outcome.numbers["relative_error"] for outcome in outcomes)
    return f"inverting {name} by {way.method}" + ("" if error is None else f", error {error:.3f}")


def _pixels(network: Network, estimate: Tensor, reference: Tensor) -> tuple[Tensor, list[float], list[float]]:
    true = network.preprocess.to_pixels(reference, reference).cpu()
    shown = network.preprocess.to_pixels(estimate, reference).cpu().clamp(0, 1)
    psnr, ssim = quality(true, shown)
    return shown, psnr.tolist(), ssim.tolist()
