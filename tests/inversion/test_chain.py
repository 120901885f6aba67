import pytest
import torch
from torch import nn

import cases
from unconv.block_extraction import find_conv_blocks
from unconv.errors import UnconvError
from unconv.inversion.chain import chain_to_image, decode_chain, follow
from unconv.linalg import relative_norm
from unconv.tracing import capture_inputs


def two_blocks():
    """Blocks that keep more numbers than they read."""
    torch.manual_seed(0)
    return nn.Sequential(cases.conv(2, 12), nn.ReLU(), cases.conv(12, 40), nn.ReLU()).double()


def test_each_estimate_is_the_code_of_the_block_before():
    model, x = two_blocks(), torch.rand(2, 2, 6, 6, dtype=torch.float64)
    chain = chain_to_image(find_conv_blocks(model, x[:1]), "2")
    assert [block.name for block in chain] == ["0", "2"]
    trail = follow(chain, capture_inputs(model, ["0", "2"], x))
    torch.testing.assert_close(trail["2"][0].values, model(x))
    solution = decode_chain(chain, trail, "min-norm", side_info="gates")
    assert solution.value.shape == x.shape
    assert relative_norm(solution.value - x, x).max() < 0.05
    guess = decode_chain(chain, trail, "transpose")
    assert relative_norm(guess.value - x, x).max() < 1  # scaled to fit the codes, without the true norm


def test_sums_of_branches_are_no_chain():
    blocks = find_conv_blocks(cases.residual(), torch.rand(1, 3, 6, 6))
    with pytest.raises(UnconvError, match="no chain of blocks back to the image"):
        chain_to_image(blocks, "head")
