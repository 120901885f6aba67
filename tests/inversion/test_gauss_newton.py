import math

import pytest
import torch
from torch import nn

from unconv.decode.priors import Euclidean, Smooth
from unconv.errors import UnconvError
from unconv.inversion.box import Box
from unconv.inversion.frozen_network import NO_SIDE_INFORMATION, LayerFunction
from unconv.inversion.gauss_newton import (
    OPEN_SHARE,
    OUTLINE_STEPS,
    Jacobian,
    Weighting,
    conjugate_gradients,
    gauss_newton,
)
from unconv.inversion.gradient import Regulariser, gradient_inversion
from unconv.inversion.initialization import outline
from unconv.linalg import relative_norm


def make(size=8, n=2, activation=nn.ReLU, dtype=torch.float64):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 12, 3, padding=1), activation(), nn.Conv2d(12, 16, 3, padding=1), activation(), nn.MaxPool2d(2)
    ).to(dtype)
    x = torch.rand(n, 2, size, size, dtype=dtype) - 0.5
    return LayerFunction(model, "4", x.shape[1:]), x


# torch has no second derivative of its hard sigmoid, which squeeze-and-excitation blocks are made of
@pytest.mark.parametrize("activation", [nn.ReLU, nn.Hardsigmoid])
@pytest.mark.parametrize("side_info", ["none", "switches", "gates"])
def test_jacobian_against_torch_func(side_info, activation):
    features, x = make(size=4, activation=activation)
    known = features.record(x, side_info)
    at = x + 0.05
    jacobian = Jacobian(lambda v: features(v, known), at)
    dense = torch.func.jacrev(lambda v: features(v, known))(at).reshape(jacobian.value.numel(), x.numel())
    v, w = torch.randn_like(x), torch.randn_like(jacobian.value)
    torch.testing.assert_close(jacobian.forward(v).flatten(), dense @ v.flatten())
    torch.testing.assert_close(jacobian.adjoint(w).flatten(), dense.T @ w.flatten())
    torch.testing.assert_close(jacobian.value, features(at, known))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("power", [0.0, 0.5])
def test_inner_solve_against_dense_least_squares(weighted, power):
    features, x = make(size=4, n=1)
    known = features.record(x, "gates")
    jacobian = Jacobian(lambda v: features(v, known), torch.zeros_like(x))
    weighting = Weighting.learn(jacobian, x) if weighted else Weighting(None)
    residual = torch.randn_like(jacobian.value)
    metric = Smooth.of((4, 4), power, x) if power else Euclidean()
    solution, fallen = conjugate_gradients(
        lambda v: jacobian.adjoint(weighting.apply(jacobian.forward(v))),
        jacobian.adjoint(weighting.apply(residual)),
        metric,
        tolerance=torch.full((1,), 1e-12, dtype=x.dtype),
        max_steps=200,
    )
    dense = torch.func.jacrev(lambda v: features(v, known))(x).reshape(residual.numel(), x.numel())
    form = torch.eye(residual.shape[1], dtype=x.dtype) if weighting.matrix is None else weighting.matrix[0]
    root = torch.linalg.cholesky(form).mT
    rows = torch.kron(root, torch.eye(4, dtype=x.dtype))
    expected = torch.linalg.lstsq(rows @ dense, rows @ residual.flatten(), driver="gelsd").solution
    gap = (rows @ (residual.flatten() - dense @ solution.flatten())).norm()
    least = (rows @ (residual.flatten() - dense @ expected)).norm()
    assert gap <= least * (1 + 1e-6)
    assert fallen.item() == pytest.approx(((rows @ residual.flatten()).square().sum() - least**2).item() / 2, rel=1e-6)


@pytest.mark.parametrize(("side_info", "error"), [("gates", 1e-3), ("switches", 0.05), ("none", 0.2)])
def test_finds_the_image(side_info, error):
    features, x = make()
    # noise has no outline to start from: without switches the first image has to be near, and may still end in a
    # local minimum
    start = (
        x + 0.05 * torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(9))
        if side_info == "none"
        else None
    )
    known = features.record(x, side_info)
    # noise is no natural image
    solution = gauss_newton(features, features(x), known, start=start, prior=None, tolerance=1e-6, max_steps=20)
    assert relative_norm(solution.value - x, x).max() < error
    assert solution.residual.max() < 0.05


@pytest.mark.parametrize("activation", [nn.SiLU, nn.LeakyReLU, nn.Tanh])
def test_other_activations(activation):
    features, x = make(activation=activation)
    known = features.record(x, "switches")
    solution = gauss_newton(features, features(x), known, prior=None, tolerance=1e-5, max_steps=20)
    assert relative_norm(solution.value - x, x).max() < 0.05


def test_residual_never_rises_and_images_stop_by_themselves():
    features, x = make(n=3)
    x[1] = 0.0
    target = features(x)
    seen = []
    solution = gauss_newton(features, target, tolerance=1e-3, max_steps=6, watch=lambda v: seen.append(v.clone()))
    assert (solution.history[1:] <= solution.history[:-1] + 1e-12).all()
    assert solution.status[1] == "converged"
    outlined = len(seen) - solution.steps
    assert outlined in {OUTLINE_STEPS, OPEN_SHARE * OUTLINE_STEPS, (1 + OPEN_SHARE) * OUTLINE_STEPS}
    assert all(step.shape == x.shape for step in seen)
    for n in range(3):
        alone = gauss_newton(features, target[n : n + 1], tolerance=1e-3, max_steps=6)
        assert alone.status == solution.status[n : n + 1]
        torch.testing.assert_close(alone.value, solution.value[n : n + 1], rtol=1e-5, atol=1e-7)


def test_box_and_prior():
    features, x = make()
    box = Box(torch.full((2, 1, 1), -0.5).double(), torch.full((2, 1, 1), 0.5).double())
    known = features.record(x, "switches")
    solution = gauss_newton(features, features(x), known, box=box, prior=None, max_steps=20)
    assert solution.value.min() >= -0.5
    assert solution.value.max() <= 0.5
    assert relative_norm(solution.value - x, x).max() < 0.1

    def variation(v):
        return v.diff(dim=2).abs().sum() + v.diff(dim=3).abs().sum()

    flat = gauss_newton(features, features(x), box=box, prior="tv", weight=0.1, max_steps=10)
    assert variation(flat.value) < 0.5 * variation(solution.value)


def smooth_images(size=16, n=2):
    """Few features of images that are smooth, of one colour, and within a box."""
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(12, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
    ).double()
    coarse = torch.rand(n, 1, 4, 4, dtype=torch.float64) - 0.5
    x = nn.functional.interpolate(coarse, size=(size, size), mode="bicubic").expand(n, 3, size, size).contiguous()
    box = Box(torch.full((3, 1, 1), -1.0).double(), torch.full((3, 1, 1), 1.0).double())
    return LayerFunction(model, "5", x.shape[1:]), x, box


@pytest.mark.parametrize("side_info", ["none", "switches", "gates"])
def test_natural_images_are_found_where_equations_run_out(side_info):
    features, x, box = smooth_images()
    target, known = features(x), features.record(x, side_info)
    assert (target != 0).sum() < x.numel()

    def error(prior):
        solution = gauss_newton(features, target, known, box=box, prior=prior, max_steps=6)
        return relative_norm(solution.value - x, x).max().item()

    assert error("auto") < 0.8 * error(None)
    if side_info == "gates":
        assert error("auto") == error("natural")


def test_outline_comes_near_and_each_image_is_alone():
    features, x, box = smooth_images()
    target, known = features(x), features.record(x, "none")
    found = outline(features, target, known, box=box, passes=60)
    begun = relative_norm(features(torch.zeros_like(x)) - target, target)
    assert (relative_norm(features(found) - target, target) < 0.3 * begun).all()
    alone = outline(features, target[1:], known, box=box, passes=60)
    torch.testing.assert_close(alone, found[1:], rtol=1e-6, atol=1e-9)
    assert not outline(features, target, known, box=box, passes=0).any()


def test_channel_weighting_is_the_inverse_of_a_covariance():
    features, x = make()
    known = features.record(x, "gates")
    weighting = Weighting.learn(Jacobian(lambda v: features(v, known), x), x)
    assert weighting.matrix is not None
    torch.testing.assert_close(weighting.matrix, weighting.matrix.mT)
    inverse = torch.linalg.inv(weighting.matrix[0])  # one matrix at a time
    scaled = inverse - 0.01 * torch.eye(len(inverse), dtype=inverse.dtype)
    assert scaled.diagonal().mean() == pytest.approx(1, rel=1e-6)
    assert torch.linalg.eigvalsh(scaled).min() > -1e-8


def test_start_at_the_solution_stays():
    features, x = make()
    solution = gauss_newton(features, features(x), start=x)
    assert solution.status == ("converged", "converged")
    assert torch.equal(solution.value, x)


def test_bad_targets_are_refused():
    features, x = make()
    target = features(x)
    with pytest.raises(UnconvError, match="give the features of this layer"):
        gauss_newton(features, target[:, :5])
    with pytest.raises(UnconvError, match="NaN or infinite"):
        gradient_inversion(features, target * math.nan)


@pytest.mark.parametrize("optimizer", ["adam", "lbfgs"])
def test_gradient_baseline_finds_an_image(optimizer):
    features, x = make()
    known = features.record(x, "switches")
    solution = gradient_inversion(features, features(x), known, optimizer=optimizer, max_steps=60)
    assert solution.residual.max() < 0.2 * solution.history[0].min()
    assert relative_norm(solution.value - x, x).max() < 0.6


def test_gradient_baseline_priors_jitter_and_names():
    features, x = make()
    target = features(x)
    plain = gradient_inversion(features, target, max_steps=30)
    flat = gradient_inversion(features, target, max_steps=30, regulariser=Regulariser(total_variation=1.0))
    assert flat.value.diff(dim=3).square().sum() < 0.5 * plain.value.diff(dim=3).square().sum()
    small = gradient_inversion(features, target, max_steps=30, regulariser=Regulariser(alpha_norm=1e3))
    assert small.value.abs().max() < plain.value.abs().max()
    shaken = gradient_inversion(features, target, max_steps=30, jitter=2)
    assert not torch.equal(shaken.history[1], plain.history[1])
    with pytest.raises(UnconvError, match="use one of adam, lbfgs"):
        gradient_inversion(features, target, optimizer="sgd")  # pyright: ignore[reportArgumentType]
    with pytest.raises(UnconvError, match="jitter"):
        gradient_inversion(features, target, optimizer="lbfgs", jitter=1)


def test_outline_with_known_switches_also_says_that_the_others_lost():
    features, x, box = smooth_images()
    target, known = features(x), features.record(x, "switches")

    def misfits(*, losers):
        found = outline(features, target, known, box=box, passes=60, losers=losers)
        return [relative_norm(features(found, k) - target, target).max() for k in (known, NO_SIDE_INFORMATION)]

    (held, free), (_, risen) = misfits(losers=True), misfits(losers=False)
    print(held, free, risen)
    assert held < 0.1
    assert free < 1.5 * held
    assert risen > 2 * free


def test_outline_leaves_zero_where_no_unit_is_on():
    features, x, box = smooth_images()
    for module in features.model:
        if isinstance(module, nn.Conv2d):
            module.bias.data.zero_()
    features = LayerFunction(features.model, "5", x.shape[1:])
    target, known = features(x), features.record(x, "none")
    found = outline(features, target, known, box=box, passes=100)
    assert relative_norm(features(found) - target, target).max() < 0.3
    torch.testing.assert_close(
        outline(features, target[1:], known, box=box, passes=10),
        outline(features, target, known, box=box, passes=10)[1:],
    )
