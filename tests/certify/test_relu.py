"""The bracket of a ReLU layer against dense matrices, and against pairs of inputs that try to break it."""

import pytest
import torch
from torch import nn

import cases
from unconv.block_extraction import find_conv_blocks
from unconv.certify.relu import relu_bracket
from unconv.errors import UsageError


def block_of(outputs=24, size=6, **options):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, outputs, 3, padding=1), nn.ReLU()).eval()
    return find_conv_blocks(net, torch.rand(1, 2, size, size)).get("0")


@pytest.fixture(scope="module")
def x():
    return torch.rand(1, 2, 6, 6, generator=torch.Generator().manual_seed(4))


def relu(block, x):
    return block.activate(block.preactivation(x)).flatten()


@pytest.mark.parametrize("whole", [1500, 0], ids=["whole", "Lanczos"])
def test_the_bracket_is_half_and_all_of_the_smallest_singular_value(x, whole):
    block = block_of()
    found = relu_bracket(block, x, whole=whole)
    matrix = block.operator.to(torch.float64).to_dense()
    on = block.to(torch.float64).preactivation(x.double()).flatten() > 0
    least = torch.linalg.svdvals(matrix[on])[-1].item()
    assert found.proven == (whole > 0)
    assert found.on == (int(on.sum()), int(on.sum()))
    assert found.upper == pytest.approx(least, rel=1e-3)
    assert found.lower == pytest.approx(least / 2, rel=1e-9) if whole else found.lower <= least / 2
    assert found.upper >= least * (1 - 1e-9)


@pytest.mark.parametrize("radius", [0.0, 0.02, 0.5])
def test_no_pair_of_inputs_breaks_it(x, radius):
    block = block_of(outputs=60).to(torch.float64)
    found = relu_bracket(block, x.double(), radius=radius)
    assert 0 < found.lower <= found.upper / 2 * (1 + 1e-9)
    if radius:
        assert found.on[0] < found.on[1]
    generator = torch.Generator().manual_seed(0)
    for trial in range(12):
        # descent on the ratio, over pairs of any distance whose middle is in the ball
        size = 10.0 ** (trial % 4 - 2)
        half = (size * torch.randn(x.shape, generator=generator)).double().requires_grad_()
        middle = torch.randn(x.shape, generator=generator).double().requires_grad_()
        best = torch.tensor(float("inf"))
        optimiser = torch.optim.Adam([half, middle], lr=0.02 * size)
        for _ in range(60):
            centre = x.double() + radius * middle / max(1.0, middle.detach().norm().item())
            moved = relu(block, centre + half) - relu(block, centre - half)
            ratio = moved.norm() / (2 * half).norm()
            best = torch.minimum(best, ratio.detach())
            optimiser.zero_grad()
            ratio.backward()
            optimiser.step()
        assert best >= found.lower


def test_with_too_few_units_on_inputs_have_the_same_output(x):
    found = relu_bracket(block_of(outputs=3), x)
    assert (found.lower, found.upper) == (0.0, 0.0)
    assert "have the same output" in str(found)
    assert found.on[1] < found.inputs


def test_wrong_arguments(x):
    with pytest.raises(UsageError, match="this bracket is of ReLU"):
        relu_bracket(find_conv_blocks(nn.Sequential(cases.conv(2), nn.GELU()).eval(), x).get("0"), x)
    with pytest.raises(UsageError, match="radius is -1"):
        relu_bracket(block_of(), x, radius=-1)
    with pytest.raises(UsageError, match="expected"):
        relu_bracket(block_of(), x[:, :1])
