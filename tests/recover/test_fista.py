"""FISTA against the lasso of scikit-learn, and the duality gap against the true distance from the optimum."""

import pytest
import torch
from tests.recover.conftest import lasso, of_columns

from cases import draw
from unconv.recover import fista
from unconv.testing import MatrixOperator


def objective(matrix, x, z, weight):
    return (x - z @ matrix.T).square().sum(1) / 2 + weight * z.abs().sum(1)


@pytest.mark.parametrize("shape", [(30, 60), (40, 20)], ids=["wide", "tall"])
def test_minimisers_are_those_of_scikit_learn(shape):
    matrix, x = draw(*shape), draw(3, shape[0], seed=1)
    weight = torch.tensor([0.5, 3.0, 10.0], dtype=torch.float64)
    found = fista(of_columns(matrix), x, weight=weight, tolerance=1e-11, max_steps=5000)
    assert set(found.status) == {"converged"}
    for row in range(3):
        expected = lasso(matrix, x[row], weight[row].item())
        assert torch.allclose(found.value.code.dense()[row], expected, atol=1e-5)


@pytest.mark.parametrize("steps", [1, 3, 10, 30])
def test_the_gap_is_no_less_than_the_distance_from_the_optimum(steps):
    matrix, x, weight = draw(30, 60), draw(4, 30, seed=1), 2.0
    optimum = torch.stack([objective(matrix, row[None], lasso(matrix, row, weight)[None], weight)[0] for row in x])
    found = fista(of_columns(matrix), x, weight=weight, tolerance=0, max_steps=steps)
    reached = objective(matrix, x, found.value.code.dense(), weight)
    gap = found.residual * x.square().sum(1) / 2
    assert (reached - optimum <= gap * (1 + 1e-9)).all()
    assert (found.history.diff(dim=0) <= 0).all()
    assert found.status == ("max_steps",) * 4


def test_inputs_do_not_meet_and_units_do_not_matter():
    operator = MatrixOperator(draw(60, 30))
    x = draw(4, 30, seed=1) * torch.tensor([1e-3, 1.0, 0.0, 1e3]).double()[:, None]
    found = fista(operator, x, tolerance=1e-7)
    assert set(found.status) == {"converged"}
    assert (found.value.code.dense()[2] == 0).all()
    for row in (0, 1, 3):
        size = x[row].norm()
        alone, unit = (fista(operator, x[row : row + 1] / s, tolerance=1e-7).value.code.dense()[0] for s in (1, size))
        assert torch.allclose(alone, found.value.code.dense()[row], atol=1e-9 * float(size))
        assert torch.allclose(unit, found.value.code.dense()[row] / size, atol=1e-7)
