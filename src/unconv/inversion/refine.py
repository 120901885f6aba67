"""Refinement of estimates: L-BFGS from a linear estimate, with the stationary preconditioner as initial metric."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from unconv.errors import UnconvError
from unconv.linalg import column, dots, tiny
from unconv.stationary import StationaryPreconditioner

ValueAndGrad = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class RefineConfig:
    """How estimates are refined.

    Attributes:
        passes: Most passes per image; one is a forward and a backward pass.
        tolerance: An image is done where ``||f(x) - y||`` has fallen to this share of what it was at the start.
        stalled: An image is done where ``||f(x) - y||^2`` has fallen by less than this share in ``patience`` passes.
        patience: See ``stalled``.
        memory: Steps that L-BFGS remembers.
        noise: Variance ``nu`` of a feature that the preconditioner expects at the start, in units of what the
            residuals of the linear decoder give a feature on average, ``mean(diag H) * mean(diag C)``. Large values
            keep to what the covariance holds for likely, small ones trust the average of ``J^T J``.
        noise_power: ``nu`` falls with this power of ``||f(x) - y||``: what the linearisation cannot explain falls too.
        sufficient: A step is taken where the loss falls by this share of what the slope promises.
        shrink: Least and largest ratio of a step to the one that was refused before it.
    """

    passes: int = 150
    tolerance: float = 1e-4
    stalled: float = 1e-4
    patience: int = 10
    memory: int = 10
    noise: float = 3.0
    noise_power: float = 1.5
    sufficient: float = 1e-4
    shrink: tuple[float, float] = (0.1, 0.5)

    @staticmethod
    def for_stride(stride: int, passes: int = 150) -> RefineConfig:
        """What paid at strides 2, 4 and 8 of VGG-19: the deeper the layer, the less its linearisation explains.

        Args:
            stride: Pixels per position of the layer.
            passes: Most passes per image.

        Returns:
            A configuration with ``noise = 0.15 * stride^3``, from 1 to 100.
        """
        return RefineConfig(passes=passes, noise=min(max(0.15 * stride**3, 1.0), 100.0))


@dataclass(frozen=True)
class Refined:
    """Refined images.

    Attributes:
        images: Shape ``(N, C, *spatial)``.
        loss: ``||f(x) - y||^2 / 2`` of each; never above that of the start. Shape ``(N,)``.
        passes: What each image has taken. Shape ``(N,)``, int64.
        status: Of each: ``"converged"``, ``"stalled"``, ``"out of passes"`` or ``"not finite"``.
    """

    images: Tensor
    loss: Tensor
    passes: Tensor
    status: tuple[str, ...]


@dataclass
class _Pair:
    step: Tensor
    change: Tensor
    inverse: Tensor  # 1 / <step, change>; 0 where the pair does not count

    def at(self, rows: Tensor) -> _Pair:
        return _Pair(self.step[rows], self.change[rows], self.inverse[rows])


def refine(
    start: Tensor,
    value_and_grad: ValueAndGrad,
    *,
    preconditioner: StationaryPreconditioner | None = None,
    config: RefineConfig | None = None,
) -> Refined:
    """Bring the features of images nearer to what they should be, from a first estimate.

    L-BFGS (Nocedal and Wright 2006, algorithm 7.4) with ``M / nu`` in place of a multiple of the identity, which is
    L-BFGS in the coordinates ``x = start + M^(1/2) z``. Every image has a memory, a step length and an end of its own;
    those that are done take no further passes.

    Args:
        start: Estimates. Shape ``(N, C, *spatial)``.
        value_and_grad: From images and their rows in ``start`` to ``||f(x) - y||^2 / 2`` of each and the gradient.
        preconditioner: The preconditioner ``M``; without one, coordinates are pixels.
        config: How to refine.

    Returns:
        The images.

    Raises:
        UnconvError: If fewer than no passes are allowed.
    """
    config = config or RefineConfig()
    if config.passes < 0:
        raise UnconvError(f"passes is {config.passes}; expected at least 0")
    count = len(start)
    images, passes = start.clone(), torch.zeros(count, dtype=torch.int64)
    final, status = start.new_full((count,), torch.nan), ["out of passes"] * count
    if not config.passes or not count:
        return Refined(images, final, passes, tuple(status))
    rows = torch.arange(count)
    x = start
    loss, gradient = value_and_grad(x, rows)
    passes += 1
    first, final = loss.clone(), loss.clone()

    def metric(v: Tensor, loss: Tensor, first: Tensor) -> Tensor:
        if preconditioner is None:
            return v
        share = (loss / first.clamp_min(tiny(loss))).pow(config.noise_power / 2)
        # variance of a feature around its linearisation, of each image
        nu = (config.noise * preconditioner.unit * share).clamp_min(tiny(loss))
        # the Hessian of the loss is J^T J, and its inverse is about M / nu = (H + nu * C^-1)^-1
        return preconditioner.apply(v, nu) / column(nu, v)

    pairs: list[_Pair] = []
    direction = metric(-gradient, loss, first)
    slope = dots(gradient, direction)
    length = torch.ones_like(loss)
    if preconditioner is None:
        # Polyak's step: the least value is about zero
        length = loss / slope.abs().clamp_min(tiny(slope))
    history = [loss]
    while True:
        for row, why in _finished(loss, first[rows], slope, history, config):
            status[rows[row]] = why
        going = torch.tensor([status[row] == "out of passes" for row in rows])
        if not going.all():
            keep = going.nonzero()[:, 0]
            rows, length = rows[keep], length[keep]
            x, loss, gradient, direction, slope = (t[keep] for t in (x, loss, gradient, direction, slope))
            pairs, history = [pair.at(keep) for pair in pairs], [h[keep] for h in history]
        if not len(rows) or int(passes[rows[0]]) >= config.passes:
            return Refined(images, final, passes, tuple(status))
        trial = torch.addcmul(x, column(length, x), direction)
        reached, pull = value_and_grad(trial, rows)
        passes[rows] += 1
        good = reached <= loss + config.sufficient * length * slope
        mask = column(good, x)
        step, change = torch.where(mask, trial - x, 0.0), torch.where(mask, pull - gradient, 0.0)
        # where nothing was taken the parabola through the value, the slope and the trial's value has its least here
        shorter = -slope * length / (2 * (reached - loss - length * slope)).clamp_min(tiny(slope))
        shorter = length * torch.nan_to_num(shorter, nan=config.shrink[0]).clamp(*config.shrink)
        x, gradient = torch.where(mask, trial, x), torch.where(mask, pull, gradient)
        loss = torch.where(good, reached, loss)
        images[rows], final[rows] = x, loss
        history = [*history, loss][-config.patience - 1 :]
        product = dots(step, change)
        curved = product > torch.finfo(x.dtype).eps * step.flatten(1).norm(dim=1) * change.flatten(1).norm(dim=1)
        pairs = [*pairs, _Pair(step, change, torch.where(curved, 1 / product, 0.0))][-config.memory :]
        direction = torch.where(
            mask, _two_loops(gradient, pairs, lambda v, now=(loss, first[rows]): metric(v, *now)), direction
        )
        slope = dots(gradient, direction)
        length = torch.where(good, 1.0, shorter)


def _finished(
    loss: Tensor, first: Tensor, slope: Tensor, history: list[Tensor], config: RefineConfig
) -> list[tuple[int, str]]:
    finite = torch.isfinite(loss) & torch.isfinite(slope)
    converged = loss <= config.tolerance**2 * first
    stalled = ~(slope < 0)
    if len(history) > config.patience:
        stalled |= loss > (1 - config.stalled) * history[0]
    ends: list[tuple[int, str]] = []
    for row in range(len(loss)):
        if not finite[row]:
            ends.append((row, "not finite"))
        elif converged[row]:
            ends.append((row, "converged"))
        elif stalled[row]:
            ends.append((row, "stalled"))
    return ends


def _two_loops(gradient: Tensor, pairs: list[_Pair], metric: Callable[[Tensor], Tensor]) -> Tensor:
    """Minus the approximate inverse Hessian times the gradient, ``metric`` being the one without any pairs."""
    q = -gradient
    shares: list[Tensor] = []
    for pair in reversed(pairs):
        share = pair.inverse * dots(pair.step, q)
        q = torch.addcmul(q, column(-share, q), pair.change)
        shares.append(share)
    last = pairs[-1]
    # the scale that fits the last step: <s, y> / <y, M y>
    curvature = last.inverse * dots(last.change, metric(last.change))
    scale = torch.where(last.inverse > 0, 1 / curvature.clamp_min(tiny(curvature)), 1.0)
    q = metric(q)
    q = q * column(scale, q)
    for pair, share in zip(pairs, reversed(shares), strict=True):
        q = torch.addcmul(q, column(share - pair.inverse * dots(pair.change, q), q), pair.step)
    return q
