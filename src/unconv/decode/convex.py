"""The input that agrees with everything a code says: equations, inequalities, and non-negativity."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import get_args

import torch
from torch import Tensor

from unconv.conv_block import ConvBlock
from unconv.decode.constraints import UnknownSwitches, constraints
from unconv.decode.nonlinear_cg import Objective, nonlinear_cg
from unconv.decode.priors import Covariance, Prior, smooth, with_channels
from unconv.errors import check_choice, check_whole
from unconv.solvers.solution import Solution, total_passes
from unconv.sparsity import Code, CodeKind

GUESS_STEPS = 30  # of a first guess that spreads each value over its region, where switches are unknown
FIRST_STEPS = 60  # of the smooth estimate that "gaussian" starts from
POWER, CENTRED_POWER = 0.5, 0.25  # of the smooth preconditioner, from zero and from the first estimate's mean


def convex(
    block: ConvBlock,
    code: Code,
    *,
    prior: Prior | None = "smooth",
    code_kind: CodeKind = "network",
    switches: bool = True,
    tolerance: float = 1e-3,
    max_steps: int = 200,
) -> Solution[Tensor]:
    """Find the input that satisfies all that a code says about it.

    Minimises half the sum of squared violations: of the equations at the switches, of the inequalities at the
    places that are not the maximum and over the regions that ReLU set to zero, and of ``x >= 0`` where the block
    reads the output of a ReLU. With ``[l_i, u_i]`` the interval that the code leaves for ``(W x)_i``, that is ::

        1/2 sum_i dist((W x)_i, [l_i, u_i])^2 + nu/2 ||min(x, 0)||^2.

    Many inputs satisfy everything; the prior says which one is returned: with ``None`` one near zero; with ``"smooth"``
    the same, preconditioned so that neighbouring places are alike; with ``"gaussian"`` the one closest to the mean of a
    first, smooth estimate, in the covariance of that estimate's channels (empirical Bayes).

    Non-linear conjugate gradients (Polak and Ribière 1969, restarted), preconditioned by the prior, with a line search
    that is exact on the piecewise quadratic and costs no convolution; it never ascends. The problem is convex, with two
    exceptions that have local minima: averages of an activation, and ``switches=False`` behind max pooling, where the
    currently largest entry of each region stands for the switch.

    ``code_kind="paper"`` is for codes of ``Pooled(region, k)``: magnitude pooling, ``k`` kept. An input has converged
    once the norm of all violations is at most ``tolerance``, relative to the norm of the code's values, or once the
    gradient has fallen to the square of it; each of at most ``max_steps`` steps, the first estimate's counted in, costs
    one ``W`` and one ``W^T``. Returned are inputs, shape ``(N, M, *spatial)``; ``history`` holds the norm of all
    violations relative to that of the code's values. UsageError for no such prior, or a negative ``max_steps``.
    """
    if prior is not None:
        check_choice(get_args(Prior), prior=prior)
    check_whole(0, max_steps=max_steps)
    operator, spatial = block.operator, block.input_shape[1:]
    zero = code.values.new_zeros(len(code.values), *operator.input_shape)
    said = constraints(block, code, code_kind=code_kind, switches=switches)
    objective = Objective(operator, said, _negativity(block))
    smoothing = smooth(spatial, POWER, zero)
    preconditioner = Covariance() if prior is None else smoothing
    start, used = zero, 0
    parts: list[Solution[Tensor]] = []
    if isinstance(said, UnknownSwitches):
        spread = replace(objective, constraints=said.spread())
        steps = min(GUESS_STEPS, max_steps)
        guess = nonlinear_cg(spread, zero, smoothing, tolerance=tolerance, max_steps=steps)
        start, used = guess.value, guess.steps
        parts.append(guess)
    steps = max_steps - used if prior != "gaussian" else min(FIRST_STEPS, max_steps - used)
    found = nonlinear_cg(objective, start, preconditioner, tolerance=tolerance, max_steps=steps)
    parts.append(found)
    if prior == "gaussian":
        preconditioner = with_channels(smooth(spatial, CENTRED_POWER, zero), found.value)
        start = found.value.mean(tuple(range(2, zero.ndim)), keepdim=True).expand_as(zero)
        steps = max_steps - used - found.steps
        second = nonlinear_cg(objective, start, preconditioner, tolerance=tolerance, max_steps=steps)
        parts.append(second)
        found = replace(second, history=torch.cat([found.history, second.history[1:]]))
    # behind a ReLU the input is not negative
    value = found.value.clamp_min(0) if block.nonnegative_input else found.value
    return replace(found, value=value, passes=total_passes(parts))


def _negativity(block: ConvBlock) -> float:
    """Return the weight of the squared violations of ``x >= 0``: the mean of the diagonal of ``W^T W``."""
    if not block.nonnegative_input:
        return 0.0
    operator = block.operator
    rows = math.prod(operator.output_shape[1:])
    return (operator.weight.double().square().sum() * rows / math.prod(operator.input_shape)).item()
