from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import cases
from unconv.block_extraction import find_conv_blocks
from unconv.errors import UnconvError, UsageError
from unconv.sparsity import AveragePool, Window
from unconv.tracing import capture_inputs

X = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_gaussian_filters_have_unit_norm_and_depend_on_seed_and_name_only():
    first, second, _ = find_conv_blocks(nn.Sequential(cases.conv(3, 50, 5), cases.conv(50, 60), cases.conv(60, 2)), X)
    drawn = first.with_gaussian(7)
    assert drawn.bias is None
    assert abs(drawn.operator.weight.flatten(1).norm(dim=1).mean() - 1) < 0.05
    assert torch.equal(drawn.operator.weight, first.with_gaussian(7).operator.weight)
    assert not torch.equal(drawn.operator.weight, first.with_gaussian(8).operator.weight)
    other = second.with_gaussian(7).operator.weight
    assert not torch.equal(drawn.operator.weight.flatten()[:75], other.flatten()[:75])


def test_an_imposed_region():
    blocks = find_conv_blocks(cases.shake(nn.Sequential(cases.conv(3, 6), nn.BatchNorm2d(6), nn.ReLU())), X)
    block = blocks.get("0")
    pooled = block.with_region(2)
    assert (pooled.pooling, pooled.code_shape, pooled.kind) == (Window.of(2, 2), (6, 8, 8), "conv+bn+relu+maxpool")
    torch.testing.assert_close(pooled.encode(X).values, F.max_pool2d(block.encode(X).values, 2))
    with pytest.raises(UnconvError, match=r"conv block 0 \(conv\+bn\+relu\+maxpool\) pools already"):
        pooled.with_region(2)
    with pytest.raises(UnconvError, match=r"region 17 does not fit conv block 0: map .* is smaller"):
        block.with_region(17)


def test_codes_carry_what_decoding_needs():
    model = nn.Sequential(cases.conv(), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(4, 4, 1))
    blocks = find_conv_blocks(model, X)
    inputs = capture_inputs(model, ["0", "3"], X)
    averaged, plain = (blocks.get(name).encode(inputs[name]) for name in ("0", "3"))
    assert isinstance(averaged.pooling, AveragePool)
    assert averaged.shape == (4, 16, 16)
    assert (plain.pooling, plain.switches) == (None, None)
    assert repr(blocks.get("0")) == "ConvBlock(0: conv+relu+avgpool, (3, 16, 16) -> (4, 8, 8))"
    assert repr(blocks).splitlines()[:2] == [f"ConvBlocks({len(blocks)} conv blocks)", f"  {blocks.get('0')}"]


def test_a_block_goes_to_another_type_with_all_its_parts():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.PReLU(4, init=0.3))
    block = find_conv_blocks(model, X).get("0").to(torch.float64)
    assert (block.kind, block.bias.dtype) == ("conv+prelu", torch.float64)
    torch.testing.assert_close(block.encode(X.double()).values, model.double()(X.double()).detach())


def test_blocks_go_by_the_name_of_their_convolution_and_of_their_end():
    model = nn.Sequential(
        nn.Conv2d(3, 3, 1),
        nn.ReLU(),
        nn.ConvTranspose2d(3, 3, 1),
        nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)),
    )
    blocks = find_conv_blocks(model, X)
    assert blocks.names == ("0", "3.0", "3.1")
    assert [block.output for block in blocks] == ["1", "3.0", "3.1"]
    assert blocks.get("1") is blocks.get("0")
    for name, message in {
        "x": r"there is no conv block 'x'; use one such as 0, 3\.0, 3\.1$",
        "2": "'2' is no conv block: transposed convolution",
        "3": r"^'3' is no conv block, but a module with some; use one of 3\.0, 3\.1$",
    }.items():
        with pytest.raises(UsageError, match=message):
            blocks.get(name)
