import math
from dataclasses import replace
from itertools import product

import pytest
import torch
from tests.decode.conftest import ACTIVATIONS, draw, make_stage

from strategies import regions
from unconv.decode.constraints import Averages, Intervals, UnknownSwitches, constraints
from unconv.errors import UnconvError, UsageError
from unconv.sparsity import AveragePool, Window

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
    for switches in (True, False):
        violation, _ = constraints(stage, code, switches=switches).evaluate(h)
        assert (violation.abs() <= 1e-3 * (1 + h.abs())).all()


@pytest.mark.parametrize("pooling", POOLINGS)
def test_intervals_against_a_loop_over_regions(pooling):
    stage = make_stage(pooling)
    x = draw(stage)
    code = stage.encode(x)
    said = constraints(stage, code)
    assert isinstance(said, Intervals)
    h = stage.preactivation(x)
    spatial, flat = h.shape[2:], h.flatten(2)
    upper = torch.full_like(flat, math.inf)
    lower = torch.full_like(flat, -math.inf)
    places = list(regions(Window.of(2, 1) if pooling is None else pooling, spatial))
    for n, k, region in product(range(h.shape[0]), range(h.shape[1]), places):
        largest = max(flat[n, k, p].item() for p in region)
        for p in region:
            upper[n, k, p] = min(upper[n, k, p].item(), max(largest, 0.0))
            if largest > 0 and flat[n, k, p].item() == largest:
                lower[n, k, p] = largest
    bias = stage.bias[:, None]
    torch.testing.assert_close(said.upper.flatten(2) + bias, upper)
    torch.testing.assert_close(said.lower.flatten(2) + bias, lower)


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
    (gradient,) = torch.autograd.grad(said.evaluate(h)[1].sum() / 2, h)
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
    for of, bad, kind, text in [
        (stage, replace(code, switches=code.switches.flip(-1)), UsageError, "lies outside its region"),
        (stage, replace(code, values=code.values - 1), UnconvError, "negative values behind ReLU"),
        (stage, replace(code, values=code.values * math.nan), UnconvError, "finite"),
        (make_stage(Window.of(2, 2), filters=6), code, UnconvError, "give the code of this block"),
    ]:
        with pytest.raises(kind, match=text):
            constraints(of, bad)
