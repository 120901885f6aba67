import math

import pytest
import torch
from tests.decode.conftest import ACTIVATIONS, draw, make_stage

from unconv.decode.constraints import Averages, Intervals, UnknownSwitches, constraints
from unconv.errors import UnconvError, UsageError
from unconv.sparsity import AveragePool, Code, Window

POOLINGS = [
    None,
    Window.of(2, 2),
    Window.of(2, 3, stride=2),
    Window.of(2, 3, stride=2, padding=1),
    Window.of(2, 4),
    Window.of(2, 2, stride=3),
    Window.of(2, 2, dilation=2, stride=1),
    Window.of(2, 3, stride=2, ceil_mode=True),
]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("pooling", POOLINGS[:3])
def test_true_input_agrees_with_its_code(activation, pooling):
    stage = make_stage(pooling, activation)
    # wide enough to reach both branches of SiLU and the saturation of ReLU6, not so wide that GELU rounds to noise
    x = {"tanh": 1, "gelu": 3}.get(activation, 20) * (draw(stage) - 0.5)
    code = stage.encode(x)
    h = stage.operator.forward(x)
    # values that rounding makes equal (a saturated sigmoid, the flat minimum of GELU) share one preimage
    assert (constraints(stage, code).residual(h).abs() <= 1e-3 * (1 + h.abs())).all()
    assert (constraints(stage, code, switches=False).residual(h).abs() <= 1e-3 * (1 + h.abs())).all()


@pytest.mark.parametrize("pooling", POOLINGS)
def test_intervals_against_a_loop_over_regions(pooling):
    stage = make_stage(pooling)
    x = draw(stage)
    code = stage.encode(x)
    said = constraints(stage, code)
    assert isinstance(said, Intervals)
    h = stage.preactivation(x)
    spatial = h.shape[2:]
    upper = torch.full_like(h, math.inf)
    lower = torch.full_like(h, -math.inf)
    region = Window.of(2, 1) if pooling is None else pooling
    rows, columns = region.starts(spatial)
    for n in range(h.shape[0]):
        for k in range(h.shape[1]):
            for top in rows:
                for left in columns:
                    places = [
                        (i, j)
                        for i in range(top, top + region.dilation[0] * region.kernel[0], region.dilation[0])
                        for j in range(left, left + region.dilation[1] * region.kernel[1], region.dilation[1])
                        if 0 <= i < spatial[0] and 0 <= j < spatial[1]
                    ]
                    largest = max(h[n, k, i, j].item() for i, j in places)
                    for i, j in places:
                        upper[n, k, i, j] = min(upper[n, k, i, j].item(), max(largest, 0.0))
                        if largest > 0 and h[n, k, i, j].item() == largest:
                            lower[n, k, i, j] = largest
    bias = stage.bias.reshape(-1, 1, 1)
    torch.testing.assert_close(said.upper + bias, upper)
    torch.testing.assert_close(said.lower + bias, lower)


def test_saturated_values_are_bounds():
    stage = make_stage(None, "relu6")
    x = 40 * (draw(stage) - 0.5)
    h = stage.preactivation(x)
    said = constraints(stage, stage.encode(x))
    assert (h > 6).any()
    assert (said.upper[h >= 6] == math.inf).all()
    assert (said.lower[h <= 0] == -math.inf).all()


@pytest.mark.parametrize("name", ["intervals", "unknown", "averages", "averages of relu"])
def test_gradient_and_curvature_against_autograd(name):
    activation = "relu" if name != "averages" else "none"
    pooling = AveragePool(Window.of(2, 2)) if "averages" in name else Window.of(2, 2)
    stage = make_stage(pooling, activation)
    said = constraints(stage, stage.encode(draw(stage)), switches=name != "unknown")
    assert isinstance(said, {"intervals": Intervals, "unknown": UnknownSwitches}.get(name, Averages))
    h = stage.operator.forward(draw(stage, seed=5)).requires_grad_()
    d = torch.randn(h.shape, generator=torch.Generator().manual_seed(2), dtype=h.dtype)
    value = said.residual(h).square().sum() / 2
    (gradient,) = torch.autograd.grad(value, h)
    torch.testing.assert_close(said.evaluate(h.detach())[0], gradient)
    step = 1e-7
    slopes = [(said.evaluate(h.detach() + s * d)[0] * d).flatten(1).sum(1) for s in (step, -step)]
    torch.testing.assert_close(
        said.curvature(h.detach(), gradient, d), (slopes[0] - slopes[1]) / (2 * step), rtol=1e-4, atol=1e-4
    )


def test_bad_codes_are_refused():
    stage = make_stage(Window.of(2, 2))
    code = stage.encode(draw(stage))
    assert code.switches is not None
    far = Code(code.values, code.switches.flip(-1), code.shape, code.pooling)
    with pytest.raises(UsageError, match="lies outside its region"):
        constraints(stage, far)
    with pytest.raises(UnconvError, match="negative values behind ReLU"):
        constraints(stage, Code(code.values - 1, code.switches, code.shape, code.pooling))
    with pytest.raises(UnconvError, match="finite"):
        constraints(stage, Code(code.values * math.nan, code.switches, code.shape, code.pooling))
    with pytest.raises(UnconvError, match="give the code of this block"):
        constraints(make_stage(Window.of(2, 2), filters=6), code)
