"""Bidiagonalisation against dense singular values."""

import torch

from cases import draw
from unconv.solvers.lanczos import bidiagonalise


def test_with_a_basis_all_singular_values_are_found():
    matrix, start = draw(15, 9), draw(1, 9, seed=1)
    basis = torch.empty(9, 9, dtype=torch.float64)
    steps = bidiagonalise(lambda v: v @ matrix.T, lambda u: u @ matrix, start / start.norm(), max_steps=9, basis=basis)
    *_, last = steps
    assert torch.allclose(torch.linalg.svdvals(last.matrix()), torch.linalg.svdvals(matrix))
    assert torch.allclose(basis @ basis.T, torch.eye(9, dtype=torch.float64), atol=1e-12)
