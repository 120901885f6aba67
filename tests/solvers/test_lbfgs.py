"""Quasi-Newton steps for a batch: against least squares and SciPy's L-BFGS, each input alone, never upwards."""

import pytest
import scipy.optimize
import torch

from unconv.solvers.lbfgs import quasi_newton


def least_squares(count=3, rows=30, columns=12):
    generator = torch.Generator().manual_seed(4)
    a = torch.randn(count, rows, columns, generator=generator, dtype=torch.float64)
    a *= torch.logspace(0, -1, columns, dtype=torch.float64)
    truth = torch.randn(count, columns, generator=generator, dtype=torch.float64)
    return a, truth, (a @ truth.unsqueeze(2)).squeeze(2)


def objective(a, b):
    def evaluate(x):
        residual = (a @ x.unsqueeze(2)).squeeze(2) - b
        return residual.square().sum(1) / 2, (a.mT @ residual.unsqueeze(2)).squeeze(2)

    return evaluate


def test_the_least_squares_solution_is_found():
    a, truth, b = least_squares()
    found = quasi_newton(objective(a, b), torch.zeros_like(truth), max_steps=120)
    torch.testing.assert_close(found, truth, rtol=1e-6, atol=1e-6)


def test_every_input_is_alone():
    a, truth, b = least_squares()
    a[1] *= 50  # another scale, and so other lengths
    b[1] *= 50
    together = quasi_newton(objective(a, b), torch.zeros_like(truth), max_steps=15)
    for n in range(3):
        alone = quasi_newton(objective(a[n : n + 1], b[n : n + 1]), torch.zeros_like(truth[:1]), max_steps=15)
        torch.testing.assert_close(together[n : n + 1], alone, rtol=1e-6, atol=1e-9)


def rosenbrock(x):
    off, along = x[:, 1:] - x[:, :-1] ** 2, 1 - x[:, :-1]
    gradient = torch.zeros_like(x)
    gradient[:, 1:] += 200 * off
    gradient[:, :-1] -= 400 * off * x[:, :-1] + 2 * along
    return (100 * off**2 + along**2).sum(1), gradient


def test_a_curved_valley_is_followed_as_fast_as_by_scipy():
    start = torch.tensor([[-1.2, 1.0, -0.5, 0.8]], dtype=torch.float64)
    values = []

    def seen(x):
        value, gradient = rosenbrock(x)
        values.append(value.item())
        return value, gradient

    found = quasi_newton(seen, start, max_steps=200)
    torch.testing.assert_close(found, torch.ones_like(start), rtol=1e-4, atol=1e-4)

    def numpy(x):
        value, gradient = rosenbrock(torch.from_numpy(x)[None])
        return value.item(), gradient[0].numpy()

    theirs = scipy.optimize.minimize(numpy, start[0].numpy(), jac=True, method="L-BFGS-B", options={"gtol": 1e-6})
    assert theirs.success
    ours = next(n for n, value in enumerate(values) if value < 1e-9)
    assert ours < 2 * theirs.nfev


def test_the_value_never_rises_and_the_best_point_comes_back():
    start = torch.tensor([[-1.2, 1.0], [3.0, -2.0]], dtype=torch.float64)
    last = rosenbrock(start)[0]
    for steps in range(1, 40):
        value = rosenbrock(quasi_newton(rosenbrock, start, max_steps=steps))[0]
        assert (value <= last).all()
        last = value


@pytest.mark.parametrize("steps", [0, 1])
def test_without_steps_the_start_comes_back(steps):
    start = torch.ones(2, 3)
    assert torch.equal(quasi_newton(objective(torch.ones(2, 4, 3), torch.zeros(2, 4)), start, max_steps=steps), start)


def test_an_input_at_its_solution_stays():
    a, truth, b = least_squares()
    found = quasi_newton(objective(a, b), truth, max_steps=10)
    assert torch.equal(found, truth)
