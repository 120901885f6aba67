"""A budget of time, measured once and turned into whole passes before work starts."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from unconv.errors import UnconvError
from unconv.evaluate.network import Network
from unconv.evaluate.reconstruction import IN_PASSES, Task

MOST_PASSES = 150  # of a layer; from there on refinement gains next to nothing
LEAST_PASSES = 4  # of a layer that is refined at all
SETUP = 20  # passes that the preconditioner of a layer costs, once
SHARE = 0.8  # of what is left after the linear part that is planned; the rest is slack
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
    from unconv.inversion.linear import LinearConfig
    from unconv.tracing import capture

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


def plan_passes(tasks: Sequence[Task], per_pass: Mapping[str, float], images: int, seconds: float) -> dict[str, int]:
    """Deal seconds out: equal time for every layer, up to ``MOST_PASSES``; what is left over goes to the others.

    Layers that would get fewer than ``LEAST_PASSES`` get none, the dearest first: one pass only looks, and the
    preconditioner costs more than that.
    """
    runs = {layer: sum(t.layer == layer and t.method in IN_PASSES for t in tasks) for layer in per_pass}
    setup = {t.layer: SETUP * per_pass[t.layer] for t in tasks if t.method == "gauss-newton"}
    # the cheapest layers first: what they do not need is shared among the others
    chosen = sorted((layer for layer, n in runs.items() if n), key=lambda layer: per_pass[layer] * runs[layer])
    while chosen:
        passes = dict.fromkeys(per_pass, 0)
        left = SHARE * max(seconds, 0.0) - sum(setup.get(layer, 0.0) for layer in chosen)
        for number, layer in enumerate(chosen):
            cost = per_pass[layer] * images * runs[layer]
            passes[layer] = min(MOST_PASSES, max(0, int(left / (len(chosen) - number) / cost)))
            left -= passes[layer] * cost
        if passes[chosen[-1]] >= LEAST_PASSES:
            return passes
        chosen.pop()
    return dict.fromkeys(per_pass, 0)


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
