"""What a table or figure is reproduced on: a network, its conv blocks, and images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unconv.block_extraction import find_conv_blocks
from unconv.conv_block import ConvBlock, ConvBlocks
from unconv.decode.what_where import read_card
from unconv.errors import UnconvError
from unconv.evaluate.decoders import OpenedDecoder, decoder_chain, open_decoder
from unconv.evaluate.network import Network
from unconv.images import Batch, ImageStream
from unconv.measure.sparsity import SparsityStatistics, k_from
from unconv.models import LoadedModel, check_covered
from unconv.preprocessing import Preprocessing
from unconv.sparsity import Pooled, Window
from unconv.tracing import capture_inputs

Result = dict[str, Any]
Table = tuple[tuple[str, ...], list[tuple[Any, ...]]]


@dataclass(frozen=True)
class Captured:
    """A batch of images with the inputs of some conv blocks.

    Attributes:
        batch: The images.
        blocks: The conv blocks at their size.
        inputs: Input of each block by name. Shape ``(N, M, *spatial)``.
    """

    batch: Batch
    blocks: ConvBlocks
    inputs: dict[str, Tensor]


@dataclass(frozen=True)
class Context:
    """A network and images to reproduce the paper's experiments on.

    Attributes:
        model: Its name, for the notes.
        module: The network, in evaluation mode.
        preprocess: From an image to its input, and back to pixels.
        images: The images.
        blocks: The conv blocks at the size of the first image.
        names: The blocks that the weights reach, in execution order.
        shape: Of the first image's input, ``(C, H, W)``.
        region: Side of the pooling imposed on a block that has none.
        seed: Seed of everything random.
        device: Where the network computes.
        progress: Called with a message as the work goes on.
    """

    model: str
    module: nn.Module
    preprocess: Preprocessing
    images: ImageStream
    blocks: ConvBlocks
    names: tuple[str, ...]
    shape: tuple[int, ...]
    region: int = 2
    seed: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    progress: Callable[[str], None] = lambda message: None

    def captured(self, names: Sequence[str]) -> Iterator[Captured]:
        """Yield the images batch by batch with the inputs of the named blocks."""
        blocks = {self.shape: self.blocks}
        for batch in self.images:
            x = batch.inputs.to(self.device)
            shape = tuple(x.shape[1:])
            if shape not in blocks:
                blocks[shape] = find_conv_blocks(self.module, x[:1])
            yield Captured(batch, blocks[shape], capture_inputs(self.module, names, x))

    def pooled(self, block: ConvBlock) -> ConvBlock:
        """Return a block with its own pooling, or with the imposed one where it has none and its map is large."""
        fits = block.pooling is None and min(block.operator.output_shape[1:]) >= self.region
        return block.with_region(self.region) if fits else block

    def open_decoders(self, files: Sequence[str | Path]) -> dict[str, OpenedDecoder]:
        """Return the decoders of some files by the block that each decodes; each must belong to this network."""
        network = Network(self.module, self.preprocess, self.device)
        decoders = {}
        for file in map(Path, files):
            card = read_card(file)
            decoder = open_decoder(file, network, decoder_chain(self.blocks, card.stage))
            decoders[card.stage] = OpenedDecoder(file, card, decoder)
        return decoders


def open_context(
    loaded: LoadedModel,
    images: ImageStream,
    *,
    blocks: Sequence[str] = (),
    region: int = 2,
    seed: int = 0,
    device: str = "cpu",
    progress: Callable[[str], None] = lambda message: None,
) -> Context:
    """Find the conv blocks of a network on the first image, and those of them that its weights reach."""
    x = next(iter(images)).inputs[:1].to(device)
    module = loaded.module.to(device)
    found = find_conv_blocks(module, x)
    wanted = [found.get(name).name for name in blocks]
    names: list[str] = []
    for block in found:
        try:
            check_covered(loaded, [block.name])
        except UnconvError:
            if block.name in wanted or not names:
                raise
            break  # what comes later is computed from weights that are not there
        names.append(block.name)
    if not names:
        raise UnconvError(f"{loaded.name} has no conv block; give a model with one")
    return Context(
        f"{loaded.name} ({loaded.weights.source})",
        module,
        loaded.preprocess,
        images,
        found,
        tuple(name for name in names if not wanted or name in wanted),
        tuple(x.shape[1:]),
        region,
        seed,
        torch.device(device),
        progress,
    )


def numbering(blocks: Iterable[ConvBlock]) -> dict[str, tuple[int, int]]:
    """Number the blocks as the paper does: ``conv(i,j)`` is the ``j``-th convolution before the ``i``-th pooling."""
    i, j, numbers = 1, 0, {}
    for block in blocks:
        j += 1
        numbers[block.name] = (i, j)
        if block.pooling is not None:
            i, j = i + 1, 0
    return numbers


def label(number: tuple[int, int]) -> str:
    """Return ``(1, 2)`` as ``"c12"``, the label of Table 2; with a dot where a number has two digits."""
    return f"c{number[0]}{'.' if max(number) > 9 else ''}{number[1]}"


def count_nonzeros(statistics: SparsityStatistics, block: ConvBlock, x: Tensor) -> None:
    """Add the non-zeros of a batch, behind the block's own bias and activation and behind its pooling."""
    activated = block.activate(block.preactivation(x))
    statistics.update(block.name, activated, None if block.pooling is None else block.pool(activated).values)


def regions_of(block: ConvBlock, k: int | None = None) -> Pooled:
    """Return the sparsity model of a block: its max pooling's regions, or single places."""
    return Pooled(block.pooling if isinstance(block.pooling, Window) else 1, k)


def paper_k(block: ConvBlock, fraction: float) -> int:
    """Return the paper's ``k`` of a block, from the measured fraction of regions that are not zero."""
    channels, *spatial = block.operator.output_shape
    places = block.pooling.pooled_shape(spatial) if isinstance(block.pooling, Window) else spatial
    return k_from(fraction, channels * int(np.prod(places)))


def histogram(values: np.ndarray, bins: int, **options: Any) -> dict[str, list[float]]:
    """Return edges and counts, fit for JSON."""
    counts, edges = np.histogram(values, bins=bins, **options)
    return {"edges": edges.tolist(), "counts": counts.tolist()}


def draw_share(panel: Any, bars: dict[str, list[float]], name: str) -> None:
    """Draw a histogram as shares of all values."""
    share = np.array(bars["counts"]) / max(1, sum(bars["counts"]))
    panel.stairs(share, bars["edges"], fill=True, alpha=0.55, label=name)
