"""A budget of time, measured once and turned into whole passes before work starts."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from unconv.errors import UnconvError
from unconv.evaluate.network import Network
from unconv.evaluate.reconstruction import IN_PASSES, Task, refinement_of
from unconv.inversion.calibration import CalibrationConfig, Refinement
from unconv.inversion.frozen_network import LayerFunction
from unconv.inversion.linear import EXAMPLES
from unconv.inversion.reference_images import PHOTOGRAPHS, SYNTHETIC
from unconv.inversion.regression import LinearConfig, Reading
from unconv.stationary import StationaryConfig
from unconv.tracing import capture

MOST_PASSES = 150  # of a layer; from there on refinement gains next to nothing
STEPS = (4, 8, 12, 16, 24, 32, 48, 64, 96, 128, MOST_PASSES)  # numbers of passes that a layer may get
MOST_WITHOUT_ROBUST = CalibrationConfig.robust_from - 1  # passes for which calibration does not try a robust loss
CALIBRATION_SHARE = 0.4  # of what is left after the linear part that finding out how far refinement pays may take
SHARE = 0.85  # of what is left after the linear part that is planned; the rest is slack
# what else takes time, in multiply-adds: drawing all references, a value of the image; reading a number of a sample
DRAWING, READING = 2e6, 800
OVERHEAD = 1.8  # of all that beside multiply-adds in one product
TIMED = 0.3  # seconds that a call is timed for, at most
TIMING_SHARE = 0.01  # of a budget that timing the calls of one kind takes, at most


def seconds_per_pass(
    network: Network, x: Tensor, layers: Sequence[str], budget: float | None = None
) -> dict[str, float]:
    """Measure a forward and a backward pass up to each layer, for one image ``(1, C, H, W)``."""

    def once(function: LayerFunction) -> None:
        image = x.detach().to(network.device).clone().requires_grad_()
        y = function(image)
        if y.requires_grad:
            torch.autograd.grad(y.square().sum(), image)
        if network.device.type == "cuda":
            torch.cuda.synchronize()

    timed = _timed(budget, len(layers))
    return {layer: seconds_of_call(partial(once, network.function(layer, x.shape[1:])), timed) for layer in layers}


def linear_seconds(network: Network, x: Tensor, layers: Sequence[str], images: int, budget: float) -> float:
    """Return roughly how long linear decoders take: references through the network, normal equations, all images."""
    config, shapes = LinearConfig(), [network.layers(x).get(layer).shape for layer in layers]
    references = SYNTHETIC + PHOTOGRAPHS
    work = DRAWING * x[0].numel()
    for channels, *sizes in shapes:
        positions = math.prod(sizes) if len(sizes) == 2 else 1
        samples, targets = positions * references, x[0].numel() / positions
        most = min(config.max_unknowns, samples / config.fewest_samples)
        n = Reading.plan(channels, 2, most, config).unknowns if positions > 1 else references
        rows = min(samples, config.max_operations / n**2)
        # half of the Gram matrix and the targets; what is read; about eight factorisations; two solutions, in float64
        work += rows * n * (0.65 * n + targets + READING) + 8 * 2 / 3 * n**3 + 4 * n**2 * targets
    timed = _timed(budget, 2)
    forward = seconds_of_call(lambda: capture(network.module, layers, x), timed)
    a = torch.ones(512, 512)
    product = seconds_of_call(lambda: torch.mm(a, a), timed)
    return forward * (1.3 * references + 2 * images) + OVERHEAD * work * product / 512**3


def _timed(budget: float | None, calls: int) -> float:
    """Return the seconds that each of some calls is timed for."""
    return TIMED if budget is None else min(TIMED, TIMING_SHARE * budget / calls)


def seconds_of_call(do: Callable[[], object], timed: float) -> float:
    """Return the mean seconds of a call, over a time in which others on the machine have their turns."""
    do()  # the first one warms up
    start, calls = time.perf_counter(), 0
    while time.perf_counter() - start < timed or not calls:
        do()
        calls += 1
    return (time.perf_counter() - start) / calls


def plan_passes(
    tasks: Sequence[Task],
    per_pass: Mapping[str, float],
    images: int,
    seconds: float,
    refinements: Mapping[str, Refinement] | None = None,
) -> dict[str, int]:
    """Deal seconds out in rounds, each to the layer whose expected error falls most per second.

    What to expect is what calibration found; without one, an error that falls with the root of the passes. A layer
    where refinement does not pay gets all passes at no cost: it makes none of them.
    """
    costs = {
        layer: [(t, refinement_of(t, refinements or {})) for t in tasks if t.layer == layer and t.method in IN_PASSES]
        for layer in per_pass
    }
    passes, left = dict.fromkeys(per_pass, 0), SHARE * max(seconds, 0.0)

    def made_and_expected(layer: str, most: int) -> tuple[int, float]:
        """Return the passes of one image over a layer's tasks, and the sum of their expected errors."""
        made, expected = 0, 0.0
        for task, found in costs[layer]:
            made += most if found is None else found.best(task.side_info, most)
            expected += (1 + most) ** -0.5 if found is None else found.foretold(task.side_info, most)
        return made, expected

    while True:
        best = None
        for layer, made in passes.items():
            before, error = made_and_expected(layer, made)
            for more in STEPS if costs[layer] else ():
                after, lower = made_and_expected(layer, more)
                cost = per_pass[layer] * images * (after - before)
                if more <= made or cost > left or (not cost and more < MOST_PASSES):
                    continue
                rate = (error - lower) / cost if cost else float("inf")
                if rate > 0 and (best is None or rate > best[0]):
                    best = rate, layer, more, cost
        if best is None:
            return passes
        _, layer, passes[layer], cost = best
        left -= cost


def calibration_passes(robust_kinds: int = 0) -> int:
    """Return the passes of one image that calibration takes where refinement pays; a robust loss is tried for kinds."""
    config = CalibrationConfig()
    return config.cost(EXAMPLES) + config.robust_cost(EXAMPLES, robust_kinds) + StationaryConfig().probes


def passes_to_try(seconds: float, share: float, left: float, images: int, kinds: int) -> int:
    """Return the passes for which it is found out how far refinement of a layer pays, 0 where there is no time.

    ``seconds`` per pass of one image; ``share``: the layer's of the seconds that are ``left``. A layer is not tried
    where these are too few to refine all images afterwards, with each of some kinds of side information.
    """
    trial, everywhere = calibration_passes() * seconds, images * kinds * seconds
    if trial > CALIBRATION_SHARE * share or STEPS[0] * everywhere > SHARE * (left - trial):
        return 0
    most = max(STEPS[0], int(min(MOST_PASSES, SHARE * share / everywhere)))
    robust = calibration_passes(kinds) * seconds <= CALIBRATION_SHARE * share
    return most if robust else min(most, MOST_WITHOUT_ROBUST)


def check_linear(needed: float, clock: Clock, budget: float) -> None:
    """Refuse a budget that opening the model, which is done, and the linear part would exceed."""
    if needed > clock.left():
        raise UnconvError(
            f"a budget of {budget:.0f} s is too small: opening the model and linear decoders of these layers need "
            f"about {clock.elapsed() + needed:.0f} s; give a larger budget, fewer layers or a smaller size"
        )


class Clock:
    """Tells whether there is time for something more; ``reserved`` seconds are kept for what comes last."""

    def __init__(self, budget: float | None, started: float | None = None) -> None:
        """Start the clock, which ran before where ``started`` says so."""
        self.budget, self.reserved = math.inf if budget is None else budget, 0.0
        self.start = time.monotonic() if started is None else started

    def left(self) -> float:
        """Return the seconds that are left before what is reserved, infinitely many without a budget."""
        return self.budget - self.elapsed() - self.reserved

    def elapsed(self) -> float:
        """Return the seconds since the start."""
        return time.monotonic() - self.start
