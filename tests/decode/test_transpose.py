"""The paper's decoder by itself: what it is rescaled to, and codes without a direction."""

import pytest
import torch
from torch import nn

from cases import draw
from unconv.block_extraction import find_conv_blocks
from unconv.decode.block_input import decode_block
from unconv.decode.transpose import transpose


@pytest.mark.parametrize("pool", [nn.Identity(), nn.MaxPool2d(2), nn.AvgPool2d(2)])
def test_the_scale_is_the_one_that_fits_the_code_and_needs_no_norm(pool):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), pool).double().eval()
    x = draw(2, 3, 8, 8)
    block = find_conv_blocks(net, x).get("0")
    code = block.encode(x)
    found = decode_block(block, code, "transpose").value
    plain = transpose(block.operator, code)
    # by hand: W x^ at the places that the pooling took, fitted to the code without its bias
    answer = net[0](plain) - net[0](torch.zeros_like(plain))
    seen = pool(answer) if code.switches is None else answer.flatten(2).gather(2, code.switches.flatten(2))
    given = code.values - net[0].bias[:, None, None]
    for best, a, z, y in zip(found, seen.flatten(1), given.flatten(1), plain, strict=True):
        scale = torch.linalg.lstsq(a[:, None], z[:, None]).solution
        torch.testing.assert_close(best, scale * y)
