"""The paper's decoder by itself: what it is rescaled to, and codes without a direction."""

import torch

from unconv.decode.transpose import transpose
from unconv.linalg import norms
from unconv.operators import ConvOperator
from unconv.sparsity import Pooled

torch.manual_seed(0)
W = ConvOperator(torch.randn(6, 3, 3, 3), (3, 8, 8), padding=1)
X = torch.randn(2, 3, 8, 8)


def test_rescaled_it_keeps_its_direction():
    code = Pooled(2, 20).project(W.forward(X))
    plain, scaled = transpose(W, code), transpose(W, code, norm=norms(X))
    torch.testing.assert_close(norms(scaled), norms(X))
    torch.testing.assert_close(scaled / norms(scaled)[:, None, None, None], plain / norms(plain)[:, None, None, None])


def test_a_code_of_zeros_gives_zero():
    code = Pooled(2, 20).project(W.forward(X) * torch.tensor([0.0, 1.0])[:, None, None, None])
    found = transpose(W, code, norm=norms(X))
    assert not found[0].any()
    torch.testing.assert_close(norms(found)[1], norms(X)[1])
