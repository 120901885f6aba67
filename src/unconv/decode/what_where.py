"""The what-where decoder: an image from a conv block's pooled values and the switches of every pooling before it.

After Zhang, Lee and Lee, *Augmenting Supervised Neural Networks with Unsupervised Objectives for Large-scale Image
Classification* (ICML 2016): the encoder is a frozen network up to a block, the decoder its mirror image of 3x3
convolutions, unpooled by the encoder's switches. A decoder's file holds tensors and text only, and names its encoder.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from unconv.conv_block import ConvBlock
from unconv.errors import UnconvError, UsageError
from unconv.sparsity import AveragePool, Code

FORMAT = "unconv what-where decoder, 1"
MAKE_ONE = "make one with unconv train-decoder"


@dataclass(frozen=True)
class Mirrored:
    """The mirror image of one conv block: its name, channels of its code and of its input, its pooling in words."""

    stage: str  # the key in a decoder's file
    reads: int
    gives: int
    pooling: str


@dataclass(frozen=True)
class Card:
    """What a decoder's file says of it."""

    stage: str  # the conv block whose code it decodes
    layers: tuple[Mirrored, ...]  # its layers, from the code to the image
    encoder_sha256: str  # which weights the encoder has
    preprocessing: dict[str, Any]  # how the images were prepared, as describe says it, without sizes
    config: dict[str, Any]  # how it was trained


def mirror(chain: Sequence[ConvBlock]) -> tuple[Mirrored, ...]:
    """Return the decoder's layers, from the code to the image, for blocks that read one another, the image's first."""
    return tuple(
        Mirrored(block.name, block.code_shape[0], block.input_shape[0], str(block.pooling or ""))
        for block in reversed(chain)
    )


def encode_chain(chain: Sequence[ConvBlock], images: Tensor) -> tuple[Code, ...]:
    """Return the code of every block of a chain, its values being the next block's input."""
    codes: list[Code] = []
    for block in chain:
        codes.append(block.encode(codes[-1].values if codes else images))
    return tuple(codes)


def unpool(values: Tensor, code: Code) -> Tensor:
    """Return values of the shape of a code's, put where its switches say; values that share a place add up."""
    if isinstance(code.pooling, AveragePool):
        return code.pooling.adjoint(values, code.shape[1:])
    if code.switches is None:
        return values
    flat = values.new_zeros(*values.shape[:2], math.prod(code.shape[1:]))
    return flat.scatter_add(2, code.switches.flatten(2), values.flatten(2)).unflatten(2, code.shape[1:])


class WhatWhereDecoder(nn.Module):
    """Unpooling, a 3x3 convolution, batch norm and ReLU per block; a convolution alone gives the image.

    Where a block has shrunk its input otherwise than by pooling (stride, missing padding), nearest neighbours bring
    the size back. The image is the last convolution's output times ``spread`` plus ``centre``, so that training
    does not depend on the unit of pixels.
    """

    centre: Tensor
    spread: Tensor

    def __init__(self, layers: Sequence[Mirrored]) -> None:
        """Make a decoder with random weights; ``layers`` are those of ``mirror``."""
        super().__init__()
        self.layers = tuple(layers)
        self.blocks = nn.ModuleList()
        for number, layer in enumerate(self.layers):
            last = number == len(self.layers) - 1
            convolution = nn.Conv2d(layer.reads, layer.gives, 3, padding=1, bias=last)
            rest = () if last else (nn.BatchNorm2d(layer.gives), nn.ReLU(inplace=True))
            self.blocks.append(nn.Sequential(convolution, *rest))
        self.register_buffer("centre", torch.zeros(self.layers[-1].gives))
        self.register_buffer("spread", torch.ones(()))

    def forward(self, values: Tensor, codes: Sequence[Code], size: Sequence[int]) -> Tensor:
        """Return images of a height and width from values in place of the last code's; of ``codes`` only switches."""
        sizes = [tuple(size), *(tuple(code.values.shape[2:]) for code in codes[:-1])]
        h = values
        for block, code, before in zip(self.blocks, reversed(codes), reversed(sizes), strict=True):
            h = unpool(h, code)
            if tuple(h.shape[2:]) != before:
                h = F.interpolate(h, before)
            h = block(h)
        return self.centre[:, None, None] + self.spread * h


def decoder_bytes(decoder: WhatWhereDecoder, card: Card) -> bytes:
    """Return a decoder and its card as the bytes of a safetensors file."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in decoder.state_dict().items()}
    metadata = {
        "format": FORMAT,
        "stage": card.stage,
        "architecture": json.dumps([asdict(layer) for layer in card.layers]),
        "encoder_sha256": card.encoder_sha256,
        "images": json.dumps(card.preprocessing),
        "config": json.dumps(card.config),
    }
    return save(state, metadata)


def read_card(file: Path) -> Card:
    """Return what a decoder's file says of it; UsageError without such a file, UnconvError if it is no decoder."""
    return _read(file)[0]


def load_decoder(file: Path, chain: Sequence[ConvBlock], encoder_sha256: str) -> WhatWhereDecoder:
    """The decoder of a chain of blocks, read without running any code from its file."""
    card, state = _read(file)
    wanted = chain[-1].name
    if card.stage != wanted:
        raise UnconvError(f"{file} decodes {card.stage}, not {wanted}; {MAKE_ONE} for {wanted}")
    if card.encoder_sha256 != encoder_sha256 or card.layers != mirror(chain):
        raise UnconvError(
            f"{file} belongs to another network (SHA-256 of its encoder {card.encoder_sha256[:12]}, of this one "
            f"{encoder_sha256[:12]}); {MAKE_ONE} for {wanted} of this one"
        )
    decoder = WhatWhereDecoder(card.layers)
    expected = decoder.state_dict()
    if {name: tensor.shape for name, tensor in state.items()} != {name: t.shape for name, t in expected.items()}:
        raise UnconvError(f"{file} does not hold the tensors of its own architecture; {MAKE_ONE}")
    if not all(bool(torch.isfinite(tensor).all()) for tensor in state.values()):
        raise UnconvError(f"{file} holds NaN or infinite values; {MAKE_ONE} at a lower rate")
    decoder.load_state_dict(dict(state))
    return decoder.eval().requires_grad_(False)


def _read(file: Path) -> tuple[Card, Mapping[str, Tensor]]:
    if not file.is_file():
        raise UsageError(f"no decoder {file}; {MAKE_ONE}")
    try:
        with safe_open(file, framework="pt", device="cpu") as opened:
            metadata = opened.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise UnconvError(f"{file} is no what-where decoder; {MAKE_ONE}")
            state = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (no mapping)
        card = Card(
            metadata["stage"],
            tuple(Mirrored(**layer) for layer in json.loads(metadata["architecture"])),
            metadata["encoder_sha256"],
            json.loads(metadata["images"]),
            json.loads(metadata["config"]),
        )
    except UnconvError:
        raise
    except Exception as error:
        # safetensors, json and the classes above each raise their own kinds on a damaged file
        raise UnconvError(f"{file} is no readable decoder ({type(error).__name__}: {error}); {MAKE_ONE}") from error
    return card, state
