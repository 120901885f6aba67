"""How far refinement pays is measured on reference images, and the images under test have no say."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from unconv.inversion.calibration import CalibrationConfig, Refinement, calibrate
from unconv.inversion.frozen_network import LayerFunction
from unconv.inversion.gauss_newton import GaussNewtonConfig, gauss_newton
from unconv.linalg import relative_norm
from unconv.stationary import StationaryConfig, StationaryPreconditioner


def setup(stride=1, spread=0.3):
    """Give a layer, its preconditioner, images and estimates of them."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1, stride=stride), nn.ReLU(), nn.MaxPool2d(2))
    model[0].weight.data = torch.randn(4, 1, 3, 3, generator=generator)
    model[0].bias.data = torch.ones(4)
    function = LayerFunction(model, "2", (1, 16, 16))
    x = nn.functional.avg_pool2d(torch.randn(6, 1, 16, 16, generator=generator), 3, 1, 1)
    estimates = x + spread * torch.randn(x.shape, generator=generator) * x.std()
    strides = (2 * stride,) * 2
    fitted = StationaryPreconditioner.of(function, x[2:], x[2:] - estimates[2:], strides, StationaryConfig(probes=8))
    return function, fitted, x[:2], estimates[:2]


def errors_left(function, fitted, x, start, *, noise, passes):
    """The share of each image's error that is left after each step of Gauss-Newton."""
    seen = []
    options = {"initial": start, "passes": passes, "preconditioner": fitted, "config": GaussNewtonConfig(noise=noise)}
    gauss_newton(function, function(x), watch=lambda y: seen.append(y.clone()), **options)
    return [relative_norm(y - x, x) / relative_norm(start - x, x) for y in seen]


def test_errors_are_those_of_the_image_that_gains_least():
    function, fitted, x, start = setup()
    config = CalibrationConfig(noises=(3.0,), first=0, passes=(6,))
    found = calibrate(function, fitted, x, start, config=config)
    seen = [left.max().item() for left in errors_left(function, fitted, x, start, noise=3.0, passes=6)]
    linear = relative_norm(start - x, x).mean().item()
    assert found.noise == 3.0
    assert found.errors["none"] == pytest.approx([linear * share for share in (1, 1, *seen)], rel=1e-5)
    assert found.errors["none"][-1] < 0.7 * linear
    assert found.best("none", 6) > 0
    strict = calibrate(function, fitted, x, start, config=replace(config, least_gain=0.99))
    assert strict.best("none", 6) == 0


def test_the_level_of_noise_is_the_one_that_does_best():
    function, fitted, x, start = setup()
    noises, left = (0.01, 1.0, 100.0, 1e4), {}
    for noise in noises:
        seen = errors_left(function, fitted, x, start, noise=noise, passes=4)
        left[noise] = min(1.0, *(share.mean().item() for share in seen))
    for first in range(4):
        config = CalibrationConfig(noises=noises, first=first, trial=4, passes=(4,))
        place = noises.index(calibrate(function, fitted, x, start, config=config).noise)
        # from the first one downhill
        assert left[noises[place]] == min(left[noise] for noise in noises[max(place - 1, 0) : place + 2])


def test_where_nothing_is_gained_the_linear_estimate_stays_and_side_information_is_tried():
    function, fitted, x, _ = setup(stride=4)
    # the true image: whatever is done to it makes it worse
    start = x + 1e-4 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    config = CalibrationConfig(noises=(1.0,), first=0, passes=(3, 6))
    found = calibrate(function, fitted, x, start, ("none", "gates"), config=config)
    assert len(found.errors["none"]) == 7  # the longer trial
    assert set(found.errors) == {"none", "gates"}
    assert calibrate(function, fitted, x, start, ("none", "gates"), config=config, known=found) is found
    if found.best("none", 100) == 0:
        assert found.foretold("none", 100) == found.errors["none"][0]


def test_no_longer_trial_where_errors_rise():
    function, fitted, x, _ = setup()
    start = x + 1e-4 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    others = function(x.flip(0))  # the features of other images lead away from the true ones
    config = CalibrationConfig(noises=(1.0,), first=0, passes=(4, 8))
    found = calibrate(function, fitted, x, start, features=others, config=config)
    assert len(found.errors["none"]) == 5
    assert found.best("none", 100) == 0
    assert calibrate(function, fitted, x, start, features=others, config=config, known=found) is found


def test_the_best_number_of_passes():
    found = Refinement(1.0, {"none": (0.5, 0.5, 0.45, 0.52, 0.55), "switches": (0.5, 0.5, 0.499, 0.498)})
    assert [found.best("none", n) for n in (0, 1, 2, 3, 100)] == [0, 0, 2, 2, 2]
    assert found.best("switches", 100) == 0  # less than three percent
    # gates that hinder at first are left aside then
    slow = Refinement(1.0, {"none": (0.8, 0.8, 0.4, 0.3, 0.2), "gates": (0.8, 0.8, 0.7, 0.3, 0.1)})
    assert [slow.helpful("gates", n) for n in (2, 3, 4)] == ["none", "gates", "gates"]
    assert slow.helpful("switches", 4) == "switches"
    falling = Refinement(1.0, {"none": (0.8, 0.8, 0.4, 0.3, 0.2)})
    assert [falling.best("gates", n) for n in (1, 3, 4, 100)] == [0, 3, 4, 100]
    assert falling.foretold("gates", 8) == pytest.approx(0.1)  # from 2 to 4 passes it was halved
    assert falling.foretold("none", 1) == 0.8


@pytest.mark.parametrize("gain", [-1.0, 0.03, 0.9])
def test_a_robust_loss_is_chosen_where_it_comes_nearer(gain):
    function, fitted, x, start = setup()
    config = CalibrationConfig(noises=(3.0,), first=0, passes=(6,), robust_trial=8, robust_gain=gain)
    solver = GaussNewtonConfig(robust_after=5)
    options = {"config": config, "solver": solver, "most": config.robust_from}
    found = calibrate(function, fitted, x, start, ["switches"], **options)
    for side_info in ("none", "switches"):
        errors = []
        for robust in (False, True):
            settings = GaussNewtonConfig(noise=3.0, robust=robust, robust_after=5)
            given = {"initial": start, "passes": 13, "preconditioner": fitted, "config": settings}
            solved = gauss_newton(function, function(x), function.record(x, side_info), **given)
            errors.append(relative_norm(solved.value - x, x).mean().item())
        pays = errors[1] < errors[0] * (1 - gain if side_info == "none" else 1 + gain)
        assert found.robust[side_info] == (pays and found.robust["none"])
        applied = found.applied(solver, side_info)
        assert (applied.noise, applied.robust) == (3.0, found.robust[side_info])
    assert found.robust["none"] or gain > 0
    few = calibrate(function, fitted, x, start, config=config, solver=solver, most=config.robust_from - 1)
    assert few.robust == {}
    noisy = replace(solver, tolerance=0.1)
    assert calibrate(function, fitted, x, start, **(options | {"solver": noisy})).robust == {}
    assert calibrate(function, fitted, x, start, known=few, **options).robust.keys() == {"none"}


def test_no_more_passes_are_made_than_foretold():
    function, fitted, x, start = setup()
    made, config = [], CalibrationConfig(passes=(12,))
    function.model[0].register_forward_hook(lambda *_: made.append(len(x)) if torch.is_grad_enabled() else None)
    found = calibrate(function, fitted, x, start, ["switches"], config=config, most=config.robust_from)
    assert found.robust.keys() == {"none", "switches"}
    foretold = config.cost(2) + config.robust_cost(2, kinds=2 if found.robust["none"] else 1)
    assert 0.7 < sum(made) / foretold <= 1
