import pytest
import torch
from torch import nn

from unconv.decode.priors import Smooth
from unconv.inversion.box import Box
from unconv.inversion.gauss_newton import GaussNewtonConfig, gauss_newton
from unconv.inversion.jacobian import Jacobian
from unconv.inversion.objective import ChannelWeights
from unconv.linalg import relative_norm
from unconv.solvers.cg import conjugate_gradients


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("power", [0.0, 0.5])
def test_inner_solve_against_dense_least_squares(make, weighted, power):
    function, x = make(size=4, n=1)
    known = function.record(x, "gates")
    jacobian = Jacobian(lambda v: function(v, known), torch.zeros_like(x))
    weights = ChannelWeights.learn(jacobian, x, probes=2, shrinkage=0.01) if weighted else ChannelWeights()
    residual = torch.randn_like(jacobian.value)
    solution, fallen, _ = conjugate_gradients(
        lambda v: jacobian.adjoint(weights.apply(jacobian.forward(v))),
        jacobian.adjoint(weights.apply(residual)),
        Smooth.of((4, 4), power, x).apply if power else lambda v: v,
        tolerance=torch.full((1,), 1e-12, dtype=x.dtype),
        max_steps=200,
    )
    dense = torch.func.jacrev(lambda v: function(v, known))(x).reshape(residual.numel(), x.numel())
    form = torch.eye(residual.shape[1], dtype=x.dtype) if weights.matrix is None else weights.matrix[0]
    rows = torch.kron(torch.linalg.cholesky(form).mT, torch.eye(4, dtype=x.dtype))
    expected = torch.linalg.lstsq(rows @ dense, rows @ residual.flatten(), driver="gelsd").solution
    gap = (rows @ (residual.flatten() - dense @ solution.flatten())).norm()
    least = (rows @ (residual.flatten() - dense @ expected)).norm()
    assert gap <= least * (1 + 1e-6)
    assert fallen.item() == pytest.approx(((rows @ residual.flatten()).square().sum() - least**2).item() / 2, rel=1e-6)


@pytest.mark.parametrize(("side_info", "error"), [("gates", 1e-3), ("switches", 0.05), ("none", 0.2)])
def test_finds_the_image(make, side_info, error):
    function, x = make()
    # noise is no natural image: without switches the first image has to be near, and may still end in a local minimum
    initial = None
    if side_info == "none":
        initial = x + 0.05 * torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(9))
    config = GaussNewtonConfig(prior=None, tolerance=1e-6, max_steps=20)
    solution = gauss_newton(function, function(x), function.record(x, side_info), initial=initial, config=config)
    assert relative_norm(solution.value - x, x).max() < error
    assert solution.residual.max() < 0.05


@pytest.mark.parametrize("activation", [nn.SiLU, nn.LeakyReLU, nn.Tanh])
def test_other_activations(make, activation):
    function, x = make(activation=activation)
    config = GaussNewtonConfig(prior=None, tolerance=1e-5, max_steps=20)
    solution = gauss_newton(function, function(x), function.record(x, "switches"), config=config)
    assert relative_norm(solution.value - x, x).max() < 0.05


def test_residual_never_rises_and_images_stop_by_themselves(make):
    function, x = make(n=3)
    x[1] = 0.0
    features = function(x)
    seen = []
    config = GaussNewtonConfig(tolerance=1e-3, max_steps=6, init_passes=(60, 40))
    solution = gauss_newton(function, features, config=config, watch=lambda v: seen.append(v.clone()))
    assert (solution.history[1:] <= solution.history[:-1] + 1e-12).all()
    assert solution.status[1] == "converged"
    assert all(step.shape == x.shape for step in seen)
    for n in range(3):
        alone = gauss_newton(function, features[n : n + 1], config=config)
        assert alone.status == solution.status[n : n + 1]
        assert alone.passes == solution.passes[n : n + 1]
        torch.testing.assert_close(alone.value, solution.value[n : n + 1], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("side_info", ["none", "gates"])
@pytest.mark.parametrize("passes", [0, 2, 5, 17, 60])
def test_no_more_passes_are_made_than_allowed(make, passes, side_info):
    function, x = make(n=1)
    features, known = function(x), function.record(x, side_info)
    made = {"forward": 0, "backward": 0}
    function.model[4].register_forward_hook(lambda *_: made.update(forward=made["forward"] + 1))
    plain, products = torch.autograd.grad, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.autograd, "grad", lambda *a, **k: products.append(1) or plain(*a, **k))
        solution = gauss_newton(function, features, known, passes=passes, config=GaussNewtonConfig(tolerance=0))
    # the misfit of the start is not counted where there is nothing to spend
    assert (made["forward"] + len(products)) / 2 <= max(passes, 0.5)
    assert solution.passes[0] <= max(passes, 1)
    assert solution.passes[0] > passes - 4


def test_box(make):
    function, x = make()
    box = Box(torch.full((2, 1, 1), -0.5).double(), torch.full((2, 1, 1), 0.5).double())
    known = function.record(x, "switches")
    config = GaussNewtonConfig(prior=None, max_steps=20)
    solution = gauss_newton(function, function(x), known, box=box, config=config)
    assert solution.value.min() >= -0.5
    assert solution.value.max() <= 0.5
    assert relative_norm(solution.value - x, x).max() < 0.1


@pytest.mark.parametrize("side_info", ["none", "switches", "gates"])
def test_natural_images_are_found_where_equations_run_out(smooth_images, side_info):
    function, x, box = smooth_images
    features, known = function(x), function.record(x, side_info)
    assert (features != 0).sum() < x.numel()

    def error(prior):
        config = GaussNewtonConfig(prior=prior, max_steps=6, init_passes=(100, 40))
        solution = gauss_newton(function, features, known, box=box, config=config)
        return relative_norm(solution.value - x, x).max().item()

    assert error("auto") < 0.8 * error(None)


def test_start_at_the_solution_stays(make):
    function, x = make()
    solution = gauss_newton(function, function(x), initial=x)
    assert solution.status == ("converged", "converged")
    assert torch.equal(solution.value, x)


def test_a_preconditioner_of_ones_own_is_given_the_mean_squared_residuals(make):
    function, x = make()
    given = []

    def preconditioner(v, noise):
        given.append(noise)
        return 2 * v

    config = GaussNewtonConfig(prior=None, max_steps=3)
    known = function.record(x, "gates")
    features = function(x)
    ours = gauss_newton(function, features, known, preconditioner=preconditioner, config=config)
    start = function(torch.zeros_like(x), known) - features
    torch.testing.assert_close(given[0], start.square().flatten(1).mean(1))
    assert ours.residual.max() < 0.1
