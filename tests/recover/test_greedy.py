"""What NIHT, HTP and CoSaMP have in common: the conformance suite, OMP, exhaustive search, and bad input."""

from dataclasses import replace
from itertools import combinations, product

import numpy as np
import pytest
import torch
from sklearn.linear_model import orthogonal_mp
from tests.recover.conftest import of_columns

from cases import draw
from unconv.operators import ConvOperator
from unconv.recover import cosamp, htp, niht
from unconv.sparsity import Pooled, TopK, Window
from unconv.testing import MatrixOperator, SolverConformance

each_solver = pytest.mark.parametrize("solver", [niht, htp, cosamp], ids=lambda s: s.__name__)


def sparse(draws, n, k, seed):
    """Codes with k entries of magnitude 0.5 to 1.5 at random places."""
    generator = torch.Generator().manual_seed(seed)
    places = torch.rand(draws, n, generator=generator).topk(k, dim=1).indices
    values = torch.rand(draws, k, generator=generator, dtype=torch.float64) + 0.5
    signs = 1 - 2 * torch.randint(2, (draws, k), generator=generator)
    return torch.zeros(draws, n, dtype=torch.float64).scatter(1, places, values * signs)


@each_solver
class TestConformance(SolverConformance):
    """Where every entry may be non-zero, the solvers solve linear systems ``W^T z = x``."""

    @pytest.fixture(autouse=True)
    def choose(self, solver):
        self.solver = solver

    def solve(self, operator, target):
        entries = operator.matrix.shape[1]
        solution = self.solver(MatrixOperator(operator.matrix.T), target, TopK(entries), tolerance=1e-8)
        return replace(solution, value=solution.value.code.dense())


@each_solver
@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_dense_codes_agree_with_omp_of_scikit_learn(solver, noise):
    """OMP finds these codes; with noise, all end at the least-squares values on the true support."""
    matrix = draw(60, 120, seed=4) / 60**0.5
    z = sparse(12, 120, 5, seed=5)
    x = z @ matrix.T + noise * draw(12, 60, seed=6) / 60**0.5
    expected = torch.from_numpy(orthogonal_mp(matrix.numpy(), x.numpy().T, n_nonzero_coefs=5).T)
    assert torch.equal(expected != 0, z != 0)
    found = solver(MatrixOperator(matrix.T), x, TopK(5), tolerance=1e-9)
    assert torch.allclose(found.value.code.dense(), expected, atol=1e-6)
    assert set(found.status) == ({"converged"} if noise == 0 else {"stalled"})


@pytest.mark.parametrize(("solver", "tolerance", "accuracy"), [(niht, 0, 1e-3), (htp, 1e-10, 1e-8)])
def test_where_they_end_the_values_are_the_least_squares_fit_on_the_support(solver, tolerance, accuracy):
    matrix, x = draw(20, 40), draw(6, 20, seed=1)
    found = solver(of_columns(matrix), x, TopK(4), tolerance=tolerance)
    assert set(found.status) == {"stalled"}
    for row, z in zip(x, found.value.code.dense(), strict=True):
        support = z != 0
        assert support.sum() == 4
        expected = torch.linalg.lstsq(matrix[:, support], row[:, None]).solution[:, 0]
        assert torch.allclose(z[support], expected, atol=accuracy)


@each_solver
def test_the_support_is_that_of_exhaustive_search(solver):
    """All supports of two regions of 1 x 2 places, on a tiny convolution, with noise."""
    operator = ConvOperator(draw(4, 6, 2, seed=3), (6, 5)).normalised()
    model = Pooled(2, k=2)
    code = model.project(sparse(8, 16, 6, seed=1).reshape(8, 4, 4))
    x = operator.adjoint(code.dense()) + 0.02 * draw(8, 6, 5, seed=2)
    found = solver(operator, x, model)
    dense = operator.to_dense()
    pairs = [(2 * a + i, 2 * b + j) for a, b in combinations(range(8), 2) for i, j in product(range(2), range(2))]
    for row in range(8):
        errors = []
        for pair in pairs:
            columns = dense[list(pair)].T
            fit = torch.linalg.lstsq(columns, x[row].reshape(-1, 1)).solution
            errors.append((columns @ fit - x[row].reshape(-1, 1)).norm().item())
        best = pairs[int(np.argmin(errors))]
        assert found.value.code.support()[row].flatten().nonzero().flatten().tolist() == list(best)
        assert found.residual[row].item() == pytest.approx(min(errors) / x[row].norm().item(), rel=1e-4)


@each_solver
@pytest.mark.parametrize("window", [Window.of(2, 2), Window.of(2, 3, stride=2, padding=1)], ids=["2x2", "3x3/2"])
def test_codes_in_two_dimensions_come_back_as_codes_of_the_model(solver, window):
    """The reconstruction belongs to the code, its values stand at its switches, and they are at most k."""
    operator = ConvOperator(draw(6, 8, 3, 3), (8, 7, 7)).normalised()
    model = Pooled(window, k=6)
    truth = model.project(draw(3, 6, 5, 5, seed=1))
    x = operator.adjoint(truth.dense())
    found = solver(operator, x, model)
    code = found.value.code
    assert code.switches is not None
    assert window.contains(code.switches, (5, 5)).all()
    assert (code.support().flatten(1).sum(1) <= 6).all()
    assert torch.allclose(found.value.reconstruction, operator.adjoint(code.dense()))
    assert torch.allclose(code.dense(), truth.dense(), atol=1e-4)


@each_solver
def test_the_best_iterate_is_returned_and_its_residual_is_stated(solver):
    """On inputs that no sparse code explains, in a batch with one that a code explains."""
    operator = ConvOperator(draw(8, 4, 3), (4, 12))
    model = Pooled(2, k=5)
    explained = operator.adjoint(Pooled(2, k=2).project(draw(1, 8, 10, seed=1)).dense())
    x = torch.cat([draw(3, 4, 12, seed=2), explained, torch.zeros(1, 4, 12, dtype=torch.float64)])
    found = solver(operator, x, model)
    residual = (x - operator.adjoint(found.value.code.dense())).flatten(1).norm(dim=1)
    assert torch.allclose(residual[:4] / x[:4].flatten(1).norm(dim=1), found.residual[:4])
    assert found.status[3:] == ("converged", "converged")
    assert residual[4] == 0
    for row in range(5):
        alone = solver(operator, x[row : row + 1], model)
        assert torch.allclose(alone.value.code.dense()[0], found.value.code.dense()[row], atol=1e-9)
        assert alone.status[0] == found.status[row]
        assert (found.history[alone.steps :, row] == found.history[alone.steps, row]).all()


@each_solver
@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_filters_in_other_units_need_no_tuning(solver, scale):
    operator = ConvOperator(draw(8, 6, 3), (6, 12)).normalised()
    model = Pooled(5, k=4)
    z = model.project(draw(4, 8, 10, seed=3)).dense()
    found = solver(operator.with_weight(scale * operator.weight), scale * operator.adjoint(z), model, tolerance=1e-8)
    assert torch.allclose(found.value.code.dense(), z, atol=1e-6)
