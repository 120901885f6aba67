"""Coherence by brute force, and the paper's row at both labellings."""

import pytest
import torch

from unconv.paper import table4


def test_coherence(context):
    result = table4.run(context)
    weight = context.network.module[2].weight.flatten(1)
    unit = weight / weight.norm(dim=1, keepdim=True)
    gram = (unit @ unit.T).fill_diagonal_(-torch.inf)
    found = result["ours"]["c12"]["learned"]
    assert found["signed"] == pytest.approx(gram.max().item(), abs=1e-5)
    assert found["signed"] <= found["absolute"] <= found["shifted"]
