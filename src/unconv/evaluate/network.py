"""A network under study: its stages at each input size, and the inputs that they receive."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from unconv.block_extraction import find_conv_blocks
from unconv.conv_block import ConvBlocks
from unconv.decode.what_where import WhatWhereDecoder
from unconv.errors import UnconvError
from unconv.evaluate.batch_size import TOO_LARGE, MaxBatchSize, is_out_of_memory
from unconv.images import Batch, ImageStream, SkippedImage, one_line
from unconv.inversion.box import Box
from unconv.preprocessing import Preprocess, Preprocessing
from unconv.tracing import capture_inputs as capture

ENOUGH = 64  # images to look at for one that the whole network takes


@dataclass
class Network:
    """A module with its stages, found once per input shape.

    Attributes:
        module: The network, in evaluation mode.
        preprocess: From an image to its input, and back to pixels.
        device: Where it computes.
        room: How many images fit into memory at a time.
        decoders: Trained decoders, by the stage that they decode.
    """

    module: nn.Module
    preprocess: Preprocessing
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    room: MaxBatchSize = field(default_factory=MaxBatchSize)
    decoders: dict[str, WhatWhereDecoder] = field(default_factory=dict)
    _stages: dict[tuple[int, ...], ConvBlocks] = field(default_factory=dict)

    @property
    def box(self) -> Box | None:
        """What pixels between black and white become; ``None`` for a preprocessing of the user's own."""
        if not isinstance(self.preprocess, Preprocess):
            return None
        mean, std = (
            torch.tensor(v, device=self.device)[:, None, None] for v in (self.preprocess.mean, self.preprocess.std)
        )
        return Box(-mean / std, (self.preprocess.scale - mean) / std)

    def stages(self, shape: Sequence[int]) -> ConvBlocks:
        """The stages on inputs of one shape.

        Args:
            shape: ``(C, H, W)``.

        Returns:
            The stages.
        """
        key = tuple(shape)
        if key not in self._stages:
            self._stages[key] = find_conv_blocks(self.module, torch.zeros(1, *key, device=self.device))
        return self._stages[key]


@dataclass(frozen=True)
class Captured:
    """A batch of images on its way through the network.

    Attributes:
        batch: The images.
        stages: The network's stages at their size.
        inputs: Input of each wanted stage by name. Shape ``(N, M, *spatial)``.
    """

    batch: Batch
    stages: ConvBlocks
    inputs: dict[str, Tensor]

    def singly(self) -> Iterator[Captured]:
        """Each image by itself.

        Yields:
            Batches of one.
        """
        yield from self.pieces(1)

    def pieces(self, most: int) -> Iterator[Captured]:
        """The images, a few at a time.

        Args:
            most: How many.

        Yields:
            Batches.
        """
        count = len(self.batch.names)
        # where an axis that is not the batch (frames, patches) joins it, an image has several rows
        rows = {name: len(x) // count for name, x in self.inputs.items()}
        for i in range(0, count, most):
            inputs = {name: x[i * rows[name] : (i + most) * rows[name]] for name, x in self.inputs.items()}
            yield Captured(_piece(self.batch, i, most), self.stages, inputs)


@dataclass
class CapturedStream:
    """Images, and what chosen stages receive of them, batch by batch in constant memory.

    An image whose activations are not finite is skipped by name, like an unreadable one; the others go on.

    Attributes:
        network: The network.
        images: The images.
        names: Which stages' inputs are kept, given the stages.
        skipped: What the last pass, so far, left out.
    """

    network: Network
    images: ImageStream
    names: Callable[[ConvBlocks], Sequence[str]]
    skipped: list[SkippedImage] = field(default_factory=list)

    def __iter__(self) -> Iterator[Captured]:
        """Run through the images.

        Yields:
            Batches with their stage inputs.

        Raises:
            UnconvError: If no image is left, and one is needed.
        """
        unusable: list[SkippedImage] = []
        passed = 0
        for batch in self.images:
            most = self.network.room.most or len(batch.names)
            for i in range(0, len(batch.names), most):
                for part in self._capture(_piece(batch, i, most), unusable):
                    passed += len(part.batch.names)
                    self.skipped = [*self.images.skipped, *unusable]
                    yield part
        self.skipped = [*self.images.skipped, *unusable]
        if not passed and self.images.need_one:
            raise UnconvError(self.skipped[0].reason)

    def _capture(self, batch: Batch, unusable: list[SkippedImage]) -> Iterator[Captured]:
        try:
            stages = self.network.stages(batch.inputs.shape[1:])
            names = self.names(stages)
            inputs = capture(self.network.module, names, batch.inputs.to(self.network.device))
            _check_ends(stages, names, inputs)
        except UnconvError as error:
            reason, most = one_line(str(error)), 1
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            reason, most = TOO_LARGE, max(1, len(batch.names) // 2)
        else:
            yield Captured(batch, stages, inputs)
            return
        # here the error, which holds what was in memory, is gone
        if len(batch.names) == 1:
            unusable.append(SkippedImage(batch.names[0], reason))
            return
        if reason == TOO_LARGE:
            self.network.room.shrink(most)
        for i in range(0, len(batch.names), most):
            yield from self._capture(_piece(batch, i, most), unusable)


def _piece(batch: Batch, first: int, most: int) -> Batch:
    if first == 0 and most >= len(batch.names):
        return batch
    some = slice(first, first + most)
    return Batch(batch.names[some], batch.inputs[some], batch.indices[some])


def _check_ends(stages: ConvBlocks, names: Sequence[str], inputs: Mapping[str, Tensor]) -> None:
    # what the stages read is finite by now; what the last ones of each path make is read by none of them
    read = {stages.get(name).source for name in names}
    for name in names:
        stage = stages.get(name)
        if name not in read and not stage.activate(stage.preactivation(inputs[name])).isfinite().all():
            raise UnconvError(f"stage {name} makes NaN or infinite values of it; check the weights and preprocessing")


def first_stages(network: Network, images: ImageStream) -> ConvBlocks:
    """The stages at the size of the first image that the network can take.

    That is the first one on which every convolution is reached; where the first ``ENOUGH`` images have none, the one of
    them on which most are.

    Args:
        network: The network.
        images: The images, read up to that one.

    Returns:
        The stages.

    Raises:
        UnconvError: If the network takes none of the images; says why it does not take the first.
    """
    best: ConvBlocks | None = None
    refused: UnconvError | None = None
    seen = 0
    for batch in images:
        seen += len(batch.names)
        try:
            found = network.stages(batch.inputs.shape[1:])
        except UnconvError as error:
            refused = refused or error
            continue
        if best is None or len(found.blocks) > len(best.blocks):
            best = found
        if seen >= ENOUGH or not any(skipped.reason.startswith("not reached") for skipped in found.skipped):
            return best
    if best is None:
        assert refused is not None  # a stream without a single image raises by itself
        raise refused
    return best
