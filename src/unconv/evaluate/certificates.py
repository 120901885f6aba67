"""What a survey proves of a stage: a bracket of its model-RIP constants, and what its code fixes of some images."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from unconv.certify.lower_bound import lower_bound
from unconv.certify.stability import StabilityCertificate, certify, known_entries
from unconv.certify.supports import Region
from unconv.certify.upper_bound import layer_bounds
from unconv.conv_block import IMAGE, ConvBlock
from unconv.errors import UnconvError
from unconv.evaluate.network import Captured, CapturedStream, Network
from unconv.evaluate.run_directory import RunDirectory
from unconv.images import ImageStream, save_image
from unconv.inversion.frozen_network import LayerFunction
from unconv.inversion.gauss_newton import Jacobian
from unconv.operators import ConvOperator, LinearOperator
from unconv.sparsity import AveragePool, Code, Window

CERTIFIED = 3  # images
STEPS = 120  # of Lanczos' iteration; half as many more of conjugate gradients, once per stage, for a direction
SEARCH = 0.1  # of the attack's unit of effort
TOLERANCE = 0.05  # of sigma: closer than that, no promise changes by more


def first_images(network: Network, images: ImageStream, names: Sequence[str], effort: float) -> list[Captured]:
    """The images whose codes are certified, each by itself, with the inputs of the stages.

    Args:
        network: The network.
        images: The images.
        names: The stages.
        effort: Share of the usual number of images; one at least.

    Returns:
        The first images that the network can take.
    """
    wanted = max(1, round(CERTIFIED * effort))
    found: list[Captured] = []
    for captured in CapturedStream(network, images, lambda _: names):
        found += list(captured.singly())[: wanted - len(found)]
        if len(found) == wanted:
            break
    return found


def certificate_document(
    network: Network,
    stage: ConvBlock,
    region: Region,
    k: int,
    examples: Sequence[Captured],
    save: Callable[[int, Tensor], str | None],
    *,
    effort: float = 1.0,
    seed: int = 0,
) -> dict[str, Any]:
    """What is proven of one stage. What cannot be said is ``None``, with the reason among the notes.

    Args:
        network: The network.
        stage: One of its stages.
        region: Its pooling regions, or those imposed on it.
        k: Number of regions in use.
        examples: Images, each by itself, with the stage's input.
        save: Keeps a pattern (pixels in ``[0, 1]``, shape ``(C, H, W)``) of an image and gives its path, or ``None``.
        effort: Factor of all numbers of steps; below 1 the upper bounds leave out their slowest argument.
        seed: Seed of searches and starts.

    Returns:
        ``delta_k`` and ``delta_2k`` of the filters at unit norm (``{"k", "lower", "upper", "ratio", "how"}``) and
        ``proven_k``, the largest ``k`` for which ``delta_k < 1`` is proven; ``layer`` and ``image``, what the code
        fixes of the stage's own input and of the image, the worst over the images (``images``); ``direction``, a
        change of the first image that the code shows least (with ``gain``, how far a unit of it moves the code, and
        how much of the image and of its code lies along it); ``words``; ``notes``.
    """
    notes: list[str] = []
    document: dict[str, Any] = dict.fromkeys(("delta_k", "delta_2k", "proven_k", "layer", "image", "direction"))
    try:
        document |= _deltas(stage.operator.to("cpu").normalised(), region, k, effort, seed)
    except UnconvError as error:
        notes.append(f"no bracket of delta: {error}")
    entries: list[dict[str, Any]] = []
    features = (
        LayerFunction(network.module, stage.output or stage.name, examples[0].batch.inputs.shape[1:])
        if examples
        else None
    )
    for example in examples:
        about = {"image": example.batch.indices[0], "file": example.batch.names[0]}
        try:
            here = example.stages.get(stage.name)
            if features is None or features.input_shape != tuple(example.batch.inputs.shape[1:]):
                features = LayerFunction(network.module, here.output or here.name, example.batch.inputs.shape[1:])
            found = _codes(features, here, example, effort, seed, picture=document["direction"] is None)
        except UnconvError as error:
            notes.append(f"{about['file']}: {error}")
            continue
        entries += [about | entry for entry, *_ in found.values()]
        if document["direction"] is None and "image" in found:
            document["direction"] = _direction(*found["image"][1:], example.batch.inputs[0], about, save)
    for of in ("layer", "image"):
        document[of] = _worst([entry for entry in entries if entry["of"] == of])
    document |= {"images": entries, "notes": list(dict.fromkeys(notes))}
    return document | {"words": in_words(document)}


def keep_patterns(run: RunDirectory, number: int, pictures: int) -> Callable[[int, Tensor], str | None]:
    """A way of keeping patterns among a run's pictures.

    Args:
        run: The run.
        number: Number of the stage.
        pictures: Number of images of which pictures are kept.

    Returns:
        For ``certificate_document``.
    """

    def save(image: int, pixels: Tensor) -> str | None:
        if image >= pictures:
            return None
        path = f"images/{image:04d}-{number:02d}-unseen.png"
        save_image(pixels, run.path / path)
        return path

    return save


def in_words(document: dict[str, Any]) -> str:
    """What a certificate means for its stage.

    Args:
        document: From ``certificate_document``; its words are not read.

    Returns:
        A few sentences; empty where nothing could be said.
    """
    said = []
    if document["delta_k"] is not None:
        said.append(_delta_words(document["delta_k"], document["proven_k"]))
    layer, image = document["layer"], document["image"]
    parts = []
    # a stage that reads the image has one map, given twice
    if layer is not None and layer != image:
        parts.append(f"with {layer['known']} known, the code {_code_words(layer, 'the stage’s own input')}")
    if image is not None:
        it = "it" if parts else "the code"
        parts.append(f"with {image['known']} known, {it} {_code_words(image, 'the image')}")
    if parts:
        text = "; traced back to the image, ".join(parts)
        said.append(f"{text[0].upper()}{text[1:]}.")
    return " ".join(said)


class _Linear:
    """A derivative at one image as a linear operator without its batch axis."""

    def __init__(self, function: Callable[[Tensor], Tensor], x: Tensor) -> None:
        self._jacobian = Jacobian(function, x)
        self.input_shape = tuple(x.shape[1:])
        self.output_shape = tuple(self._jacobian.value.shape[1:])
        self.dtype, self.device = x.dtype, x.device

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self._jacobian.forward(one) for one in x.split(1)])

    def adjoint(self, z: Tensor) -> Tensor:
        return torch.cat([self._jacobian.adjoint(one) for one in z.split(1)])


def _deltas(operator: ConvOperator, region: Region, k: int, effort: float, seed: int) -> dict[str, Any]:
    bounds = layer_bounds(operator, region, k, refine=effort >= 1)
    found: dict[str, Any] = {"proven_k": bounds.largest_k}
    for name, upper, twice in (("delta_k", bounds.single, False), ("delta_2k", bounds.double, True)):
        lower = min(lower_bound(operator, region, k, twice=twice, effort=SEARCH * effort, seed=seed).delta, upper.value)
        ratio = upper.value / lower if lower > 0 else None
        found[name] = {"k": k, "lower": lower, "upper": upper.value, "ratio": ratio, "how": upper.how}
    return found


def _codes(
    features: LayerFunction, stage: ConvBlock, example: Captured, effort: float, seed: int, *, picture: bool
) -> dict[str, tuple[dict[str, Any], StabilityCertificate, float]]:
    # the certificates of one code, of the stage's own input and of the image, with the norm of the linear part
    x = example.inputs[stage.name]
    code = stage.encode(x)
    steps = math.ceil(STEPS * effort)

    def certified(operator: LinearOperator, mask: Tensor, start: Tensor | None) -> StabilityCertificate:
        return certify(
            operator,
            mask,
            steps=steps,
            tolerance=TOLERANCE,
            start=start,
            seek=math.ceil(1.5 * steps) if start is not None and picture else 0,
            whole=4 * steps,
            seed=seed,
        )

    operator, mask, known = _own_map(stage, x, code)
    first = stage.source == IMAGE and stage.input_shape == tuple(example.batch.inputs.shape[1:])
    own = certified(operator, mask, x[0] if first else None)
    result = {"layer": (_entry("layer", known, own), own, _norm(operator, mask, x))}
    if first:
        return result | {"image": (_entry("image", known, own), own, _norm(operator, mask, x))}
    images = example.batch.inputs.to(x)
    gates = features.record(images, "gates")
    through = _Linear(lambda v: features(v, gates), images)
    told = _told(stage, code)
    whole = certified(through, told, images[0])
    return result | {"image": (_entry("image", "switches and gates", whole), whole, _norm(through, told, images))}


def _norm(operator: LinearOperator, mask: Tensor, x: Tensor) -> float:
    return operator.forward(x)[0][mask].norm().item()


def _own_map(stage: ConvBlock, x: Tensor, code: Code) -> tuple[LinearOperator, Tensor, str]:
    # what a code says of the stage's own input: rows of W where switches name places, else the derivative there
    if stage.activation.name in {"relu", "none"} and not isinstance(stage.pooling, AveragePool):
        return stage.operator, known_entries(code, rectified=stage.activation.name == "relu")[0], "switches"
    return _Linear(lambda v: stage.encode(v).values, x), _told(stage, code), "switches and gates"


def _told(stage: ConvBlock, code: Code) -> Tensor:
    # the values that are equations: those of rectified units that were on, and of shared places only the first
    told = code.values[0] > 0 if stage.activation.name == "relu" else torch.ones_like(code.values[0]).bool()
    if code.switches is None or not isinstance(code.pooling, Window) or not code.pooling.overlapping:
        return told
    places, order = code.switches[0].flatten(1).sort(dim=1, stable=True)
    again = torch.zeros_like(places, dtype=torch.bool)
    again[:, 1:] = places[:, 1:] == places[:, :-1]
    return told & ~torch.zeros_like(again).scatter(1, order, again).reshape(told.shape)


def _entry(of: str, known: str, found: StabilityCertificate) -> dict[str, Any]:
    low = found.interval[0]
    return {
        "of": of,
        "known": known,
        "equations": found.equations,
        "unknowns": found.unknowns,
        "undetermined": found.undetermined,
        "exact": found.exact,
        "sigma": {"lower": low, "upper": found.sigma},
        "largest": found.largest,
        "moves": {"lower": 1 / found.sigma if found.sigma > 0 else None, "upper": 1 / low if low > 0 else None},
        "steps": found.steps,
    }


def _worst(entries: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    # the weakest promise over the images
    if not entries:
        return None
    lowers = [entry["moves"]["lower"] for entry in entries]
    uppers = [entry["moves"]["upper"] for entry in entries]
    return {
        "known": entries[0]["known"],
        "images": len(entries),
        "equations": min(entry["equations"] for entry in entries),
        "unknowns": max(entry["unknowns"] for entry in entries),
        "undetermined": max(entry["undetermined"] for entry in entries),
        "exact": all(entry["exact"] for entry in entries),
        "sigma": {end: min(entry["sigma"][end] for entry in entries) for end in ("lower", "upper")},
        "moves": {
            "lower": None if None in lowers else max(lowers),
            "upper": None if None in uppers else max(uppers),
        },
    }


def _direction(
    found: StabilityCertificate,
    size: float,
    image: Tensor,
    about: dict[str, Any],
    save: Callable[[int, Tensor], str | None],
) -> dict[str, Any] | None:
    # ``size``: norm of what the linear map makes of the image
    if found.direction is None or found.gain is None or image.ndim != 3 or image.shape[0] not in {1, 3}:
        return None
    pattern = found.direction.detach().cpu()
    # the middle grey is no change; a few extreme entries may saturate so that the others are seen
    entries = pattern.abs().flatten()
    scale = entries.kthvalue(math.ceil(0.995 * len(entries))).values.clamp_min(torch.finfo(pattern.dtype).tiny)
    along = (pattern * image).sum().abs().item()
    length = image.norm().item()
    return {
        "picture": save(about["image"], (0.5 + pattern / (2 * scale)).clamp(0, 1)),
        "file": about["file"],
        "undetermined": found.undetermined > 0,
        "gain": found.gain,
        "largest": found.largest,
        "share_of_image": along / length if length > 0 else None,
        "share_of_code": along * found.gain / size if size > 0 else None,
    }


def _delta_words(delta: dict[str, Any], proven: int) -> str:
    k, lower, upper = _count(delta["k"]), delta["lower"], delta["upper"]
    if upper < 1:
        return (
            f"Proven: with {k} regions in use Wᵀ changes the squared length of no code by more than "
            f"{100 * upper:.0f} %, so it sends none of them to zero."
        )
    reach = f"δ < 1 is proven up to k = {_count(proven)} only" if proven else "δ < 1 is proven for no k"
    if lower >= 1:
        return f"Vacuous: with the {k} regions in use some code attains δ = {lower:.3g}; {reach}."
    return (
        f"Vacuous: with the {k} regions in use δ is proven to be at most {upper:.3g}, which does not exclude that Wᵀ "
        f"sends a code to zero; {reach}."
    )


def _code_words(code: dict[str, Any], what: str) -> str:
    unknowns, left, moves = code["unknowns"], code["undetermined"], code["moves"]
    rest = "the rest" if left else "it"
    if left:
        known = "" if code["exact"] else "at least "
        share = f"leaves {known}{_count(left)} of {_count(unknowns)} dimensions of {what} undetermined"
    else:
        share = f"has {_count(code['equations'])} equations for the {_count(unknowns)} dimensions of {what}"
    if moves["upper"] is not None:
        return f"{share}, and an error of 1 in the code moves {rest} by at most {moves['upper']:.3g}"
    if moves["lower"] is not None:
        at_least = f"{moves['lower']:.3g} or more (no limit was found)"
        return f"{share}, and some error of 1 in the code moves {rest} by {at_least}"
    return f"{share}, and there is no limit to what an error may do"


def _count(number: int) -> str:
    return f"{number:,}"
