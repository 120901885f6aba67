"""A network under study: opened with its images, and its layers prepared once per input shape."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from unconv.block_extraction import find_conv_blocks
from unconv.conv_block import ConvBlock, ConvBlocks
from unconv.errors import UnconvError, UsageError, check_whole
from unconv.graph import trace
from unconv.images import Batch, ImageStream, InMemoryImages, SkippedImage, find_images, none_left, sample_photographs
from unconv.inversion.box import Box
from unconv.inversion.frozen_network import LayerFunction
from unconv.io import one_line
from unconv.models import LoadedModel, adopt_model, check_covered, load_model
from unconv.preprocessing import Numbers, Preprocess, Preprocessing, UserPreprocess
from unconv.stationary import StationaryPreconditioner
from unconv.tracing import Layers, capture, capture_inputs, list_layers

if TYPE_CHECKING:
    from unconv.decode.what_where import WhatWhereDecoder
    from unconv.evaluate.metrics import Judge
    from unconv.inversion.linear import LinearDecoder

T = TypeVar("T")
Images = (
    str | Path | Image.Image | Tensor | np.ndarray | Sequence[str | Path] | Sequence[Image.Image | Tensor | np.ndarray]
)
OTHER_PATH = "it takes another path through the network than its conv blocks"
TOO_LARGE = "there is not enough memory for this image alone; give a smaller size, or use a larger machine"
OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED")
LARGEST_NORMALISED = 20.0  # of a tensor that may have been normalised; above it looks like pixels in 0..255
LOOKED_AT = 64  # images, in search of one that the network takes


@dataclass
class Network:
    """A module with its layers and conv blocks, found once per input shape."""

    module: nn.Module  # the network, in evaluation mode
    preprocess: Preprocessing  # from an image to its input, and back to pixels
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))  # where it computes
    decoders: dict[str, WhatWhereDecoder] = field(default_factory=dict)  # trained what-where decoders by conv block
    linear: dict[str, LinearDecoder] = field(default_factory=dict)
    # reference images as the network receives them, at the shape of the decoders, or what draws them
    references: Tensor | Callable[[], Tensor] | None = None
    # stationary preconditioners by layer, those that were made; see preconditioner
    preconditioners: dict[str, StationaryPreconditioner] = field(default_factory=dict)
    # images at a time, once it is known how many fit into memory; one where their values choose the way
    max_batch: int | None = None
    judge: Judge | None = None  # what says whether a reconstruction still shows the same class; nothing where None
    say: Callable[[str], None] = field(default=lambda message: None, repr=False)  # told of every pass of a solver
    _layers: dict[tuple[int, ...], Layers] = field(default_factory=dict, repr=False)
    _blocks: dict[tuple[int, ...], ConvBlocks] = field(default_factory=dict, repr=False)
    _functions: dict[tuple[str, tuple[int, ...]], LayerFunction] = field(default_factory=dict, repr=False)
    _examples: dict[tuple[int, ...], Tensor] = field(default_factory=dict, repr=False)

    @property
    def box(self) -> Box | None:
        """What pixels between black and white become; ``None`` for a preprocessing of the user's own."""
        if not isinstance(self.preprocess, Preprocess):
            return None
        mean, std = (
            torch.tensor(v, device=self.device)[:, None, None] for v in (self.preprocess.mean, self.preprocess.std)
        )
        return Box(-mean / std, (self.preprocess.scale - mean) / std)

    def layers(self, x: Tensor) -> Layers:
        """Return the layers at the shape of one image, found with it the first time. Shape ``(1, C, H, W)``."""
        key = tuple(x.shape[1:])
        if key not in self._layers:
            try:
                blocks = self.conv_blocks(x)
            except UnconvError:  # a network without convolutions has layers all the same
                blocks = ConvBlocks(())
            found = self._layers[key] = list_layers(self.module, x[:1].to(self.device), blocks)
            if found.branches:
                # values choose the way, and one image's values must not choose it for the others of its batch
                self.max_batch, self._examples[key] = 1, x[:1].to(self.device)
        return self._layers[key]

    def conv_blocks(self, x: Tensor) -> ConvBlocks:
        """Return the conv blocks at the shape of one image, found with it the first time. Shape ``(1, C, H, W)``."""
        key = tuple(x.shape[1:])
        if key not in self._blocks:
            self._blocks[key] = find_conv_blocks(self.module, x[:1].to(self.device))
        return self._blocks[key]

    def function(self, layer: str, shape: Sequence[int]) -> LayerFunction:
        """Return a layer as a differentiable function of images of one shape, prepared once."""
        key = (layer, tuple(shape))
        if key not in self._functions:
            self._functions[key] = LayerFunction(self.module, layer, key[1], self._examples.get(key[1]))
        return self._functions[key]

    def preconditioner(self, layer: str, name: str) -> StationaryPreconditioner | None:
        """Return the stationary preconditioner of a layer, made the first time; ``name``: of its linear decoder."""
        decoder = self.linear.get(name)
        unseen = None if decoder is None else decoder.unseen()
        if name in self.preconditioners or decoder is None or unseen is None or self.references is None:
            return self.preconditioners.get(name)
        references = self.references = self.references if isinstance(self.references, Tensor) else self.references()
        function = self.function(layer, references.shape[1:])
        if function.differentiable:
            references = references.to(self.device)
            stride = decoder.weights.stride
            self.preconditioners[name] = StationaryPreconditioner.of(function, references, unseen[2], stride)
        return self.preconditioners.get(name)

    def portable(self) -> Network:
        """Return the network without what is found anew where it is used: to be sent to another process."""
        known = (self.module, self.preprocess, self.device, self.decoders, self.linear, None, self.preconditioners)
        return Network(*known, self.max_batch, self.judge, _examples=self._examples)

    def in_parts(
        self, places: Sequence[int], do: Callable[[Sequence[int]], T]
    ) -> Iterator[tuple[Sequence[int], T | None, str]]:
        """Do something for images: for half as many where memory is short, for one where one of them fails.

        Yields places of images with what was done; where it cannot be done for an image, ``None`` and the reason.
        """
        count, most, reason = len(places), self.max_batch, ""
        if most is None or count <= most:
            try:
                done = do(places)
            except UnconvError as error:
                reason, most = one_line(str(error)), 1
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                reason, most = TOO_LARGE, None
            else:
                yield places, done, ""
                return
        # the except block has ended, so the exception no longer keeps the tensors alive
        if count == 1:
            yield places, None, reason
            return
        most = most or self._halve(count)
        for i in range(0, count, most):
            yield from self.in_parts(places[i : i + most], do)

    def _halve(self, count: int) -> int:
        """Take at most half as many images at a time from now on; the first time that is said on stderr."""
        if self.max_batch is None:
            print(f"note: out of memory; going on with at most {max(1, count // 2)} images at a time", file=sys.stderr)
        self.max_batch = max(1, min(self.max_batch or count, count // 2))
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return self.max_batch


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that there was no memory left, on a GPU or on the CPU."""
    if isinstance(error, torch.cuda.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in OUT_OF_MEMORY)


@dataclass(frozen=True)
class Captured:
    """A batch of images on its way through the network."""

    batch: Batch
    blocks: ConvBlocks
    features: dict[str, Tensor]  # output of each wanted layer; shape (N, *layer.shape)
    # input of each wanted conv block; shape (N, M, *spatial), several rows per image where another axis is folded
    # into the batch.
    inputs: dict[str, Tensor]

    def select(self, places: Sequence[int]) -> Captured:
        """Return some of the images."""
        count = len(self.batch.names)
        if list(places) == list(range(count)):
            return self

        def some(x: Tensor) -> Tensor:
            return x.unflatten(0, (count, -1))[list(places)].flatten(0, 1)

        features, inputs = ({n: some(x) for n, x in d.items()} for d in (self.features, self.inputs))
        return Captured(_select(self.batch, places), self.blocks, features, inputs)


def _select(batch: Batch, places: Sequence[int]) -> Batch:
    names, indices = tuple(batch.names[i] for i in places), tuple(batch.indices[i] for i in places)
    return Batch(names, batch.inputs[list(places)], indices)


def same_path(network: Network, captured: Captured) -> tuple[list[int], list[SkippedImage]]:
    """Return the places of images that take the conv blocks' path through the network, and the others by name."""
    batch, blocks = captured.batch, captured.blocks
    places = list(range(len(batch.names)))
    if blocks.branches:
        alike = all(h.shape[1:] == blocks.get(name).input_shape for name, h in captured.inputs.items())
        inputs = batch.inputs.to(network.device)
        places = [i for i in places if alike and trace(network.module, inputs[i : i + 1]).path == blocks.path]
    return places, [SkippedImage(name, OTHER_PATH) for i, name in enumerate(batch.names) if i not in places]


@dataclass
class CapturedStream:
    """Images, with the features of layers and the inputs of conv blocks, batch by batch in constant memory.

    An image that the network cannot take, or whose features are not finite, is skipped by name; the others go on.
    """

    network: Network
    images: ImageStream
    inputs: Sequence[str] = ()  # conv blocks whose inputs are kept
    layers: Sequence[str] = ()  # layers whose features are kept
    _refused: list[SkippedImage] = field(init=False, default_factory=list)

    @property
    def skipped(self) -> list[SkippedImage]:
        """What the last pass, so far, left out."""
        return [*self.images.skipped, *self._refused]

    def __iter__(self) -> Iterator[Captured]:
        """Yield batches; raise UnconvError if no image is left and one is needed."""
        self._refused, passed = [], False
        for batch in self.images:
            for places, part, reason in self.network.in_parts(range(len(batch.names)), partial(self._capture, batch)):
                if part is None:
                    self._refused.append(SkippedImage(batch.names[places[0]], reason))
                else:
                    passed = True
                    yield part
        if not passed and self.images.need_one:
            raise UnconvError(none_left(len(self.images), self.skipped))

    def _capture(self, batch: Batch, places: Sequence[int]) -> Captured:
        batch = _select(batch, places)
        x = batch.inputs.to(self.network.device)
        module = self.network.module
        features = capture(module, self.layers, x) if self.layers else {}
        inputs = capture_inputs(module, self.inputs, x) if self.inputs else {}
        blocks = self.network.conv_blocks(x) if self.inputs else ConvBlocks(())
        return Captured(batch, blocks, features, inputs)


@dataclass(frozen=True)
class Opened:
    """A model and images, opened."""

    loaded: LoadedModel
    network: Network
    images: ImageStream
    description: dict[str, Any]  # what config.json says of the model and the images

    def example(self) -> Tensor:
        """Return the first image that the network takes. Shape ``(1, C, H, W)``."""
        refused, shape = None, (0, 0)
        for number, batch in enumerate(self.images):
            for x in batch.inputs.split(1):
                try:
                    self.network.layers(x)
                    return x
                except UnconvError as error:
                    refused, shape = refused or error, tuple(x.shape)
            if number * self.images.batch_size >= LOOKED_AT:
                break
        assert refused is not None  # a stream without a single image raises by itself
        if shape[-1] in {1, 3, 4} and shape[1] not in {1, 3, 4}:
            layout = f"the images look like (N, H, W, C), as {(len(self.images), *shape[1:])} says"
            raise UsageError(f"{layout}; the network takes (N, C, H, W): give x.permute(0, 3, 1, 2)") from refused
        raise refused

    def covered(self, names: Sequence[str], wanted: Sequence[str] | None) -> tuple[list[str], list[dict[str, str]]]:
        """Return those of some layers, in execution order, that the weights reach, and what was left out."""
        for place, name in enumerate(names):
            try:
                check_covered(self.loaded, [name])
            except UnconvError as gap:
                left = names[place:]
                if not place or any(name in left for name in wanted or ()):
                    raise
                return list(names[:place]), [{"module": name, "reason": str(gap)} for name in left]
        return list(names), []

    def blocks(self, x: Tensor, wanted: Sequence[str] | None) -> list[ConvBlock]:
        """Return the conv blocks of some names, in execution order; all that the weights reach where ``None``."""
        found = self.network.conv_blocks(x)
        chosen = {found.get(name).name for name in (found.names if wanted is None else wanted)}
        kept, skipped = self.covered(found.names, None if wanted is None else sorted(chosen))
        for left_out in skipped:
            print(f"note: {left_out['module']} is left out: {left_out['reason']}", file=sys.stderr)
        if blocks := [found.get(name) for name in kept if name in chosen]:
            return blocks
        first = "".join(f"; {s.module}: {s.reason}" for s in found.skipped[:1])
        raise UnconvError(f"the network has no conv block{first}")


def open_network(
    model: str | nn.Module,
    images: Images | None = None,
    *,
    weights: str | None = None,
    size: int | None = None,
    mean: Numbers | None = None,
    std: Numbers | None = None,
    preprocess: Callable[[Image.Image], Tensor] | None = None,
    batch: int | None = None,
    limit: int | None = None,
    device: str | None = None,
    seed: int = 0,
    download: bool = True,
) -> Opened:
    """Open a model, by name or as a module, and its images; what had to be assumed is said on stderr."""
    if not isinstance(model, str | nn.Module):
        raise UsageError(f"model is of type {type(model).__name__}; give an nn.Module or a name such as 'cifar-vgg'")
    if not (isinstance(seed, int) and 0 <= seed < 2**63):
        raise UsageError(f"seed is {seed!r}; expected a whole number, at least 0 and below 2^63")
    batch = 4 if batch is None else batch
    check_whole(batch=batch, limit=limit)
    in_memory = None if images is None or _are_files(images) else images
    tensors = in_memory if _only_tensors_in(in_memory) else None
    sources, paths = [], []
    if in_memory is None:  # listed before the model is built, which can take long
        sources = [] if images is None else [images] if isinstance(images, str | Path) else list(images)  # pyright: ignore
        paths = find_images(sources) if sources else sample_photographs()  # pyright: ignore
    if isinstance(model, str):
        if preprocess is not None:
            raise UsageError("a named model brings its own preprocess; leave it out, or give size, mean and std")
        target = open_device(device or "cpu")  # before the weights are read, which can take long
        download = download and weights is not None
        loaded = load_model(model, weights=weights, size=size, mean=mean, std=std, download=download)
    else:
        if weights is not None:
            raise UsageError("weights belong to a named model; this network has its own")
        held = next((t for t in (*model.parameters(), *model.buffers())), None)
        target = open_device(device or ("cpu" if held is None else str(held.device)))
        loaded = adopt_model(model, preprocess=preprocess, size=size, mean=mean, std=std)
        if loaded.notes and tensors is not None:
            loaded = replace(loaded, preprocess=_of_tensors(tensors), notes=())  # pyright: ignore
    notes = loaded.notes
    if loaded.weights.random:
        notes = (*notes, f"{loaded.name} has random weights, since none were given; give weights for a trained network")
    if tensors is not None:
        if size is not None:
            raise UsageError("size has no effect on tensors, which the network receives as they are; leave it out")
        notes = (*notes, *_looks_of(tensors, loaded.preprocess))  # pyright: ignore
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    network = Network(loaded.module.to(target), loaded.preprocess, target)
    if in_memory is not None:
        stream: ImageStream = InMemoryImages(in_memory, network.preprocess, batch, limit)  # pyright: ignore
        about = {"given": "images in memory", "count": len(stream), "sha256": stream.digest()}  # pyright: ignore
    else:
        first = Path(sources[0]) if len(sources) == 1 else None
        root = first if first is not None and first.is_dir() else paths[0].parent
        stream = ImageStream(paths[:limit], network.preprocess, batch, root=root)
        listing = "\n".join(f"{path} {_size(path)}" for path in stream.paths)
        digest = hashlib.sha256(listing.encode(errors="surrogateescape")).hexdigest()
        given = [str(s) for s in sources] or "bundled photographs"
        about = {"given": given, "count": len(stream), "listing_sha256": digest}
    description = {
        "model": loaded.name,
        "weights": {"source": loaded.weights.source, "sha256": loaded.weights.sha256},
        "preprocessing": loaded.preprocess.describe(),
        "images": about,
        "batch": batch,
        "device": str(target),
        "seed": seed,
    }
    return Opened(loaded, network, stream, description)


def open_device(name: str) -> torch.device:
    """Return a device, set up for exact enough arithmetic; UsageError if there is no such kind."""
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"no device {name!r}; use cpu, cuda or cuda:N") from None
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise UnconvError(f"device {name!r} is not available on this machine; use cpu")
        # TensorFloat-32 keeps 10 bits of the mantissa, too few for adjoints and model-RIP
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    elif device.type != "cpu":
        raise UsageError(f"no support for device {name!r}; use cpu, cuda or cuda:N")
    return device


def _are_files(images: Images) -> bool:
    if isinstance(images, Tensor | np.ndarray | Image.Image):
        return False
    return isinstance(images, str | Path) or (len(images) > 0 and all(isinstance(item, str | Path) for item in images))


def _of_tensors(tensors: Sequence[Tensor] | Tensor) -> Preprocessing:
    """Return what tensors of which nothing is said are taken for: pixels in ``[0, 1]`` if they could be."""
    if all(len(x) == 3 and x.numel() and x.min() >= 0 and x.max() <= 1 for x in tensors):
        return Preprocess()
    return UserPreprocess(_only_tensors)


def _only_tensors_in(images: Any) -> bool:
    return isinstance(images, Tensor | list | tuple) and len(images) > 0 and all(isinstance(x, Tensor) for x in images)


def _looks_of(tensors: Sequence[Tensor] | Tensor, preprocess: Preprocessing) -> list[str]:
    """Return a remark on tensors that do not look as if they had been through a preprocessing."""
    if not all(x.is_floating_point() for x in tensors):
        return []  # refused
    low, high = min(x.min().item() for x in tensors), max(x.max().item() for x in tensors)
    plain = isinstance(preprocess, Preprocess)
    if high > LARGEST_NORMALISED and not (plain and preprocess.scale == 255):
        return [f"the tensors reach {high:.0f}, as pixels in 0..255 do; if the network takes [0, 1], divide by 255"]
    if plain and preprocess.scale == 1 and max(preprocess.mean) > 0 and low >= 0 and high <= 1:
        return ["the tensors lie in [0, 1], as if they were not normalised; the network takes (x - mean) / std"]
    return []


def _only_tensors(image: Image.Image) -> Tensor:
    raise UnconvError(f"this network was given tensors, not pictures such as {image}")


def _size(path: Path) -> int | str:
    try:
        return path.stat().st_size
    except OSError:
        return "-"
