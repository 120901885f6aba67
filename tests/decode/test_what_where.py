"""The what-where decoder: unpooling against torch's own, the mirrored shapes, and files that name their encoder."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from unconv.block_extraction import find_conv_blocks
from unconv.decode.what_where import (
    Card,
    WhatWhereDecoder,
    decoder_bytes,
    encode_chain,
    load_decoder,
    mirror,
    read_card,
    unpool,
)
from unconv.errors import UnconvError, UsageError
from unconv.sparsity import Pooled, Window


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 5, stride=2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(6, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 4, 1),
        nn.AvgPool2d(2),
    ).eval()


@pytest.fixture
def chain():
    return tuple(find_conv_blocks(network(), torch.zeros(1, 3, 41, 43)))


@pytest.fixture
def x():
    return torch.randn(2, 3, 41, 43, generator=torch.Generator().manual_seed(1))


def card(chain, sha256="a" * 64):
    return Card(chain[-1].name, mirror(chain), sha256, {"std": [1, 1, 1]}, {"steps": 1})


def test_unpooling_is_the_adjoint_of_reading_at_the_switches(x):
    code = Pooled(Window.of(2, 3, stride=2), signed=True).project(x)
    values, other = (torch.randn(s, generator=torch.Generator().manual_seed(3)) for s in (code.values.shape, x.shape))
    read = other.flatten(2).gather(2, code.switches.flatten(2)).reshape(values.shape)
    assert (unpool(values, code) * other).sum() == pytest.approx((values * read).sum().item(), rel=1e-4)


def test_every_layer_learns_and_the_image_has_its_size(chain, x):
    decoder = WhatWhereDecoder(mirror(chain))
    assert [(layer.reads, layer.gives) for layer in decoder.layers] == [(4, 8), (8, 6), (6, 3)]
    codes = encode_chain(chain, x)
    decoded = decoder(codes[-1].values, codes, x.shape[2:])
    assert decoded.shape == x.shape
    F.mse_loss(decoded, x).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in decoder.parameters())


def test_a_file_gives_the_same_decoder_back(chain, x, tmp_path):
    decoder = WhatWhereDecoder(mirror(chain))
    decoder.centre.copy_(torch.tensor([1.0, 2.0, 3.0]))
    decoder.spread.fill_(7.0)
    codes = encode_chain(chain, x)
    decoder(codes[-1].values, codes, x.shape[2:])  # moves the batch norms' statistics
    (tmp_path / "d.safetensors").write_bytes(decoder_bytes(decoder, card(chain)))
    again = load_decoder(tmp_path / "d.safetensors", chain, "a" * 64)
    size = x.shape[2:]
    assert torch.equal(again(codes[-1].values, codes, size), decoder.eval()(codes[-1].values, codes, size))
    assert read_card(tmp_path / "d.safetensors") == card(chain)
    with safe_open(tmp_path / "d.safetensors", "pt") as file:
        assert {"stage", "architecture", "encoder_sha256", "config"} <= set(file.metadata())


def test_other_networks_stages_and_files_are_refused(chain, tmp_path):
    file = tmp_path / "d.safetensors"
    with pytest.raises(UsageError, match="no decoder"):
        read_card(file)
    file.write_bytes(decoder_bytes(WhatWhereDecoder(mirror(chain)), card(chain)))
    with pytest.raises(UnconvError, match="another network"):
        load_decoder(file, chain, "b" * 64)
    with pytest.raises(UnconvError, match="decodes 7, not 3"):
        load_decoder(file, chain[:2], "a" * 64)
    wider = (dataclasses.replace(chain[0], pooling=None), *chain[1:])
    with pytest.raises(UnconvError, match="another network"):
        load_decoder(file, wider, "a" * 64)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UnconvError, match="no readable decoder"):
        read_card(file)
    save_file({"a": torch.zeros(1)}, file)
    with pytest.raises(UnconvError, match="no what-where decoder"):
        read_card(file)


def test_tensors_that_do_not_fit_their_card_are_refused(chain, tmp_path):
    file = tmp_path / "d.safetensors"
    file.write_bytes(decoder_bytes(WhatWhereDecoder(mirror(chain[:2])), card(chain)))
    with pytest.raises(UnconvError, match="its own architecture"):
        load_decoder(file, chain, "a" * 64)
    decoder = WhatWhereDecoder(mirror(chain))
    decoder.spread.fill_(float("nan"))
    file.write_bytes(decoder_bytes(decoder, card(chain)))
    with pytest.raises(UnconvError, match="NaN"):
        load_decoder(file, chain, "a" * 64)
