"""A budget of time, measured once and turned into whole passes before work starts."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from unconv.errors import UnconvError
from unconv.evaluate.network import Network
from unconv.evaluate.noise import noisy_name
from unconv.evaluate.reconstruction import IN_PASSES, Task
from unconv.inversion.calibration import CalibrationConfig, Refinement
from unconv.inversion.linear import EXAMPLES, LinearConfig
from unconv.stationary import StationaryConfig
from unconv.tracing import capture

MOST_PASSES = 150  # of a layer; from there on refinement gains next to nothing
STEPS = (4, 8, 12, 16, 24, 32, 48, 64, 96, 128, MOST_PASSES)  # numbers of passes that a layer may get
SHARE = 0.85  # of what is left after the linear part that is planned; the rest is slack
REFERENCES = 48  # images that linear decoders are fitted to


def seconds_per_pass(network: Network, x: Tensor, layers: Sequence[str]) -> dict[str, float]:
    """Measure a forward and a backward pass up to each layer, for one image ``(1, C, H, W)``."""
    seconds = {}
    for layer in layers:
        function = network.function(layer, x.shape[1:])
        timings = []
        for _ in range(2):  # the first one warms up
            start = time.perf_counter()
            image = x.detach().to(network.device).clone().requires_grad_()
            y = function(image)
            if y.requires_grad:
                torch.autograd.grad(y.square().sum(), image)
            if network.device.type == "cuda":
                torch.cuda.synchronize()
            timings.append(time.perf_counter() - start)
        seconds[layer] = min(timings)
    return seconds


def linear_seconds(network: Network, x: Tensor, layers: Sequence[str], images: int) -> float:
    """Return roughly how long linear decoders take: references through the network, normal equations, all images."""
    start = time.perf_counter()
    capture(network.module, layers, x)
    forward = time.perf_counter() - start
    side = 512
    a = torch.ones(side, side)
    times = []
    for _ in range(4):  # the first one is slower than those that follow
        start = time.perf_counter()
        torch.mm(a, a)
        times.append(time.perf_counter() - start)
    per_product = min(times) / side**3
    config, pixels = LinearConfig(), x[0, 0].numel()
    work = 0.0
    for layer in layers:
        shape = network.layers(x).get(layer).shape
        positions = shape[-1] * shape[-2] if len(shape) == 3 else 1
        unknowns = min(config.max_unknowns, 9 * shape[0]) if positions > 1 else REFERENCES
        targets = x.shape[1] * pixels / max(positions, 1)
        rows = positions * REFERENCES
        # the normal equations of all samples, and a factorisation for every ridge that is tried
        work += min(config.max_operations, rows * unknowns * (unknowns + targets)) + 3 * unknowns**3
    return 2 * forward * (2 * REFERENCES + images) + work * per_product


def plan_passes(
    tasks: Sequence[Task],
    per_pass: Mapping[str, float],
    images: int,
    seconds: float,
    refinements: Mapping[str, Refinement] | None = None,
) -> dict[str, int]:
    """Deal seconds out in rounds, each to the layer whose expected error falls most per second.

    What to expect is what calibration found on reference images; without one, an error that falls with the root of
    the passes. A layer where refinement does not pay gets all passes at no cost: it makes none of them.
    """
    costs = {
        layer: [
            (t, (refinements or {}).get(noisy_name(layer, t.noise)) if t.method == "gauss-newton" else None)
            for t in tasks
            if t.layer == layer and t.method in IN_PASSES
        ]
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


def calibration_passes() -> int:
    """Return the passes, of one image, that calibration of a layer takes where refinement pays."""
    return CalibrationConfig().cost(EXAMPLES) + StationaryConfig().probes


def check_linear(needed: float, budget: float) -> None:
    """Refuse a budget that the linear part alone would exceed."""
    if needed > budget:
        raise UnconvError(
            f"a budget of {budget:.0f} s is too small: linear decoders of these layers need about {needed:.0f} s; "
            "give a larger budget, fewer layers or a smaller size"
        )


class Clock:
    """Tells whether there is time for something more.

    Attributes:
        deadline: Seconds of ``time.monotonic``; ``None`` where there is no budget.
    """

    def __init__(self, budget: float | None, now: Callable[[], float] = time.monotonic) -> None:
        """Start the clock."""
        self.now = now
        self.start = now()
        self.deadline = None if budget is None else self.start + budget

    def left(self) -> float:
        """Return the seconds that are left, infinitely many without a budget."""
        return float("inf") if self.deadline is None else self.deadline - self.now()

    def elapsed(self) -> float:
        """Return the seconds since the start."""
        return self.now() - self.start
