"""CGLS against dense least squares, from zero and from elsewhere."""

import torch

from cases import draw
from unconv.solvers.cgls import cgls
from unconv.testing import MatrixOperator, SolverConformance


class TestCglsConformance(SolverConformance):
    tolerance = 1e-6

    def solve(self, operator, target):
        return cgls(operator, target, tolerance=1e-10, slope_tolerance=1e-12, max_steps=100)


def test_contradictory_systems_end_in_least_squares_and_say_converged():
    matrix, target = draw(20, 6), draw(3, 20, seed=1)
    solution = cgls(MatrixOperator(matrix), target, tolerance=1e-12, slope_tolerance=1e-10, max_steps=100)
    assert torch.allclose(solution.value, target @ torch.linalg.pinv(matrix).T, atol=1e-8)
    assert set(solution.status) == {"converged"}
    assert solution.residual.min() > 0.1


def test_from_a_start_the_solution_is_the_nearest_one():
    """The limit differs from the start by a vector in the range of the adjoint."""
    matrix, target, start = draw(6, 20), draw(3, 6, seed=1), draw(3, 20, seed=2)
    solution = cgls(MatrixOperator(matrix), target, start=start, tolerance=1e-12, slope_tolerance=1e-12, max_steps=100)
    expected = start + (target - start @ matrix.T) @ torch.linalg.pinv(matrix).T
    assert torch.allclose(solution.value, expected, atol=1e-8)


def test_skipped_inputs_keep_their_start():
    matrix, target, start = draw(20, 6), draw(3, 20, seed=1), draw(3, 6, seed=2)
    skip = torch.tensor([False, True, False])
    solution = cgls(
        MatrixOperator(matrix), target, start=start, skip=skip, tolerance=0, slope_tolerance=1e-10, max_steps=50
    )
    assert torch.equal(solution.value[1], start[1])
    assert torch.allclose(solution.value[::2], (target @ torch.linalg.pinv(matrix).T)[::2], atol=1e-8)
