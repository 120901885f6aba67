"""The paper's theory on a network's conv blocks: sparsity, coherence, model-RIP, certificates. Cheap parts first."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Tensor

from unconv.certify.bracket import delta_bracket
from unconv.certify.lower_bound import lower_bound
from unconv.certify.stability import StabilityCertificate, certify, known_entries
from unconv.certify.supports import Region
from unconv.certify.upper_bound import layer_bounds
from unconv.conv_block import IMAGE, ConvBlock
from unconv.errors import UnconvError
from unconv.evaluate.block_reconstruction import coded_block, paper_k
from unconv.evaluate.budget import seconds_of_call
from unconv.evaluate.network import Captured, CapturedStream, Network, same_path
from unconv.images import SkippedImage, none_left
from unconv.inversion.jacobian import Jacobian
from unconv.io import finite
from unconv.linalg import norms, tiny
from unconv.measure.coherence import coherence
from unconv.measure.rip import Boundary, RatioSummary, named_before, sample_ratios
from unconv.measure.sparsity import SparsityStatistics
from unconv.measure.typical import typical_ratio
from unconv.operators import ConvOperator, LinearOperator
from unconv.sparsity import AveragePool, Code, Pooled, Window

IMPOSED = "imposed "
# how much work a certificate is
CERTIFIED = 3  # images whose codes are certified
STEPS = 120  # of Lanczos; half as many more of conjugate gradients, once per block, for a direction
SEARCH = 0.1  # effort of the search for a lower bound on delta_k
TOLERANCE = 0.05  # share of the smallest singular value that its residual has to fall below
Progress = Callable[[str, int], None]
SavePicture = Callable[[int, Tensor], str | None]


def count_nonzeros(
    stream: CapturedStream,
    names: Sequence[str],
    region: int | None = None,
    progress: Progress = lambda message, units: None,
) -> tuple[SparsityStatistics, list[SkippedImage]]:
    """Count the non-zeros of conv blocks over images; return the counts, and the images that were left out.

    With ``region``, blocks without pooling are also counted behind an imposed one, under ``IMPOSED`` and their name.
    """
    statistics, skipped = SparsityStatistics(), []
    for captured in stream:
        places, others = same_path(stream.network, captured)
        skipped += others
        count = partial(_count, captured, names, region)
        for some, counted, reason in stream.network.in_parts(places, count) if places else ():
            if counted is None:
                skipped.append(SkippedImage(captured.batch.names[some[0]], reason))
            else:
                statistics.merge(counted)
        for name in names:
            progress(f"counting {name}", len(captured.batch.names))
    if skipped and not len(statistics):
        raise UnconvError(none_left(len(stream.images), [*stream.skipped, *skipped]))
    return statistics, [*stream.skipped, *skipped]


def _count(captured: Captured, names: Sequence[str], region: int | None, places: Sequence[int]) -> SparsityStatistics:
    captured, statistics = captured.select(places), SparsityStatistics()
    for name in names:
        block = captured.blocks.get(name)
        activated = block.activate(block.preactivation(captured.inputs[block.name]))
        statistics.update(name, activated, None if block.pooling is None else block.pool(activated).values)
        imposed = coded_block(block, "network", region)
        if imposed is not block:
            statistics.update(IMPOSED + name, activated, imposed.pool(activated).values)
    return statistics


def pooled_fraction(statistics: SparsityStatistics, name: str) -> float:
    """Return the share of regions of a block in use, imposed ones where it has none."""
    imposed = IMPOSED + name
    return statistics[imposed if imposed in statistics.blocks else name].pooled.fraction


def sparsity_document(statistics: SparsityStatistics, name: str) -> dict[str, float]:
    """Return the share of non-zeros of a block after activation and after pooling, in percent."""
    counted = statistics[name]
    return {"activation": counted.activation.percent, "pooled": counted.pooled.percent}


def coherence_document(block: ConvBlock, seed: int) -> dict[str, dict[str, float | None]]:
    """Return the coherence of a block's filters, learned and Gaussian; ``None`` where no pair has a cosine."""
    op = block.operator

    def values(bank: ConvOperator) -> dict[str, float | None]:
        found = coherence(bank)
        left = len(op.weight) - found.zero_filters
        numbers = {"signed": found.signed, "absolute": found.absolute, "shifted": found.shifted}
        if found.zero_filters and left < 2:
            numbers |= dict.fromkeys(("signed", "absolute"), math.nan) | ({} if left else {"shifted": math.nan})
        return {name: finite(value) for name, value in numbers.items()}

    return {"learned": values(op), "random": values(op.gaussian(seed))}


def regions_and_k(block: ConvBlock, fraction: float, region: int) -> tuple[Window | int, int]:
    """Return the regions of a block's sparsity model, and how many of them are in use."""
    coded = coded_block(block, "network", region)
    return (coded.pooling if isinstance(coded.pooling, Window) else 1), paper_k(coded, fraction)


def ratios_document(block: ConvBlock, region: Window | int, k: int, samples: int, seed: int) -> list[dict[str, Any]]:
    """Return quantiles of ``||W^T z|| / ||z||`` over random codes, for three filter banks and both boundaries."""
    op, documents = block.operator, []
    boundaries: tuple[Boundary, ...] = ("full", "cropped") if any(op.padding) else ("full",)
    for boundary in boundaries:
        for filters in ("learned", "normalised", "gaussian"):
            bank = filter_bank(op, filters, seed)
            _, quantiles, typical = _sampled(bank, region, k, samples, boundary, seed)
            documents.append({"filters": filters, "boundary": boundary, "k": k} | quantiles | {"typical": typical})
    return documents


def _sampled(
    operator: ConvOperator, region: Window | int, k: int, samples: int, boundary: Boundary, seed: int
) -> tuple[RatioSummary, dict[str, float], dict[str, Any] | None]:
    """Return ratios over random codes, their quantiles, and what is typical of them."""
    ratios = sample_ratios(operator, Pooled(region), k, samples, seed=seed, boundary=boundary)
    found = RatioSummary.of(ratios)
    quantiles = {"p01": found.p01, "p50": found.p50, "p99": found.p99}
    return found, quantiles, typical_document(ratios, f"random codes with k = {k}")


def typical_document(ratios: Tensor, codes: str) -> dict[str, Any] | None:
    """Return between which ratios most codes of a kind lie, and the same in words; ``None`` for fewer than two."""
    if len(ratios) < 2:
        return None
    found = typical_ratio(ratios)
    return {"codes": codes} | asdict(found) | {"text": found.sentence(codes)}


def code_ratios(
    stream: CapturedStream, names: Sequence[str], *, region: int, boundary: Boundary, filters: str, seed: int
) -> dict[str, Tensor]:
    """Return ``||W^T z|| / ||z||`` of the codes ``z`` that conv blocks make of images; codes of zeros have none."""
    found: dict[str, list[Tensor]] = {name: [] for name in names}
    for captured in stream:
        places, _ = same_path(stream.network, captured)
        captured = captured.select(places)
        for name in names if places else ():
            block = coded_block(captured.blocks.get(name), "network", region)
            operator = filter_bank(block.operator, filters, seed)
            operator = operator.full() if boundary == "full" else operator
            z = block.encode(captured.inputs[name]).dense()
            ratios = norms(operator.adjoint(z)) / norms(z)
            found[name].append(ratios[ratios.isfinite()].double().cpu())
    return {name: torch.cat([torch.zeros(0, dtype=torch.float64), *parts]) for name, parts in found.items()}


def filter_bank(operator: ConvOperator, filters: str, seed: int) -> ConvOperator:
    """Return the operator with its filters as they are (``"learned"``), ``"normalised"``, or ``"gaussian"``."""
    if filters == "learned":
        return operator
    return operator.normalised() if filters == "normalised" else operator.gaussian(seed)


def rip_document(
    block: ConvBlock,
    k: int | None,
    fraction: float,
    *,
    of_images: Tensor,
    region: int,
    samples: int,
    boundary: Boundary,
    filters: str,
    effort: float,
    seed: int,
) -> dict[str, Any]:
    """Return sampled ratios of one filter bank, and bounds on its ``delta_k``; ``of_images``: see ``code_ratios``."""
    regions, measured = regions_and_k(block, fraction, region)
    k = k or measured
    op = filter_bank(block.operator, filters, seed)
    ratios, quantiles, typical = _sampled(op, regions, k, samples, boundary, seed)
    lower, upper, how = ratios.delta, None, "sampled"
    if effort > 0:
        try:
            found = delta_bracket(op.to("cpu"), regions, k, boundary=boundary, effort=effort, seed=seed)
        except UnconvError as error:
            raise UnconvError(f"conv block {block.name!r}: {error}; or give effort=0, which only samples") from None
        lower, upper, how = min(max(lower, found.lower), found.upper), found.upper, found.how
    of_codes = typical_document(of_images, f"codes of images like these {len(of_images)}")
    return {
        "layer": block.name,
        "k": k,
        "ratio": quantiles,
        "delta": {"lower": lower, "upper": upper},
        "delta_how": how,
        "typical": [one for one in (typical, of_codes) if one],
    }


def certificate_seconds(block: ConvBlock, per_pass: float) -> float:
    """Return roughly how long a certificate takes, by a product of the block and the seconds of a pass up to it."""
    operator = block.operator.to(torch.float64)
    x = torch.ones(1, *operator.input_shape, dtype=torch.float64, device=operator.device)
    product = seconds_of_call(lambda: operator.adjoint(operator.forward(x)).sum().item(), 0.0)  # waits for a GPU
    # Lanczos for the block's input and for the image, and conjugate gradients for one direction
    return CERTIFIED * STEPS * (product + per_pass) + 1.5 * STEPS * per_pass


def certificate_document(
    network: Network,
    block: ConvBlock,
    region: Region,
    k: int,
    examples: Sequence[Captured],
    save: SavePicture = lambda image, pixels: None,
    seed: int = 0,
) -> dict[str, Any]:
    """Return what is proven of one conv block; what cannot be said is ``None``, with the reason among the notes.

    ``delta_k`` and ``delta_2k`` of the filters at unit norm; what the code fixes of the block's own ``input`` and of
    the ``image``, the worst over ``examples`` of one image each; ``direction``: a change that the code shows least.
    """
    notes: list[str] = []
    document: dict[str, Any] = dict.fromkeys(("delta_k", "delta_2k", "direction"))
    try:
        document |= _deltas(block.operator.to("cpu").normalised(), region, k, seed)
    except UnconvError as error:
        notes.append(f"no bounds on delta: {error}")
    entries: list[dict[str, Any]] = []
    for example in examples:
        about = {"image": example.batch.indices[0], "file": example.batch.names[0]}
        try:
            first = document["direction"] is None
            own = example.blocks.get(block.name)
            for of, known, found in _certified(network, own, example, notes, seed, picture=first):
                entries.append(about | _entry(of, known, found))
                if first and of == "image":
                    document["direction"] = _direction(found, about, example.batch.inputs[0], save)
        except UnconvError as error:
            notes.append(f"{about['file']}: {error}")
    for of in ("input", "image"):
        document[of] = _worst([entry for entry in entries if entry["of"] == of])
    return document | {"images": entries, "notes": list(dict.fromkeys(notes))}


def _deltas(operator: ConvOperator, region: Region, k: int, seed: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, upper in zip(("delta_k", "delta_2k"), layer_bounds(operator, region, k), strict=True):
        search = lower_bound(operator, region, k, twice=name == "delta_2k", effort=SEARCH, seed=seed)
        lower = min(search.delta, upper.value)
        ratio = upper.value / lower if lower > 0 else None
        found[name] = {"k": k, "lower": lower, "upper": upper.value, "ratio": ratio, "how": upper.how}
    return found


def _certified(
    network: Network, block: ConvBlock, example: Captured, notes: list[str], seed: int, *, picture: bool
) -> list[tuple[str, str, StabilityCertificate]]:
    """Return what one code fixes of the block's input and of the image; ``picture``: the image's direction too."""
    x = example.inputs[block.name]
    code = block.encode(x)

    def certified(operator: LinearOperator, mask: Tensor, start: Tensor | None = None) -> StabilityCertificate:
        seek = math.ceil(1.5 * STEPS) if start is not None and picture else 0
        options: dict[str, Any] = {"steps": STEPS, "tolerance": TOLERANCE, "whole": 4 * STEPS, "seed": seed}
        return certify(operator, mask, start=start, seek=seek, **options)

    known, operator, mask = _own_map(block, x, code)
    if block.source == IMAGE and block.input_shape == tuple(example.batch.inputs.shape[1:]):
        found = certified(operator, mask, x[0])
        return [("input", known, found), ("image", known, found)]
    own = "input", known, certified(operator, mask)
    if block.output is None:
        notes.append("the block ends in a function, not a module, so its code is not traced back to the image")
        return [own]
    images = example.batch.inputs.to(x)
    function = network.function(block.output, images.shape[1:])
    if not function.differentiable:
        notes.append("no gradient passes from the block to the image, so its code is not traced back to the image")
        return [own]
    gates = function.record(images, "gates" if "gates" in function.side_info_kinds else "none")
    through = Jacobian(lambda v: function(v, gates), images)
    return [own, ("image", "switches and gates", certified(through, _equations(block, code), images[0]))]


def _own_map(block: ConvBlock, x: Tensor, code: Code) -> tuple[str, LinearOperator, Tensor]:
    """Return what a code says of the block's input: rows of W where switches name places, else the derivative."""
    if block.activation.name in {"relu", "none"} and not isinstance(block.pooling, AveragePool):
        return "switches", block.operator, known_entries(code, rectified=block.activation.name == "relu")[0]
    return "switches and gates", Jacobian(lambda v: block.encode(v).values, x), _equations(block, code)


def _equations(block: ConvBlock, code: Code) -> Tensor:
    """Return which values are equations: those of rectified units that were on, of shared places only the first."""
    equations = code.values[0] > 0 if block.activation.name == "relu" else torch.ones_like(code.values[0]).bool()
    if code.switches is None or not isinstance(code.pooling, Window) or not code.pooling.overlapping:
        return equations
    return equations & ~named_before(code.switches[0].flatten(1)).reshape(equations.shape)


def _entry(of: str, known: str, found: StabilityCertificate) -> dict[str, Any]:
    low = found.probabilistic_lower_bound
    return {
        "of": of,
        "known": known,
        "equations": found.equations,
        "unknowns": found.unknowns,
        "undetermined": found.undetermined,
        "exact": found.exact,
        "proven": found.proven,
        "sigma": {"lower": low, "upper": found.sigma},
        "largest": found.largest,
        "moves": {"lower": 1 / found.sigma if found.resolved else None, "upper": 1 / low if low > 0 else None},
        "steps": found.steps,
    }


def _worst(entries: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the weakest promise over the images."""
    if not entries:
        return None
    weakest = {"equations": min, "unknowns": max, "undetermined": max, "exact": all, "proven": all}
    moves = {end: [entry["moves"][end] for entry in entries] for end in ("lower", "upper")}
    return {
        "known": entries[0]["known"],
        "images": len(entries),
        **{name: of_all(entry[name] for entry in entries) for name, of_all in weakest.items()},
        "sigma": {end: min(entry["sigma"][end] for entry in entries) for end in ("lower", "upper")},
        "moves": {end: None if None in found else max(found) for end, found in moves.items()},
    }


def _direction(
    found: StabilityCertificate, about: dict[str, Any], image: Tensor, save: SavePicture
) -> dict[str, Any] | None:
    """Return the direction that a code shows least, as a picture, and how far it moves the code."""
    if found.direction is None or image.ndim != 3 or image.shape[0] not in {1, 3}:
        return None
    pattern = found.direction.detach().cpu()
    # the middle grey is no change; a few extreme entries may saturate so that the others are seen
    entries = pattern.abs().flatten()
    scale = entries.kthvalue(math.ceil(0.995 * len(entries))).values.clamp_min(tiny(pattern))
    return {
        "picture": save(about["image"], (0.5 + pattern / (2 * scale)).clamp(0, 1)),
        "file": about["file"],
        "undetermined": found.undetermined > 0,
        "gain": found.gain,
        "largest": found.largest,
    }
