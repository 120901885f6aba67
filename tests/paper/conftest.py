"""A tiny network with overlapping poolings, pictures for it, and a decoder of its first pooling."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from unconv.block_extraction import find_conv_blocks
from unconv.decode.what_where import Card, WhatWhereDecoder, decoder_bytes, mirror
from unconv.evaluate.decoders import decoder_chain, encoder_sha256, open_decoders, preparation
from unconv.evaluate.network import Network
from unconv.images import ImageStream
from unconv.paper.context import Context
from unconv.preprocessing import Preprocess


def build():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(8, 12, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(12, 12, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(12, 6, 3, padding=1),
    ).eval()


@pytest.fixture
def context(tmp_path):
    """Three 16x16 pictures; the weights reach all blocks but the last."""
    rng = np.random.default_rng(0)
    for i in range(3):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(tmp_path / f"{i}.png")
    preprocess = Preprocess(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    images = ImageStream(sorted(tmp_path.glob("*.png")), preprocess, 2)
    module = build().requires_grad_(False)
    blocks = find_conv_blocks(module, next(iter(images)).inputs[:1])
    return Context("tiny", Network(module, preprocess), images, blocks, ("0", "2", "5", "7"), (3, 16, 16))


@pytest.fixture
def decoder_file(context, tmp_path):
    """A decoder with random weights in a file."""
    chain = decoder_chain(context.blocks, "2")
    torch.manual_seed(0)
    card = Card("2", mirror(chain), encoder_sha256(context.network, chain), preparation(context.network), {"steps": 0})
    (tmp_path / "decoders").mkdir()
    file = tmp_path / "decoders" / "tiny-2.safetensors"
    file.write_bytes(decoder_bytes(WhatWhereDecoder(card.layers), card))
    return file


@pytest.fixture
def decoders(context, decoder_file):
    """That decoder by its block."""
    return open_decoders(context.network, context.blocks, [decoder_file])
