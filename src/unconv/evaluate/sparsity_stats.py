"""Shares of non-zeros over a stream of images, block by block, in integers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from unconv.conv_block import ConvBlock
from unconv.errors import UnconvError
from unconv.evaluate.batch_size import TOO_LARGE, is_out_of_memory
from unconv.evaluate.network import Captured, CapturedStream, Network
from unconv.evaluate.shards import nothing_left
from unconv.images import ImageStream
from unconv.inversion.methods import fitting_region
from unconv.measure.sparsity import SparsityStatistics, NonZeros, BlockSparsity, k_from
from unconv.sparsity import Window

IMPOSED = "imposed "
Progress = Callable[[str, int], None]


def activity_over(
    stream: CapturedStream, names: Sequence[str], region: int | None, progress: Progress
) -> tuple[SparsityStatistics, tuple[int, ...]]:
    """Share of non-zeros of each stage over a stream, in constant memory.

    Args:
        stream: Images with the inputs of the stages.
        names: The stages.
        region: Where given, stages without pooling are also counted behind an imposed pooling of this side,
            under ``IMPOSED`` and their name.
        progress: As for ``survey``.

    Returns:
        The counts, and the shape of the first image.
    """
    activity = SparsityStatistics()
    shape: tuple[int, ...] = ()
    for captured in stream:
        shape = shape or tuple(captured.batch.inputs.shape[1:])
        activity.merge(_activity(stream.network, captured, names, region))
        for name in names:
            progress(f"counting {name}", len(captured.batch.names))
    return activity, shape


def _activity(network: Network, captured: Captured, names: Sequence[str], region: int | None) -> SparsityStatistics:
    activity = SparsityStatistics()
    try:
        for name in names:
            stage = captured.stages.get(name)
            activated = stage.activate(stage.preactivation(captured.inputs[name]))
            activity.update(name, activated, None if stage.pooling is None else stage.pool(activated).values)
            fitting = None if region is None else fitting_region(stage, region)
            if fitting is not None:
                imposed = stage.with_region(fitting).pool(activated)
                activity.update(IMPOSED + name, activated, imposed.values)
        return activity
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    count = len(captured.batch.names)
    if count == 1:
        raise UnconvError(f"{captured.batch.names[0]}: {TOO_LARGE}")
    network.room.shrink(max(1, count // 2))
    activity = SparsityStatistics()
    for piece in captured.pieces(max(1, count // 2)):
        activity.merge(_activity(network, piece, names, region))
    return activity


def paper_k(stage: ConvBlock, fraction: float) -> int:
    """The ``k`` of the paper's code of a stage, from the measured share of non-zero regions.

    Args:
        stage: The stage with the pooling that the code has.
        fraction: Share of regions with a non-zero value, 0 to 1.

    Returns:
        ``k``, at least 1.
    """
    spatial = stage.operator.output_shape[1:]
    pooled = stage.pooling.pooled_shape(spatial) if isinstance(stage.pooling, Window) else spatial
    return k_from(fraction, stage.operator.output_shape[0] * math.prod(pooled))


def count_block(
    network: Network, images: ImageStream, names: Sequence[str], region: int | None, progress: Progress
) -> dict[str, Any]:
    """Share of non-zeros over the images of a block, in integers.

    Args:
        network: The network.
        images: The images.
        names: The stages.
        region: As for ``activity_over``.
        progress: As for ``survey``.

    Returns:
        For ``merged_counts``.
    """
    stream = CapturedStream(network, images, lambda _: names)
    activity, shape = activity_over(stream, names, region, progress)
    counts = {
        name: {"activation": asdict(counted.activation), "pooled": asdict(counted.pooled)}
        for name, counted in activity.stages.items()
    }
    return {"shape": list(shape), "counts": counts, "skipped": [asdict(s) for s in stream.skipped]}


def merged_counts(images: ImageStream, parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Shares over all blocks; integers are added, so they do not depend on who has counted what.

    Args:
        images: All images.
        parts: From ``count_block``, in order.

    Returns:
        ``{"shape", "fractions", "skipped"}``: the shape of the first image, shares by stage, images left out.

    Raises:
        UnconvError: If no image is left.
    """
    activity = SparsityStatistics()
    for part in parts:
        counted = {
            name: BlockSparsity(NonZeros(**counts["activation"]), NonZeros(**counts["pooled"]))
            for name, counts in part["counts"].items()
        }
        activity.merge(SparsityStatistics(counted))
    skipped = [image for part in parts for image in part["skipped"]]
    shapes = [part["shape"] for part in parts if part["shape"]]
    if not shapes:
        raise UnconvError(nothing_left(images, skipped))
    fractions = {
        name: {"activation": counted.activation.fraction, "pooled": counted.pooled.fraction}
        for name, counted in activity.stages.items()
    }
    return {"shape": shapes[0], "fractions": fractions, "skipped": skipped}
