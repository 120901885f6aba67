"""What a table or figure is reproduced on: a network, its conv blocks, and images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from unconv.conv_block import ConvBlock, ConvBlocks
from unconv.evaluate.block_reconstruction import coded_block
from unconv.evaluate.network import Captured, CapturedStream, Network, Opened
from unconv.evaluate.theory import count_nonzeros
from unconv.images import ImageStream, SkippedImage
from unconv.measure.sparsity import SparsityStatistics
from unconv.sparsity import Pooled, Window

Result = dict[str, Any]
Table = tuple[tuple[str, ...], list[tuple[Any, ...]]]


@dataclass(frozen=True)
class Context:
    """A network and images to reproduce the paper's experiments on."""

    model: str
    network: Network
    images: ImageStream
    blocks: ConvBlocks  # the conv blocks at the size of the first image
    names: tuple[str, ...]  # the blocks that the weights reach, in execution order
    shape: tuple[int, ...]  # of the first image's input, (C, H, W)
    region: int = 2  # side of the pooling imposed on a block that has none
    seed: int = 0
    progress: Callable[[str], None] = lambda message: None  # called with a message as the work goes on
    skipped: list[SkippedImage] = field(default_factory=list)  # images that the last pass left out

    def captured(self, names: Sequence[str]) -> Iterator[Captured]:
        """Yield the images batch by batch with the inputs of the named blocks."""
        stream = CapturedStream(self.network, self.images, inputs=names)
        yield from stream
        self.skipped[:] = stream.skipped

    def count_nonzeros(self, names: Sequence[str], region: int | None = None) -> SparsityStatistics:
        """Count the non-zeros of blocks over the images; with ``region``, also behind an imposed pooling."""
        stream = CapturedStream(self.network, self.images, inputs=names)
        statistics, self.skipped[:] = count_nonzeros(stream, names, region)
        return statistics

    def pooled(self, block: ConvBlock) -> ConvBlock:
        """Return a block with its own pooling, or with the imposed one where it has none and its map is large."""
        return coded_block(block, "network", self.region)


def context_of(opened: Opened, *, wanted: Sequence[str] = (), region: int = 2, seed: int = 0) -> Context:
    """Find the conv blocks of a network on the first image, and those of them that its weights reach."""
    x = next(iter(opened.images)).inputs[:1]
    names = tuple(block.name for block in opened.blocks(x, wanted or None))
    blocks, loaded = opened.network.conv_blocks(x), opened.loaded
    model = f"{loaded.name} ({loaded.weights.source})"
    return Context(model, opened.network, opened.images, blocks, names, tuple(x.shape[1:]), region, seed)


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


def regions_of(block: ConvBlock, k: int | None = None) -> Pooled:
    """Return the sparsity model of a block: its max pooling's regions, or single places."""
    return Pooled(block.pooling if isinstance(block.pooling, Window) else 1, k)


def histogram(values: np.ndarray, bins: int, **options: Any) -> dict[str, list[float]]:
    """Return edges and counts, fit for JSON."""
    counts, edges = np.histogram(values, bins=bins, **options)
    return {"edges": edges.tolist(), "counts": counts.tolist()}


def draw_share(panel: Any, bars: dict[str, list[float]], name: str) -> None:
    """Draw a histogram as shares of all values."""
    share = np.array(bars["counts"]) / max(1, sum(bars["counts"]))
    panel.stairs(share, bars["edges"], fill=True, alpha=0.55, label=name)
