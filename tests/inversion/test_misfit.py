import math

import pytest
import torch

import cases
from unconv.errors import UnconvError
from unconv.inversion.frozen_network import LayerFunction
from unconv.inversion.misfit import Misfit, best_fit, check_features

NOISE = torch.randn(2, 2, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
ROWS = torch.arange(2)


def checked_value(misfit, point):
    """The misfit of two images, with its gradient that of torch, and that of one image alone the same."""
    value, gradient = misfit.with_gradient(point, ROWS)
    torch.testing.assert_close(gradient, torch.func.grad(lambda v: misfit(v, ROWS).sum())(point))
    torch.testing.assert_close(misfit(point[1:], ROWS[1:]), value[1:])
    return value


@pytest.mark.parametrize("side_info", ["none", "switches", "gates"])
def test_misfit_by_hand(make, side_info):
    function, x = make()
    known, features = function.record(x, side_info), function(x)
    misfit, point = Misfit(function, features, known), x + 0.1 * NOISE
    misfit.weigh(point)
    assert misfit(x, ROWS).abs().max() < 1e-12
    value = checked_value(misfit, point)

    first, _, second, _, pool = function.model
    h, violations = point, []
    for number, convolution in enumerate((first, second)):
        h = convolution(h)
        own = h.relu()
        h = own if side_info != "gates" else h * known.gates[number][0]
        violations += [(own, h)] if side_info == "gates" else []
    own = pool(h)
    if side_info != "none":
        h = h.flatten(2).gather(2, known.switches[0].flatten(2)).reshape(own.shape)
        violations.append((own, h))
    else:
        h = own

    def squares(v):
        return v.square().flatten(1).sum(1)

    expected = squares(h - features)
    for own, taken in violations:
        expected = expected + squares(features) / squares(taken) * squares(own - taken)
    torch.testing.assert_close(value, expected.detach() / 2)


@pytest.mark.parametrize("side_info", ["none", "gates"])
def test_large_residuals_count_linearly_once_forgiven(make, side_info):
    function, x = make()
    features, point = function(x), x + 0.1 * NOISE
    misfit = Misfit(function, features, function.record(x, side_info))
    misfit.forgive(point, 0.5)
    residual = (function(point) - features).flatten(1)
    scale = 0.5 * residual.square().mean(1, keepdim=True).sqrt()
    expected = (scale**2 * ((1 + (residual / scale) ** 2).sqrt() - 1)).sum(1)
    value = checked_value(misfit, point)
    torch.testing.assert_close(value, expected.detach())
    assert (2 * value < residual.square().sum(1)).all()


@pytest.mark.parametrize("side_info", ["none", "switches", "gates"])
def test_the_best_fit_is_chosen_image_by_image(make, side_info):
    function, x = make()
    known, features = function.record(x, side_info), function(x)
    near, far = x + 0.01 * NOISE, x + 0.1 * NOISE
    crossed = [torch.stack([near[0], far[1]]), torch.stack([far[0], near[1]])]
    assert torch.equal(best_fit(function, features, known, crossed), near)
    assert best_fit(function, features, known, [far]) is far
    assert best_fit(function, features, known, []) is None
    assert torch.equal(best_fit(function, features, known, [far * math.nan, far]), far)


def test_features_that_do_not_fit_are_refused(make):
    function, x = make()
    features = function(x)
    with pytest.raises(UnconvError, match="give the features of this layer"):
        check_features(function, features[:, :5])
    with pytest.raises(UnconvError, match="NaN or infinite"):
        check_features(function, features * math.nan)
    cut = LayerFunction(cases.without_gradient("detach"), "b", (3, 4, 4))
    check_features(cut, torch.zeros(1, 4, 4, 4), gradient=False)
    with pytest.raises(UnconvError, match="no gradient passes"):
        check_features(cut, torch.zeros(1, 4, 4, 4))
