"""Conjugate gradients against dense solves."""

import torch

from cases import draw
from unconv.solvers.cg import conjugate_gradients


def systems(rank=12):
    a = draw(3, 12, rank)
    return a @ a.mT, draw(3, 12, seed=1)


def solve(a, b, preconditioner=lambda r: r, tolerance=1e-10, max_steps=100):
    def product(v):
        return (a @ v.unsqueeze(2)).squeeze(2)

    tolerances = torch.full((len(b),), tolerance, dtype=b.dtype)
    return conjugate_gradients(product, b, preconditioner, tolerance=tolerances, max_steps=max_steps)


def test_against_dense_solves_with_and_without_a_preconditioner():
    a, b = systems()
    expected = torch.linalg.solve(a, b)
    for scale in (torch.ones_like(b), 1 / a.diagonal(dim1=1, dim2=2)):
        x, _ = solve(a, b, lambda r, scale=scale: scale * r)
        torch.testing.assert_close(x, expected, rtol=1e-6, atol=1e-7)


def test_singular_systems_get_the_solution_of_least_norm():
    a, b = systems(rank=5)
    b = (a @ b.unsqueeze(2)).squeeze(2)
    x, steps = solve(a, b, tolerance=1e-8)
    torch.testing.assert_close(x, (torch.linalg.pinv(a) @ b.unsqueeze(2)).squeeze(2), rtol=1e-5, atol=1e-6)
    assert steps.max() < 12


def test_every_input_has_its_own_limit_and_a_zero_right_hand_side_costs_nothing():
    a, b = systems()
    b[2] = 0
    x, steps = solve(a, b, max_steps=torch.tensor([2, 5, 7]))
    assert steps.tolist() == [2, 5, 0]
    assert not x[2].any()
    torch.testing.assert_close(x[:1], solve(a[:1], b[:1], max_steps=2)[0])
