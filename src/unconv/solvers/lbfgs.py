"""Limited-memory quasi-Newton steps (L-BFGS) for a batch, every input with a memory and a step length of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from unconv.linalg import column, dots, norms, tiny
from unconv.solvers.solution import BatchProgress, Solution

Evaluate = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""From points and their rows in the batch to the value of each and the gradient."""
Metric = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From vectors, the present values and the rows in the batch to products with first inverse Hessians."""


@dataclass(frozen=True)
class LbfgsConfig:
    """How the quasi-Newton steps are made."""

    tolerance: float = 1e-4  # an input has converged once its residual is at most this
    memory: int = 10  # number of past steps kept
    armijo: float = 1e-4  # share of the decrease promised by the slope that a step has to make
    shrink: tuple[float, float] = (0.1, 0.5)  # least and largest factor of a step that was too long
    stalled: float = 1e-4  # an input is done where its value has fallen by less than this share
    patience: int = 10  # in so many evaluations


@dataclass
class _Pair:
    step: Tensor
    change: Tensor
    inverse: Tensor  # 1 / <step, change>; 0 where the pair does not count

    def at(self, rows: Tensor) -> _Pair:
        return _Pair(self.step[rows], self.change[rows], self.inverse[rows])


@dataclass(frozen=True)
class _Running:
    """What is known of the inputs that still run."""

    x: Tensor
    value: Tensor
    gradient: Tensor
    direction: Tensor
    slope: Tensor
    length: Tensor

    def at(self, rows: Tensor) -> _Running:
        return _Running(*(tensor[rows] for tensor in vars(self).values()))


def lbfgs(
    evaluate: Evaluate,
    start: Tensor,
    *,
    max_passes: int,
    size: Tensor | None = None,
    metric: Metric | None = None,
    config: LbfgsConfig | None = None,
    watch: Callable[[Tensor], None] | None = None,
) -> Solution[Tensor]:
    """Minimise functions whose least value is near zero (Nocedal and Wright 2006, algorithms 7.4 and 7.5).

    Where a trial lowers its function by a share of what the slope promises, it is taken, and the next direction tried
    at full length; where it does not, a shorter one is tried (quadratic interpolation). The first step has full length
    with a ``metric`` (first inverse Hessian), and else Polak's, which knows that the least value is zero.
    ``max_passes`` counts evaluations, the start's included. The residual of an input is ``sqrt(2 value) / size``;
    ``watch`` is called with all points after every evaluation.
    """
    config, best = config or LbfgsConfig(), start.clone()
    size = start.new_ones(len(start)) if size is None else size
    rows = torch.arange(len(start), device=start.device)
    if not max_passes or not len(start):
        return BatchProgress(torch.full_like(size, torch.nan)).solution(best)
    value, gradient = evaluate(start, rows)
    progress = BatchProgress((2 * value).sqrt() / size)
    progress.spend()
    direction = -gradient if metric is None else metric(-gradient, value, rows)
    slope = dots(gradient, direction)
    length = value / slope.abs().clamp_min(tiny(slope)) if metric is None else torch.ones_like(value)
    run, pairs, values = _Running(start, value, gradient, direction, slope, length), [], [value]
    for number in range(1, max_passes + 1):
        stalled = ~(run.slope < 0) | ~run.value.isfinite()
        if len(values) > config.patience:
            stalled |= run.value > (1 - config.stalled) * values[0]
        converged = progress.residual <= config.tolerance
        progress.end(stalled, "stalled")
        progress.end(converged, "converged")
        if (stalled | converged).any():
            kept = progress.keep(~(stalled | converged))
            run, pairs, values = run.at(kept), [pair.at(kept) for pair in pairs], [v[kept] for v in values]
        if number == max_passes or not progress:
            break
        trial = torch.addcmul(run.x, column(run.length, run.x), run.direction)
        reached, pull = evaluate(trial, progress.running)
        progress.spend()
        good = reached <= run.value + config.armijo * run.length * run.slope
        mask = column(good, run.x)
        pairs = [*pairs, _pair(torch.where(mask, trial - run.x, 0.0), torch.where(mask, pull - run.gradient, 0.0))]
        pairs = pairs[-config.memory :]
        # where nothing was taken the parabola through the value, the slope and the trial's value has its least here
        bend = 2 * (reached - run.value - run.length * run.slope)
        shorter = -run.slope * run.length / bend.clamp_min(tiny(bend))
        shorter = run.length * torch.nan_to_num(shorter, nan=config.shrink[0]).clamp(*config.shrink)
        x, gradient = torch.where(mask, trial, run.x), torch.where(mask, pull, run.gradient)
        value = torch.where(good, reached, run.value)
        turned = _direction(gradient, pairs, metric, value, progress.running)
        direction = torch.where(mask, turned, run.direction)
        length = torch.where(good, 1.0, shorter)
        run = _Running(x, value, gradient, direction, dots(gradient, direction), length)
        values = [*values, value][-config.patience - 1 :]
        best[progress.running] = x
        progress.record((2 * value).sqrt() / size[progress.running])
        if watch is not None:
            watch(best)
    return progress.solution(best)


def _pair(step: Tensor, change: Tensor) -> _Pair:
    product = dots(step, change)
    least = torch.finfo(step.dtype).eps * norms(step) * norms(change)
    return _Pair(step, change, torch.where(product > least, 1 / product, 0.0))


def _direction(gradient: Tensor, pairs: list[_Pair], metric: Metric | None, value: Tensor, rows: Tensor) -> Tensor:
    """Return minus the approximate inverse Hessian times the gradient, ``metric`` being the one without any pairs."""
    q, shares = -gradient, []
    for pair in reversed(pairs):
        share = pair.inverse * dots(pair.step, q)
        q = torch.addcmul(q, column(-share, q), pair.change)
        shares.append(share)
    # the scale that fits the last step that counts: <s, y> / <y, M y>
    scale = torch.ones_like(value)
    for pair in pairs if metric is None else pairs[-1:]:
        change = pair.change if metric is None else metric(pair.change, value, rows)
        curvature = pair.inverse * dots(pair.change, change)
        scale = torch.where(pair.inverse > 0, 1 / curvature.clamp_min(tiny(curvature)), scale)
    q = q if metric is None else metric(q, value, rows)
    q = q * column(scale, q)
    for pair, share in zip(pairs, reversed(shares), strict=True):
        q = torch.addcmul(q, column(share - pair.inverse * dots(pair.change, q), q), pair.step)
    return q
