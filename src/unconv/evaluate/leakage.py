"""The leakage bracket of a run: what no attacker gets of noisy features, beside what the run's attackers got."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from unconv.errors import UnconvError
from unconv.evaluate.audit import ATTACKERS
from unconv.evaluate.network import Network
from unconv.evaluate.reconstruction import add_noise, noisy_name
from unconv.unseen.image_prior import ImagePrior
from unconv.unseen.leakage import LinearModel, decibels
from unconv.unseen.pixels import PixelFunction

IMAGES = 8  # at which the layer is linearised, and that the linear decoder is asked for
PROBES, BATCH = 16, 4
PASSES = 2 * PROBES + IMAGES  # of a layer and a level, roughly
SUPPOSED = 0.1  # level of noise where a run has none
ASSUMPTION = (
    "PSNR is here that of the squared error averaged over images: at most the average of PSNRs in the table of"
    " attackers, and a single image may come out above it. "
    "Assumed: white Gaussian noise on the features, of one level for all images, and images from a Gaussian prior with"
    " the reference images' covariance, over which the error is averaged; for photographs that is a model, no proof."
)
EASIER = (
    "where the gap is below 0 these images are easier than the prior's, over which the bound is an average; give"
    " reference_images of their kind"
)


def leakage_documents(
    network: Network, layer: str, levels: Sequence[float], images: Tensor, seed: int
) -> list[dict[str, Any]]:
    """Bound the error of any attacker, and measure that of the linear decoder, at levels of noise on the features.

    See ``unconv.leakage``. ``UnconvError`` if no gradient passes from the layer, or there are no reference images.
    """
    references, images = network.references, images[:IMAGES].to(network.device)
    if references is None:
        raise UnconvError("there are no reference images for a prior, since values choose the way through the network")
    references = references if isinstance(references, Tensor) else references()
    function = PixelFunction(network.function(layer, images.shape[1:]), network.box)
    with torch.no_grad():
        features = torch.cat([function.function(part) for part in images.split(BATCH)])
    if not features.isfinite().all():
        raise UnconvError("its features hold NaN or infinite values")
    # noise is relative to each image's own features: the least of them bounds all
    size = features.flatten(1).double().square().mean(1).sqrt().min().item()
    true = function.to_pixels(images)
    prior = ImagePrior.of(function.to_pixels(references.to(network.device)))
    model = LinearModel.of(function, true, prior, probes=PROBES, batch_size=BATCH, seed=seed)
    documents = []
    for level in levels:
        bound = model.bound(level * size, probes=PROBES, batch_size=BATCH, seed=seed + 1)
        attained = {"mean image": (true - prior.mean.to(true)).double().square().mean().item()}
        decoder = network.linear.get(noisy_name(layer, level), network.linear.get(layer))
        if decoder is not None:
            noisy = add_noise(features, level, torch.Generator().manual_seed(seed))
            found = function.to_pixels(decoder(noisy, images.shape[1:]).to(true))
            found = found if function.box is None else found.clamp(0, 1)
            error = (found - true).double().square().mean().item()
            attained |= {"linear decoder": error} if math.isfinite(error) else {}
        documents.append({
            "layer": layer,
            "noise": level,
            "bound": bound.bayes,
            "in_pixels": function.box is not None,
            "bits_per_pixel": bound.bits_per_pixel,
            "attained": attained,
            "images": len(images),
        })
    return documents


def leakage_table(documents: Iterable[Mapping[str, Any]], rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return documents with the best attacker of each, those of a run's rows included, and PSNR in dB."""
    errors: dict[tuple[str, float], dict[str, list[float]]] = {}
    for row in rows:
        attacker = ATTACKERS.get((row["method"], row["side_info"]))
        if attacker and row["side_info"] == "none" and row["psnr"] is not None:
            own = errors.setdefault((row["layer"], row["noise"]), {})
            own.setdefault(attacker, []).append(10 ** (-row["psnr"] / 10))
    table = []
    for document in documents:
        attained, pixels, bound = dict(document["attained"]), document["in_pixels"], document["bound"]
        for attacker, values in errors.get((document["layer"], document["noise"]), {}).items() if pixels else ():
            attained[attacker] = sum(values) / len(values)
        best = min(attained, key=lambda attacker: attained[attacker])
        gap = 10 * math.log10(attained[best] / bound) if attained[best] > 0 and bound > 0 else None
        psnr = {"bound": decibels(bound) if pixels else None, "best": decibels(attained[best]) if pixels else None}
        table.append({**document, "attained": attained, "best": best, "psnr": psnr, "gap_db": gap})
    return table


def sentences(table: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return, for the largest noise, what no attacker gets at each layer, where these images do not contradict it."""
    largest = max((entry["noise"] for entry in table), default=0.0)
    shown = [e for e in table if e["noise"] == largest and e["in_pixels"] and (e["gap_db"] or -1) >= 0]
    if not shown:
        return []
    each = "; ".join(
        f"{e['psnr']['bound']:.1f} dB at {e['layer']} ({e['best']}: {e['psnr']['best']:.1f} dB)" for e in shown
    )
    said = f"With noise of {largest:g} of the features' size no attacker gets more than {each}."
    return [f"{said} {ASSUMPTION}"]
