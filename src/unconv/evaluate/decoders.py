"""Trained decoders as files: which network each belongs to, and those of a network by conv block."""

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
    """A decoder of one conv block of a network, its file and what the file says of it."""

    file: Path
    card: Card
    decoder: WhatWhereDecoder

    def describe(self) -> dict[str, Any]:
        """Return which decoder that is, fit for JSON."""
        config = {name: value for name, value in self.card.config.items() if value is not None}
        return {"file": self.file.name, "layer": self.card.stage, "config": config}


def decoder_chain(blocks: ConvBlocks, name: str) -> tuple[ConvBlock, ...]:
    """Return the conv blocks from the image to the one whose code is decoded; UnconvError if there is no chain."""
    blocks.get(name)
    try:
        chain = chain_to_image(blocks, name)
    except UnconvError as error:
        reason = str(error).partition(", so")[0]
        raise UnconvError(f"{name} has no mirrored decoder: {reason}; use a conv block of a plain chain") from error
    if any(block.operator.dims != 2 for block in chain):
        raise UnconvError(f"{name} is not two-dimensional; what-where decoders give pictures")
    return chain


def encoder_sha256(network: Network, chain: Sequence[ConvBlock]) -> str:
    """Return the SHA-256 of the weights of a chain, so that what lies behind it does not matter."""
    state: dict[str, Tensor] = {}
    for block in chain:
        for path in (block.name, block.batch_norm):
            if path is not None:
                module = network.module.get_submodule(path)
                state |= {f"{path}.{name}": tensor.cpu() for name, tensor in module.state_dict().items()}
    return hash_state({name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")})


def preparation(network: Network) -> dict[str, Any]:
    """Return what a decoder has to know of a network's preprocessing: all but the sizes of images."""
    return {name: value for name, value in network.preprocess.describe().items() if name not in SIZES}


def open_decoder(file: str | Path, network: Network, chain: Sequence[ConvBlock]) -> WhatWhereDecoder:
    """Return the decoder in a file, on the network's device; UnconvError if it belongs to another network."""
    file = Path(file)
    decoder = load_decoder(file, chain, encoder_sha256(network, chain))
    theirs, ours = read_card(file).preprocessing, preparation(network)
    if theirs != ours:
        raise UnconvError(f"{file} was trained on images prepared as {theirs}, not as {ours}; see mean and std")
    return decoder.to(network.device)


def open_decoders(network: Network, blocks: ConvBlocks, files: Sequence[str | Path]) -> dict[str, OpenedDecoder]:
    """Return the decoders of a network by conv block, from files and from folders of which what fits is taken."""
    found: dict[str, OpenedDecoder] = {}
    for source in map(Path, files):
        for file in sorted(source.glob("*.safetensors")) if source.is_dir() else [source]:
            card = read_card(file)
            if card.stage in found:
                continue
            try:
                chain = decoder_chain(blocks, card.stage)
            except UnconvError:
                if source.is_dir():
                    continue
                raise
            if not source.is_dir() or encoder_sha256(network, chain) == card.encoder_sha256:
                found[card.stage] = OpenedDecoder(file, card, open_decoder(file, network, chain))
    return found
