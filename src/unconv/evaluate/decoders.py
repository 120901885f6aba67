"""Trained decoders as files: which network each belongs to, and those of a network by the stage that they decode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from unconv.checkpoint import hash_state
from unconv.conv_block import ConvBlock, ConvBlocks
from unconv.decode.what_where import Card, WhatWhereDecoder, load_decoder, read_card
from unconv.errors import UnconvError
from unconv.evaluate.network import Network
from unconv.inversion.chain import chain_to_image

SIZES = ("resize", "crop", "interpolation")


@dataclass(frozen=True)
class OpenedDecoder:
    """A decoder of one stage of the network under study.

    Attributes:
        file: Its file.
        card: What the file says of it.
        decoder: The decoder.
    """

    file: Path
    card: Card
    decoder: WhatWhereDecoder

    def describe(self) -> dict[str, Any]:
        """Which decoder that is, fit for JSON."""
        config = {name: value for name, value in self.card.config.items() if value is not None}
        return {"file": self.file.name, "stage": self.card.stage, "config": config}


def decoder_chain(stages: ConvBlocks, name: str) -> tuple[ConvBlock, ...]:
    """The encoder of a stage's decoder.

    Args:
        stages: The stages of a network.
        name: The stage whose code is decoded.

    Returns:
        The stages from the image to it.

    Raises:
        UsageError: If there is no such stage.
        UnconvError: If no plain chain of two-dimensional stages leads there.
    """
    stages.get(name)
    try:
        chain = chain_to_image(stages, name)
    except UnconvError as error:
        said = str(error).partition(", so")[0]
        raise UnconvError(f"stage {name} has no mirrored decoder: {said}; use a stage of a plain chain") from error
    if any(stage.operator.dims != 2 for stage in chain):
        raise UnconvError(f"stage {name} is not two-dimensional; what-where decoders give pictures")
    return chain


def encoder_sha256(network: Network, chain: Sequence[ConvBlock]) -> str:
    """SHA-256 of the weights of a chain of stages, so that what lies behind the stage does not matter.

    Args:
        network: The network.
        chain: Some of its stages.

    Returns:
        The hash of their convolutions and batch norms, by name.
    """
    state: dict[str, Tensor] = {}
    for stage in chain:
        for path in (stage.name, stage.batch_norm):
            if path is not None:
                module = network.module.get_submodule(path)
                state |= {f"{path}.{name}": tensor.cpu() for name, tensor in module.state_dict().items()}
    return hash_state({name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")})


def preparation(network: Network) -> dict[str, Any]:
    """What a decoder has to know of a network's preprocessing: all but the sizes of images.

    Args:
        network: The network.

    Returns:
        JSON's types only.
    """
    return {name: value for name, value in network.preprocess.describe().items() if name not in SIZES}


def open_decoder(file: str | Path, network: Network, chain: Sequence[ConvBlock]) -> WhatWhereDecoder:
    """The decoder in a file, on the network's device, if it belongs to these stages of this network.

    Args:
        file: The file.
        network: The network.
        chain: From ``decoder_chain``.

    Returns:
        The decoder.

    Raises:
        UsageError: If there is no such file.
        UnconvError: If it is the decoder of another network, another stage or other preprocessing.
    """
    file = Path(file)
    decoder = load_decoder(file, chain, encoder_sha256(network, chain))
    theirs, ours = read_card(file).preprocessing, preparation(network)
    if theirs != ours:
        raise UnconvError(f"{file} was trained on images prepared as {theirs}, not as {ours}; see --mean and --std")
    return decoder.to(network.device)


def open_decoders(
    network: Network, stages: ConvBlocks, given: Sequence[Path], folder: Path
) -> dict[str, OpenedDecoder]:
    """The decoders of a network's stages: those given, and those of a folder that belong to it.

    Args:
        network: The network.
        stages: Its stages.
        given: Files; each must belong to the network.
        folder: Where further ones may lie; those of other networks are passed over.

    Returns:
        Decoders by the stage whose code they decode.

    Raises:
        UsageError: If a given file does not exist, or names a stage that the network does not have.
        UnconvError: If a given file is no decoder, or the decoder of another network.
    """
    found: dict[str, OpenedDecoder] = {}
    for file in (*given, *sorted(folder.glob("*.safetensors"))):
        card = read_card(file)
        if card.stage in found:
            continue
        if file not in given and not _belongs(network, stages, card):
            continue
        chain = decoder_chain(stages, card.stage)
        found[card.stage] = OpenedDecoder(file, card, open_decoder(file, network, chain))
    return found


def _belongs(network: Network, stages: ConvBlocks, card: Card) -> bool:
    try:
        chain = decoder_chain(stages, card.stage)
    except UnconvError:
        return False
    return encoder_sha256(network, chain) == card.encoder_sha256
