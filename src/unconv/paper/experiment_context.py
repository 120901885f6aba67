"""What an experiment runs on: a network, the stages that its weights reach, and images."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from unconv.conv_block import ConvBlock, ConvBlocks
from unconv.evaluate.network import Network
from unconv.evaluate.sparsity_stats import Progress
from unconv.images import ImageStream
from unconv.inversion.methods import coded_stage, fitting_region


def silent(what: str, units: int) -> None:
    """No progress bar.

    Args:
        what: What has been done.
        units: How much.
    """


@dataclass(frozen=True)
class Subject:
    """A network to reproduce the paper's experiments on.

    Attributes:
        model: Its name, for the notes.
        network: The network.
        names: The stages that the weights reach, in execution order.
        images: Its images.
        shape: Shape of the first image as the network receives it, ``(C, H, W)``.
        region: Side of the pooling that is imposed on a stage without one.
        seed: Seed of Gaussian filters, random codes and random activations.
        progress: Called with what has been done and how many units of work that was.
    """

    model: str
    network: Network
    names: tuple[str, ...]
    images: ImageStream
    shape: tuple[int, ...]
    region: int = 2
    seed: int = 0
    progress: Progress = silent

    @property
    def stages(self) -> ConvBlocks:
        """All stages at the size of the first image, also those without weights."""
        return self.network.stages(self.shape)

    def with_progress(self, progress: Callable[[str, int], None]) -> Subject:
        """The same with a progress bar.

        Args:
            progress: The bar's function.

        Returns:
            The subject.
        """
        return replace(self, progress=progress)

    def pooled(self, stage: ConvBlock) -> ConvBlock:
        """A stage with its own pooling, or with the imposed one where it has none and its map is large enough.

        Args:
            stage: A stage of the network.

        Returns:
            The stage.
        """
        return coded_stage(stage, "network", fitting_region(stage, self.region))


def blocks(stages: Iterable[ConvBlock]) -> dict[str, tuple[int, int]]:
    """The paper's numbering: ``conv(i,j)`` is the ``j``-th convolution of block ``i``, which a pooling ends.

    Args:
        stages: ConvBlocks in execution order.

    Returns:
        ``(i, j)`` by name of the stage.
    """
    block, place, found = 1, 0, {}
    for stage in stages:
        place += 1
        found[stage.name] = (block, place)
        if stage.pooling is not None:
            block, place = block + 1, 0
    return found


def label(block: tuple[int, int]) -> str:
    """``(1, 2)`` as ``"c12"``.

    Args:
        block: Block and place.

    Returns:
        The label of Table 2; with a dot between numbers of more than one digit.
    """
    return f"c{block[0]}{'.' if max(block) > 9 else ''}{block[1]}"
