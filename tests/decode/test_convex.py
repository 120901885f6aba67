from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.decode.conftest import draw, make_stage

from unconv.decode.constraints import constraints
from unconv.decode.convex import convex
from unconv.linalg import relative_norm
from unconv.sparsity import AveragePool, Pooled, Window

TINY = {"shape": (1, 5, 6), "filters": 8}


def contradictory(stage, seed=3):
    """A code that no input has made, so that the least violation is not zero."""
    code = stage.encode(draw(stage))
    noise = torch.rand(code.values.shape, generator=torch.Generator().manual_seed(seed), dtype=code.values.dtype)
    return replace(code, values=(code.values + noise) * (noise > 0.3))


@pytest.mark.parametrize("activation", ["relu", "none"])
def test_least_violation_against_cvxpy(activation):
    cvxpy = pytest.importorskip("cvxpy", reason="the general convex solver cvxpy is not installed")
    stage = replace(make_stage(Window.of(2, 2), activation, **TINY), nonnegative_input=False)
    code = contradictory(stage)
    said = constraints(stage, code)
    solution = convex(stage, code, prior=None, tolerance=1e-4, max_steps=1000)
    assert "max_steps" not in solution.status
    ours = said.evaluate(stage.operator.forward(solution.value))[1] / 2
    dense = stage.operator.to_dense().numpy()
    for n in range(len(code.values)):
        x = cvxpy.Variable(dense.shape[1])
        cost = violation(cvxpy, dense @ x, said.at(torch.tensor([n])))
        least = cvxpy.Problem(cvxpy.Minimize(cost)).solve(solver=cvxpy.CLARABEL)
        assert least > 1e-2
        assert ours[n].item() == pytest.approx(least, rel=1e-4)


def violation(cvxpy, h, said):
    lower, upper = said.lower.flatten().numpy(), said.upper.flatten().numpy()
    above, below = np.isfinite(upper), np.isfinite(lower)
    over = cvxpy.sum_squares(cvxpy.pos(h[above] - upper[above]))
    under = cvxpy.sum_squares(cvxpy.pos(lower[below] - h[below])) if below.any() else 0
    return (over + under) / 2


def test_without_inequalities_it_is_the_least_norm_solution():
    stage = make_stage(AveragePool(Window.of(2, 2)), "none", shape=(2, 6, 6), filters=4)
    stage = replace(stage, bias=None, nonnegative_input=False)
    x = draw(stage)
    solution = convex(stage, stage.encode(x), prior=None, tolerance=1e-9, max_steps=500)
    n = x[0].numel()
    basis = stage.operator.forward(torch.eye(n, dtype=x.dtype).reshape(n, *x.shape[1:]))
    matrix = stage.pooling.forward(basis).flatten(1).T
    least = (x.flatten(1) @ matrix.T) @ torch.linalg.pinv(matrix).T
    torch.testing.assert_close(solution.value.flatten(1), least, rtol=1e-5, atol=1e-6)
    assert solution.status == ("converged", "converged")


@pytest.mark.parametrize("prior", [None, "smooth", "gaussian"])
@pytest.mark.parametrize("pooling", [Window.of(2, 2), Window.of(2, 3, stride=2), Window.of(2, 4), None])
def test_finds_an_input_with_the_same_code(pooling, prior):
    stage = make_stage(pooling)
    x = draw(stage)
    code = stage.encode(x)
    solution = convex(stage, code, prior=prior, tolerance=1e-4, max_steps=2000)
    assert solution.status == ("converged",) * len(x)
    assert (solution.value >= 0).all()
    again = stage.encode(solution.value)
    assert relative_norm(again.values - code.values, code.values).max() < 1e-2
    if prior != "gaussian":  # which starts twice
        assert (solution.history[1:] <= solution.history[:-1] * (1 + 1e-9)).all()


@pytest.mark.parametrize(("shape", "geometry"), [((3, 20), {}), ((2, 5, 6, 6), {}), ((4, 11, 11), {"stride": 2})])
def test_other_geometries(shape, geometry):
    stage = make_stage(Window.of(len(shape) - 1, 2), shape=shape, **geometry)
    code = stage.encode(draw(stage))
    solution = convex(stage, code, prior="smooth", max_steps=1000)
    assert solution.residual.max() <= 1e-3


def test_unknown_switches_are_found_up_to_the_code():
    stage = make_stage(Window.of(2, 2))
    code = stage.encode(draw(stage))
    solution = convex(stage, code, prior="smooth", switches=False, max_steps=500)
    again = stage.encode(solution.value)
    assert relative_norm(again.values - code.values, code.values).max() < 0.05


def test_paper_reading_bounds_the_losers():
    stage = make_stage(Window.of(2, 2), "none")
    x = draw(stage)
    code = Pooled(2, k=40).project(stage.operator.forward(x))
    solution = convex(stage, code, code_kind="paper", tolerance=1e-5, max_steps=2000)
    again = stage.operator.forward(solution.value)
    assert relative_norm(torch.where(code.support(), again - code.dense(), 0.0), code.dense()).max() < 1e-4
    smallest = code.values.abs().masked_fill(code.values == 0, float("inf")).flatten(1).amin(1)
    kept = code.pooling.max_pool(code.dense().abs())[0] > 0
    dropped = code.pooling.max_pool(again.abs())[0].masked_fill(kept, 0.0).flatten(1).amax(1)
    assert (dropped <= 1.001 * smallest).all()


def test_every_input_stops_by_itself():
    stage = make_stage(Window.of(2, 2))
    x = draw(stage, n=3)
    x[1] = 0
    code = stage.encode(x)
    together = convex(stage, code, prior="gaussian")
    for n in range(3):
        assert code.switches is not None
        one = replace(code, values=code.values[n : n + 1], switches=code.switches[n : n + 1])
        alone = convex(stage, one, prior="gaussian")
        torch.testing.assert_close(together.value[n : n + 1], alone.value, rtol=1e-6, atol=1e-9)
        assert together.status[n : n + 1] == alone.status
