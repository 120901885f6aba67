"""Refinement: least squares to the end, each image alone, never upwards, and in fewer passes with a preconditioner."""

import pytest
import torch
import torch.nn.functional as F

from unconv.errors import UnconvError
from unconv.inversion.refine import RefineConfig, refine
from unconv.stationary import (
    Blocks,
    StationaryConfig,
    StationaryPreconditioner,
    average_normal_operator,
    residual_covariance,
)

SHAPE = (1, 24, 24)


def features(x):
    kernel = torch.ones(4, 1, 5, 5) / 25
    kernel[1, 0, 2, 2] += 0.05
    kernel[2:] += 0.02 * torch.randn(2, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    return F.leaky_relu(F.conv2d(x, kernel, padding=2), 0.3)


def objective(target, log=None):
    def value_and_grad(x, rows):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            loss = (features(x) - target[rows]).square().flatten(1).sum(1) / 2
            (gradient,) = torch.autograd.grad(loss.sum(), x)
        if log is not None:
            log.append(len(rows))
        return loss.detach(), gradient

    return value_and_grad


def problem(count=3):
    generator = torch.Generator().manual_seed(1)
    truth = torch.randn(count, *SHAPE, generator=generator)
    truth = truth + 3 * F.avg_pool2d(truth, 3, 1, 1)
    start = truth + 0.3 * torch.randn(count, *SHAPE, generator=generator)
    return truth, start, features(truth)


def stationary(residuals):
    blocks, config = Blocks(SHAPE, (1, 1)), StationaryConfig(probes=32)
    normal = average_normal_operator(features, residuals, blocks, config)
    return StationaryPreconditioner(normal, residual_covariance(residuals, blocks, config), blocks)


def test_the_preconditioner_saves_passes():
    truth, start, target = problem()
    errors = []
    for preconditioner in (None, stationary(truth - start)):
        found = refine(
            start,
            objective(target),
            preconditioner=preconditioner,
            config=RefineConfig(passes=8, noise=0.3),
        )
        assert (found.passes <= 8).all()
        errors.append((found.images - truth).norm() / (start - truth).norm())
    assert errors[1] < 0.7 * errors[0]


def test_it_goes_to_the_end_and_never_upwards():
    _, start, target = problem()
    before = objective(target)(start, torch.arange(3))[0]
    found = refine(
        start,
        objective(target),
        config=RefineConfig(passes=400, tolerance=0.05, stalled=0.0),
    )
    assert found.status == ("converged",) * 3
    assert (found.loss <= 0.05**2 * before).all()
    torch.testing.assert_close(found.loss, objective(target)(found.images, torch.arange(3))[0])
    for passes in range(1, 12):
        part = refine(start, objective(target), config=RefineConfig(passes=passes))
        assert (part.loss <= before).all()
        before = part.loss


def test_every_image_is_alone_and_stops_alone():
    _, start, target = problem()
    start[1] = start[1] * 0.999 + 0.001 * start[0]
    log = []
    config = RefineConfig(passes=60, tolerance=0.2, stalled=0.0)
    together = refine(start, objective(target, log), config=config)
    assert sum(log) == together.passes.sum()
    assert log[0] == 3
    assert log[-1] < 3
    for n in range(3):
        alone = refine(start[n : n + 1], objective(target[n : n + 1]), config=config)
        torch.testing.assert_close(alone.images[0], together.images[n], rtol=1e-3, atol=1e-3)
        assert alone.passes[0] == together.passes[n]


def test_a_start_that_cannot_be_improved():
    truth, start, target = problem()
    found = refine(truth, objective(target))
    assert found.status == ("converged",) * 3
    assert torch.equal(found.images, truth)
    assert (found.passes == 1).all()
    start[0, 0, 0, 0] = torch.nan
    found = refine(start, objective(target), config=RefineConfig(passes=5))
    assert found.status[0] == "not finite"
    assert found.images[1:].isfinite().all()


def test_a_loss_that_no_image_changes_stalls():
    start = torch.ones(2, *SHAPE)
    found = refine(start, lambda x, rows: (torch.ones(len(x)), torch.zeros_like(x)))
    assert found.status == ("stalled", "stalled")
    assert torch.equal(found.images, start)


def test_no_passes_and_wrong_numbers():
    _, start, target = problem()
    found = refine(start, objective(target), config=RefineConfig(passes=0))
    assert torch.equal(found.images, start)
    with pytest.raises(UnconvError, match="passes is -1"):
        refine(start, objective(target), config=RefineConfig(passes=-1))
