"""A layer's input from its code, switches known: ours beside PyLops and deepinv."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unconv.adapters import to_deepinv, to_pylops
from unconv.batched import relative_norm
from unconv.bench.peers import Contest, Solve
from unconv.bench.subject import BenchSubject
from unconv.decode.convex import convex
from unconv.decode.equations import Equations, equations

STEPS = 64
SHRINKAGE = 1e-3  # weight of the 1-norm in iterative thresholding, relative to the largest entry of W^T y
TARGET = 2.0


@dataclass(frozen=True)
class _System:
    """The equations of one input, as an operator without a batch."""

    system: Equations
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    def forward(self, x: Tensor) -> Tensor:
        return self.system.forward(x)

    def adjoint(self, z: Tensor) -> Tensor:
        return self.system.adjoint(z)


def layer_problem(
    subject: BenchSubject, runs: int, there: Collection[str], done: Callable[[str], None]
) -> list[dict[str, Any]]:
    """pool(1) from conv(2,1) behind ReLU and 2x2 regions, time to equal relative error.

    The peers solve the linear equations that the code states; ours also uses its inequalities.

    Args:
        subject: The layer and its input.
        runs: Number of paired runs.
        there: The peers that are installed.
        done: Told the name of each peer that is done.

    Returns:
        A row per peer's solver.
    """
    stage, x = subject.conv, subject.inner
    code = stage.encode(x)
    system = equations(stage, code)
    operator = _System(system, stage.operator.input_shape, tuple(system.target.shape[1:]), x.dtype, x.device)
    contest = Contest(
        "layer",
        f"pool(1) through conv(2,1), 2x2 regions, switches known; {subject.words}",
        lambda estimate: relative_norm(estimate.reshape(x.shape) - x, x).item(),
        lambda steps: convex(stage, code, max_steps=steps, tolerance=0.0).value,
        "convex",
        STEPS,
    )
    rows = []
    for peer, solvers in (("pylops", _pylops), ("deepinv", _deepinv)):
        if peer not in there:
            continue
        for method, solve in solvers(operator, system.target).items():
            rows.append(contest.against(peer, method, solve, STEPS, runs, x.device))
            done(f"layer, {peer}, {method}")
    return rows


def _pylops(operator: _System, target: Tensor) -> dict[str, Solve]:
    basic = importlib.import_module("pylops.optimization.basic")
    sparsity = importlib.import_module("pylops.optimization.sparsity")
    wrapped, y = to_pylops(operator), target[0].cpu().numpy().ravel()
    step, weight = _step_and_weight(operator, target)

    def least_squares(steps: int) -> Tensor:
        return torch.from_numpy(basic.cgls(wrapped, y, niter=steps, tol=0.0)[0]).to(target)

    def thresholding(steps: int) -> Tensor:
        found = sparsity.fista(wrapped, y, niter=steps, eps=2 * weight, alpha=step, tol=0.0)[0]
        return torch.from_numpy(found).to(target)

    return {"cgls": least_squares, "fista": thresholding}


def _deepinv(operator: _System, target: Tensor) -> dict[str, Solve]:
    linear, optim = importlib.import_module("deepinv.optim.linear"), importlib.import_module("deepinv.optim")
    physics = to_deepinv(operator)
    step, weight = _step_and_weight(operator, target)

    def least_squares(steps: int) -> Tensor:
        return linear.least_squares(
            physics.A, physics.A_adjoint, target, solver="lsqr", max_iter=steps, tol=0.0, parallel_dim=0
        )

    def proximal(steps: int) -> Tensor:
        solver = optim.FISTA(
            data_fidelity=optim.L2(), prior=optim.L1Prior(), lambda_reg=weight, stepsize=step, max_iter=steps
        )
        return solver(target, physics)

    return {"least_squares, lsqr": least_squares, "FISTA, L1": proximal}


def _step_and_weight(operator: _System, target: Tensor) -> tuple[float, float]:
    """The longest step that converges, from power iterations outside the clock, and a small weight of the 1-norm."""
    back = operator.adjoint(target)
    v = torch.randn(back.shape, generator=torch.Generator().manual_seed(0)).to(back)
    for _ in range(20):
        v = operator.adjoint(operator.forward(v / v.norm()))
    return 0.95 / v.norm().item(), SHRINKAGE * back.abs().max().item()
