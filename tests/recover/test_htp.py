"""Hard thresholding pursuit: least squares on every support, and an end after finitely many."""

import torch
from tests.recover.conftest import of_columns

from cases import draw
from unconv.recover import htp
from unconv.sparsity import TopK


def test_values_are_the_least_squares_fit_on_the_support():
    matrix = draw(20, 40)
    x = draw(6, 20, seed=1)
    found = htp(of_columns(matrix), x, TopK(4), tolerance=1e-10)
    for row, z in zip(x, found.value.code.dense(), strict=True):
        support = z != 0
        assert support.sum() == 4
        expected = torch.linalg.lstsq(matrix[:, support], row[:, None]).solution[:, 0]
        assert torch.allclose(z[support], expected, atol=1e-8)
