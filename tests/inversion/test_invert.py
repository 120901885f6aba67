import pytest
import torch
from torch import nn

from unconv.errors import UsageError
from unconv.inversion.frozen_network import LayerFunction
from unconv.inversion.gauss_newton import GaussNewtonConfig
from unconv.inversion.gradient import GradientConfig
from unconv.inversion.invert import invert_features


def near(x):
    """Give a decoder that comes near."""
    return lambda features, shape: x[: len(features)] + 0.1


def test_the_linear_estimate_is_the_start_of_the_others(make):
    function, x = make()
    features = function(x)
    linear = invert_features(function, features, method="linear", decoder=near(x))
    assert torch.equal(linear.value, x + 0.1)
    assert linear.passes == (0, 0)
    assert linear.status == ("converged", "converged")
    for method in ("gauss-newton", "gradient"):
        result = invert_features(function, features, method=method, decoder=near(x), passes=30)
        assert (result.history[0] <= linear.history[0] * (1 + 1e-6)).all()
        assert result.history.amin(0).max() < linear.history[0].min()
        assert max(result.passes) <= 30


@pytest.mark.parametrize("method", ["linear", "gauss-newton", "gradient"])
def test_zero_features_get_a_status(method):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    model[0].bias.data.fill_(-100.0)
    function = LayerFunction(model, "1", (3, 6, 6))
    x = torch.full((2, 3, 6, 6), 0.5)
    for features in (torch.zeros(2, *function.shape), torch.ones(2, *function.shape)):
        result = invert_features(function, features, method=method, decoder=near(x), passes=10)
        assert torch.isfinite(result.value).all()
        assert not result.history.isnan().any()
        assert set(result.status) <= {"constant", "converged"}
        assert max(result.passes) <= 1


@pytest.mark.parametrize("layer", ["3", "4"])
def test_vectors(layer):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.SiLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 10))
    function = LayerFunction(model, layer, (3, 8, 8))
    x = torch.rand(2, 3, 8, 8)
    for side_info in function.side_info_kinds:
        known = function.record(x, side_info)
        result = invert_features(function, function(x), known, passes=60)
        assert (result.history[-1] < 0.05).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "linear"}, "needs the layer's decoder"),
        ({"passes": -1}, "passes is -1"),
        ({"config": GradientConfig()}, "takes GaussNewtonConfig"),
        ({"method": "gradient", "config": GaussNewtonConfig()}, "takes GradientConfig"),
    ],
)
def test_what_does_not_go_together_is_refused(make, options, message):
    function, x = make()
    with pytest.raises(UsageError, match=message):
        invert_features(function, function(x), **options)
