"""Linear decoders of a network's layers: fitted once to reference images, kept in a folder."""

from __future__ import annotations

import contextlib
import copy
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as TF

from unconv.conv_block import SideInfo
from unconv.errors import UnconvError
from unconv.evaluate.network import Network
from unconv.evaluate.reconstruction import add_noise, noisy_name, solver_config
from unconv.images import ImageStream, find_images
from unconv.inversion.calibration import Refinement, calibrate
from unconv.inversion.linear import LinearDecoder, fit_linear_decoders
from unconv.inversion.reference_images import other_images, reference_images
from unconv.io import finite, writing
from unconv.preprocessing import Preprocess
from unconv.tracing import capture

BATCH = 8
REMEMBERED = 32  # decoders in a process
LOOKED_AT = 64  # images under test that are looked for among the packaged photographs

_fitted: dict[str, LinearDecoder] = {}  # those of this process, for every network that gives the same features


def fit_linear(
    network: Network,
    images: ImageStream,
    x: Tensor,
    layers: Sequence[str],
    *,
    folder: str | Path | None = None,
    given: str | Path | None = None,
    reference_folder: str | Path | None = None,
    seed: int = 0,
    noise: float = 0.0,
) -> list[str]:
    """Fit decoders of layers for images of the shape of ``x``, or take those that are there; return remarks.

    ``noise``: level of the features' noise that they are fitted for; its variance adds to the ridge of every feature.
    """
    draw = partial(references_for, network, images, tuple(x.shape[1:]), reference_folder, seed)
    branches = bool(network.layers(x).branches)
    if not branches and not isinstance(network.references, Tensor):
        network.references = lambda: draw()[0]
    missing = {}
    for name, layer in ((noisy_name(layer, noise), layer) for layer in layers):
        if (file := find_fitted(name, given, folder)) is None:
            missing[name] = layer
        else:
            network.linear[name] = LinearDecoder.load(file)
    notes = []
    if given is not None and any(find_fitted(noisy_name(layer, noise), given) for layer in layers):
        notes.append(f"linear decoders are read from {given}; see that they were not fitted to images under test")
    if not missing:
        return notes
    # those of another level of noise are drawn already
    references, drawn = (network.references, []) if isinstance(network.references, Tensor) else draw()
    notes += drawn
    references = references.to(network.device)
    if branches:
        shapes = {layer: network.layers(x).get(layer).shape for layer in missing.values()}
        count, references = len(references), _that_reach(network, references, shapes)
        if len(references) < count:
            notes.append(f"{count - len(references)} reference images take a path without {', '.join(shapes)}")
    else:
        network.references = references
    # what decoders depend on: their names, the reference images, and what the layer makes of one of them
    digest, first = _digest(references), capture(network.module, list(missing.values()), references[:1])
    keys = {name: f"{name} {seed} {digest} {_digest(first[layer])}" for name, layer in missing.items()}
    unknown = {name: layer for name, layer in missing.items() if keys[name] not in _fitted}
    generator = torch.Generator().manual_seed(seed)

    def captured(batch: Tensor) -> dict[str, Tensor]:
        # where values choose the way, each image goes its own
        parts = batch.split(1 if branches else len(batch))
        found = [capture(network.module, list(unknown.values()), part) for part in parts]
        # E[(a + n)^T (a + n)] = a^T a + E[n^T n]: noise on the references is that ridge
        return {
            name: add_noise(torch.cat([each[layer] for each in found]), noise, generator)
            for name, layer in unknown.items()
        }

    if unknown:
        for name, decoder in fit_linear_decoders(captured, list(references.split(BATCH)), list(unknown)).items():
            _fitted[keys[name]] = decoder
    for name in missing:
        network.linear[name] = _fitted[keys[name]]
        _save(network, name, folder)
    for key in list(_fitted)[:-REMEMBERED]:
        del _fitted[key]
    return notes


def calibrated(
    network: Network,
    layer: str,
    kinds: Sequence[SideInfo],
    *,
    most: int,
    noise: float = 0.0,
    folder: str | Path | None = None,
) -> Refinement | None:
    """Return how far refinement of a layer pays, measured the first time and kept with its linear decoder.

    ``None`` where no reference image was held out or no gradient passes.
    """
    name = noisy_name(layer, noise)
    decoder = network.linear.get(name)
    unseen = None if decoder is None else decoder.unseen()
    if decoder is None or unseen is None:
        return None
    known = decoder.refinement
    count = network.max_batch  # one where values choose the way
    images, estimates = (tensor[:count].to(network.device) for tensor in unseen[:2])
    function = network.function(layer, images.shape[1:])
    try:
        preconditioner = network.preconditioner(layer, name)
        if preconditioner is None:
            return None
        with torch.no_grad():
            features = add_noise(function(images), noise, torch.Generator().manual_seed(0))
        found = calibrate(
            function,
            preconditioner,
            images,
            estimates if network.box is None else network.box.project(estimates),
            kinds,
            most=most,
            features=features,
            solver=solver_config(noise),
            known=known,
        )
    except UnconvError:
        return None  # what cannot be inverted says so for every image
    if found == known:
        return found
    network.linear[name] = replace(decoder, refinement=found)
    for key, other in _fitted.items():
        if other is decoder:
            _fitted[key] = network.linear[name]
    _save(network, name, folder)
    return found


def _save(network: Network, name: str, folder: str | Path | None) -> None:
    if folder is not None:
        with writing(folder):
            network.linear[name].save(_fitted_file(folder, name))


def _digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.detach().cpu().contiguous().numpy().tobytes()).hexdigest()


def random_weights(module: nn.Module, seed: int) -> nn.Module:
    """Return a copy with weights drawn anew, by ``reset_parameters`` or, without one, as a permutation of the old."""
    copied = copy.deepcopy(module)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for part in copied.modules():
            if callable(reset := getattr(part, "reset_parameters", None)):
                reset()
                continue
            for parameter in part.parameters(recurse=False):
                order = torch.randperm(parameter.numel()).to(parameter.device)
                parameter.copy_(parameter.flatten()[order].view_as(parameter))
    return copied


def linear_document(decoder: LinearDecoder) -> dict[str, Any]:
    """Return what a decoder tells of its layer besides the errors of its estimates, fit for JSON."""
    weights, explained = decoder.weights, decoder.explained
    document: dict[str, Any] = {"ridge": weights.ridge, "fit": weights.status, "note": weights.note or None}
    if explained is not None:
        document["explained_variance"] = {
            "edges": explained.edges.tolist(),
            "luminance": [finite(v) for v in explained.luminance.tolist()],
            "colour": [finite(v) for v in explained.colour.tolist()],
            "luminance_total": finite(explained.luminance_total),
            "colour_total": finite(explained.colour_total),
        }
    return document


def find_fitted(name: str, *folders: str | Path | None) -> Path | None:
    """Return the file of a fitted decoder in the first folder that has one; ``None`` where none has."""
    files = (_fitted_file(folder, name) for folder in folders if folder is not None)
    return next((file for file in files if file.is_file()), None)


def _fitted_file(folder: str | Path, layer: str) -> Path:
    return Path(folder) / ("".join(c if c.isalnum() or c in ".-_" else "_" for c in layer) + ".safetensors")


def first_images(images: ImageStream, shape: tuple[int, ...]) -> Tensor:
    """Return the first images under test of a shape."""
    inputs = []
    for batch in images:
        if tuple(batch.inputs.shape[1:]) == shape:
            inputs += list(batch.inputs)
        if len(inputs) >= LOOKED_AT:
            break
    return torch.stack(inputs[:LOOKED_AT]) if inputs else torch.zeros(0, *shape)


def references_for(
    network: Network, images: ImageStream, shape: tuple[int, ...], folder: str | Path | None, seed: int
) -> tuple[Tensor, list[str]]:
    """Return reference images as the network receives them, none of the images under test, and remarks."""
    if folder is not None:
        stream = ImageStream(find_images(folder), network.preprocess, BATCH, root=folder)
        found = [y for batch in stream if tuple(batch.inputs.shape[1:]) == shape for y in batch.inputs]
        under_test = (batch.inputs for batch in images if tuple(batch.inputs.shape[1:]) == shape)
        kept = other_images(torch.stack(found), under_test) if found else torch.zeros(0, *shape)
        if not len(kept):
            raise UnconvError(f"reference_images holds no usable image of shape {shape} that is not under test")
        dropped = len(found) - len(kept)
        return kept, [f"{dropped} reference images are under test, and were left out"] if dropped else []
    tested = first_images(images, shape)
    references = reference_images(shape, exclude=tested, seed=seed)
    dropped = references.dropped
    notes = [f"packaged photographs left out, since they show what is under test: {dropped}"] if dropped else []
    if not isinstance(network.preprocess, Preprocess) and len(tested) and shape[0] == 3:
        notes.append(
            "reference images have the mean colour and the contrast of the images under test, which an attacker"
            " would not know; give mean and std as in training"
        )
    return _prepared(network, references.images, tested), notes


def _that_reach(network: Network, references: Tensor, shapes: Mapping[str, tuple[int, ...]]) -> Tensor:
    """Return the reference images that reach all of some layers, at these shapes; UnconvError where none does."""
    kept = []
    for x in references.split(1):
        with contextlib.suppress(UnconvError):
            found = capture(network.module, shapes, x)
            kept += [x] if all(found[layer].shape[1:] == shape for layer, shape in shapes.items()) else []
    if not kept:
        raise UnconvError(
            f"no reference image reaches {', '.join(shapes)}; give reference_images like those under test"
        )
    return torch.cat(kept)


def _prepared(network: Network, pixels: Tensor, like: Tensor) -> Tensor:
    """Return pixels as the network receives them: normalised alike, without resizing."""
    preprocess = network.preprocess
    if isinstance(preprocess, Preprocess) and pixels.ndim == 4 and pixels.shape[1] == 3:
        plain = replace(preprocess, resize=None, crop=None)
        return torch.stack([plain(TF.to_pil_image(image)) for image in pixels])
    # a preprocessing that is not known: the mean and the spread of the images under test
    axes = [0, *range(2, pixels.ndim)]
    mean, std = (f(pixels, axes, keepdim=True) for f in (torch.mean, torch.std))
    if not len(like):
        return pixels
    wanted, spread = (f(like, axes, keepdim=True) for f in (torch.mean, torch.std))
    return (pixels - mean) / std.clamp_min(1e-6) * spread.nan_to_num(1.0) + wanted
