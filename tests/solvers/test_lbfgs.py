"""Quasi-Newton steps for a batch: against least squares and SciPy's L-BFGS, each input alone, never upwards."""

import scipy.optimize
import torch

from cases import draw
from unconv.solvers.lbfgs import LbfgsConfig, lbfgs

EXACT = LbfgsConfig(tolerance=0.0, stalled=0.0)


def least_squares():
    a = draw(3, 30, 12, seed=4) * torch.logspace(0, -1, 12, dtype=torch.float64)
    truth = draw(3, 12, seed=5)
    return a, truth, (a @ truth.unsqueeze(2)).squeeze(2)


def objective(a, b):
    def evaluate(x, rows):
        residual = (a[rows] @ x.unsqueeze(2)).squeeze(2) - b[rows]
        return residual.square().sum(1) / 2, (a[rows].mT @ residual.unsqueeze(2)).squeeze(2)

    return evaluate


def test_the_least_squares_solution_is_found():
    a, truth, b = least_squares()
    found = lbfgs(objective(a, b), torch.zeros_like(truth), max_passes=120, config=EXACT)
    torch.testing.assert_close(found.value, truth, rtol=1e-6, atol=1e-6)


def test_the_inverse_hessian_as_metric_needs_one_step():
    a, truth, b = least_squares()
    inverse = torch.linalg.inv(a.mT @ a)
    found = lbfgs(
        objective(a, b),
        torch.zeros_like(truth),
        max_passes=2,
        metric=lambda v, value, rows: (inverse[rows] @ v.unsqueeze(2)).squeeze(2),
    )
    torch.testing.assert_close(found.value, truth, rtol=1e-6, atol=1e-6)


def rosenbrock(x, _=None):
    off, along = x[:, 1:] - x[:, :-1] ** 2, 1 - x[:, :-1]
    gradient = torch.zeros_like(x)
    gradient[:, 1:] += 200 * off
    gradient[:, :-1] -= 400 * off * x[:, :-1] + 2 * along
    return (100 * off**2 + along**2).sum(1), gradient


def test_a_curved_valley_is_followed_as_fast_as_by_scipy():
    start = torch.tensor([[-1.2, 1.0, -0.5, 0.8]], dtype=torch.float64)
    values = []

    def seen(x, _):
        value, gradient = rosenbrock(x)
        values.append(value.item())
        return value, gradient

    found = lbfgs(seen, start, max_passes=200, config=EXACT)
    torch.testing.assert_close(found.value, torch.ones_like(start), rtol=1e-4, atol=1e-4)

    def numpy(x):
        value, gradient = rosenbrock(torch.from_numpy(x)[None])
        return value.item(), gradient[0].numpy()

    theirs = scipy.optimize.minimize(numpy, start[0].numpy(), jac=True, method="L-BFGS-B", options={"gtol": 1e-6})
    assert theirs.success
    ours = next(n for n, value in enumerate(values) if value < 1e-9)
    assert ours < 2 * theirs.nfev


def test_an_input_that_cannot_be_improved_stays():
    a, truth, b = least_squares()
    b[1] = torch.nan
    found = lbfgs(objective(a, b), truth, max_passes=10)
    assert torch.equal(found.value, truth)
    assert found.status == ("converged", "stalled", "converged")
    assert found.passes == (1, 1, 1)
    flat = lbfgs(lambda x, rows: (torch.ones(len(x)), torch.zeros_like(x)), truth.float(), max_passes=10)
    assert flat.status == ("stalled",) * 3
