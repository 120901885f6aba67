"""Normalised IHT: descent without a step size, and the step of Blumensath and Davies."""

import torch
from tests.recover.conftest import of_columns

from cases import draw
from unconv.operators import ConvOperator
from unconv.recover import iht, niht
from unconv.recover.greedy import Iterate
from unconv.recover.niht import normalised_step
from unconv.sparsity import Pooled, TopK


def test_the_residual_never_rises_where_iht_of_unit_step_diverges():
    operator = ConvOperator(draw(8, 4, 3), (4, 12))
    x = draw(5, 4, 12, seed=2)
    model = Pooled(2, k=9)
    found = niht(operator, x, model, max_steps=60)
    assert (found.history.diff(dim=0) <= 1e-12).all()
    assert (iht(operator, x, model, steps=5).history[-1] > 1).all()


def test_on_an_unchanged_support_the_step_is_the_exact_line_search():
    matrix = draw(30, 12)
    operator = of_columns(matrix)
    z = torch.zeros(1, 12, dtype=torch.float64)
    z[0, :3] = torch.tensor([50.0, -60.0, 70.0])
    x = z @ matrix.T + draw(1, 30, seed=1)
    moved = z + 0.5 * (z != 0)
    model = TopK(3)
    now = Iterate.of(operator, x, model.project(moved))
    following = normalised_step(operator, x, model, now, torch.ones(1, dtype=torch.bool))
    gradient = (now.residual @ matrix) * (z != 0)
    length = gradient.square().sum() / (gradient @ matrix.T).square().sum()
    assert torch.allclose(following.z, moved + length * gradient)
