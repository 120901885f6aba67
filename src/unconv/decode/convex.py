"""The input that agrees with everything a code says: equations, inequalities, and non-negativity."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from unconv.conv_block import ConvBlock
from unconv.decode.constraints import Reading, UnknownSwitches, statements
from unconv.decode.nonlinear_cg import Problem, descend
from unconv.decode.priors import Euclidean, Gaussian, Smooth, SmoothL1, TotalVariation
from unconv.linalg import column, norms, tiny
from unconv.solvers.solution import Solution
from unconv.sparsity import Code

Prior = Literal["smooth", "gaussian", "l1", "tv"]
PRIORS: tuple[Prior, ...] = ("smooth", "gaussian", "l1", "tv")
WEIGHTED = ("l1", "tv")
WEIGHT = 1e-3
FIRST_STEPS = 60
GUESS_STEPS = 30


def convex(
    stage: ConvBlock,
    code: Code,
    *,
    prior: Prior | None = "smooth",
    weight: float | None = None,
    reading: Reading = "network",
    switches: bool = True,
    tolerance: float = 1e-3,
    max_steps: int = 200,
) -> Solution[Tensor]:
    """Find the input that satisfies all that a code says about it (paper.md, section 3).

    Minimises half the sum of squared violations: of the equations at the switches, of the inequalities at the
    places that lost and over the regions that ReLU set to zero, and of ``x >= 0`` where the stage reads the
    output of a ReLU. Many inputs satisfy everything; the prior says which one is returned:

    * ``None``: near the one that is closest to zero;
    * ``"smooth"``: the same, in a metric in which neighbouring places are alike;
    * ``"gaussian"``: the one closest to the mean of a first, smooth estimate, in the metric of the covariance of
      that estimate's channels (empirical Bayes, nothing is learned from other images);
    * ``"l1"``, ``"tv"``: least sum of magnitudes, or least total variation, added with a weight.

    The solver is non-linear conjugate gradients (Polak-Ribière, restarted) preconditioned by the prior's metric,
    with a line search that is exact on the piecewise quadratic objective and costs no convolution, so a
    step is one ``W`` and one ``W^T``. It never ascends, needs no step size, and every input stops by itself. The
    problem is convex, with two exceptions that have local minima: averages of an activation, and ``switches=False``
    behind max pooling, where the currently largest entry of each region stands for the switch.

    Args:
        stage: The stage that made the code.
        code: Codes of ``N`` inputs.
        prior: What is assumed where the code leaves the input open.
        weight: Weight of ``"l1"`` and ``"tv"``, in units of the root mean square of ``W^T`` times the stated values;
            1e-3 where ``None``, small enough for the code to win wherever both speak.
        reading: ``"network"``, or ``"paper"`` for codes of ``Pooled(region, k)``: magnitude pooling, ``k`` kept.
        switches: Whether the switches of a max pooling are known.
        tolerance: An input has converged once the norm of all violations is at most this, relative to the
            norm of the stated values, or once the gradient has fallen to the square of it.
        max_steps: Largest number of steps, the first estimate's counted in.

    Returns:
        Inputs, shape ``(N, M, *spatial)``; ``history`` holds the norm of all violations relative to the norm of the
        stated values.

    Raises:
        ValueError: If the prior does not exist, a weight is given to a prior without one, or a number is out of range.
    """
    if prior is not None and prior not in PRIORS:
        raise ValueError(f"prior {prior!r} does not exist; use None or one of {', '.join(PRIORS)}")
    if max_steps < 0:
        raise ValueError(f"max_steps is {max_steps}; it counts the steps allowed, so it is at least 0")
    if weight is not None and (prior not in WEIGHTED or not 0 <= weight < math.inf):
        raise ValueError(f"weight {weight} does not fit prior {prior!r}; only l1 and tv have one, at least 0")
    said = statements(stage, code, reading=reading, switches=switches)
    zero = torch.zeros(
        len(code.values), *stage.operator.input_shape, dtype=code.values.dtype, device=code.values.device
    )
    problem = Problem(stage.operator, said, _negativity(stage))
    smooth = Smooth.of(zero.shape[2:], 0.5, zero)
    metric = Euclidean() if prior in {None, "l1"} else smooth
    start, made = zero, 0
    if isinstance(said, UnknownSwitches):
        guess = Problem(stage.operator, said.spread(), _negativity(stage))
        solution = descend(guess, zero, smooth, tolerance=tolerance, max_steps=min(GUESS_STEPS, max_steps))
        start, made = solution.value, solution.steps
    if prior in {None, "smooth"}:
        return _non_negative(stage, descend(problem, start, metric, tolerance=tolerance, max_steps=max_steps - made))
    first = descend(problem, start, metric, tolerance=tolerance, max_steps=min(FIRST_STEPS, max_steps - made))
    made += first.steps
    if prior == "gaussian":
        metric = Gaussian.from_estimate(first.value, Smooth.of(zero.shape[2:], 0.25, zero))
        start = first.value.flatten(2).mean(2).reshape(*zero.shape[:2], *[1] * (zero.ndim - 2)).expand_as(zero)
    else:
        rounding = 1e-2 * max(first.value.square().mean().sqrt().item(), tiny(zero))
        pull = stage.operator.adjoint(said.gradient(stage.operator.forward(zero)))
        factor = (WEIGHT if weight is None else weight) * norms(pull) / zero[0].numel() ** 0.5
        penalty = SmoothL1(rounding) if prior == "l1" else TotalVariation(rounding)
        problem = Problem(stage.operator, said, _negativity(stage), penalty, column(factor, zero))
        start = first.value
    second = descend(problem, start, metric, tolerance=tolerance, max_steps=max_steps - made)
    history = torch.cat([first.history, second.history[1:]])
    return _non_negative(stage, Solution(second.value, history, second.status))


def _negativity(stage: ConvBlock) -> float:
    """Returns the weight of the squared violations of ``x >= 0``: the mean of the diagonal of ``W^T W``."""
    if not stage.nonnegative_input:
        return 0.0
    operator = stage.operator
    rows = math.prod(operator.output_shape[1:])
    return (operator.weight.double().square().sum() * rows / math.prod(operator.input_shape)).item()


def _non_negative(stage: ConvBlock, solution: Solution[Tensor]) -> Solution[Tensor]:
    return replace(solution, value=solution.value.clamp_min(0)) if stage.nonnegative_input else solution
