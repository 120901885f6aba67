"""
Write your own sparsity model and solver
========================================

Everything in ``unconv`` talks through three small protocols: a linear operator has ``forward`` and ``adjoint``, a
sparsity model has ``project``, a solver returns a ``Solution``. So each part can be replaced, and each has a test
suite that yours can inherit.
"""

# %%
# A sparsity model
# ----------------
#
# *At most* ``c`` *channels are active, anywhere on their maps*: the projection keeps the channels of largest norm.
# That is all a model needs; every algorithm of ``unconv.recover`` takes it.

from dataclasses import dataclass

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from unconv.operators import ConvOperator, gaussian_like
from unconv.recover import cosamp, niht
from unconv.sparsity import Code, TopK


@dataclass(frozen=True)
class ActiveChannels:
    """At most ``c`` channels with anything in them."""

    c: int

    def project(self, h: Tensor) -> Code:
        """Keep the channels of largest norm. Shape ``(N, K, *spatial)`` to a code without pooling."""
        norms = h.flatten(2).norm(dim=2)
        kept = torch.zeros_like(norms).scatter_(1, norms.topk(self.c, dim=1).indices, 1.0)
        return Code(h * kept.reshape(*kept.shape, *[1] * (h.ndim - 2)), None, tuple(h.shape[1:]))


torch.manual_seed(0)
weight = gaussian_like(torch.zeros(32, 8, 5, 5, dtype=torch.float64), seed=0)
operator = ConvOperator(weight, (8, 16, 16), padding=2)
z = torch.zeros(4, *operator.output_shape, dtype=torch.float64)
for i in range(4):
    z[i, torch.randperm(32)[:3]] = torch.randn(3, 16, 16, dtype=torch.float64)
x = operator.adjoint(z)

# %%
# Three of 32 channels are active, 768 numbers. The model that knows this finds them; the one that knows only that 768
# entries are not zero has far more supports to choose from.

found = {
    "NIHT, active channels": niht(operator, x, ActiveChannels(3), max_steps=60),
    "CoSaMP, active channels": cosamp(operator, x, ActiveChannels(3), max_steps=10),
    "NIHT, 768 entries": niht(operator, x, TopK(768), max_steps=60),
}
figure, panel = plt.subplots(figsize=(6.5, 3.8), layout="constrained")
for name, solution in found.items():
    panel.semilogy(solution.history.amax(1), label=name)
    wrong = (solution.value.code.dense() - z).flatten(1).norm(dim=1) / z.flatten(1).norm(dim=1)
    print(f"{name:24} error of x {solution.residual.max().item():.1e}, error of z {wrong.max().item():.1e}")
panel.set_xlabel("step")
panel.set_ylabel("largest residual, relative")
panel.legend()

# %%
# A solver
# --------
#
# Landweber's iteration, the oldest solver of ``A x = target``. It returns a ``Solution``: the value, the residual
# before the first step and after each one, and how each input ended.

from unconv.linalg import norms
from unconv.solvers.solution import Solution


def landweber(operator, target: Tensor, *, tolerance: float = 1e-4, max_steps: int = 2000) -> Solution[Tensor]:
    """Gradient steps ``x += s A^T (target - A x)`` with ``s`` below ``2 / ||A||^2``, here for systems of norm 3."""
    x = operator.adjoint(torch.zeros_like(target))
    size = norms(target).clamp_min(torch.finfo(target.dtype).tiny)
    history = [norms(target) / size]
    for _ in range(max_steps):
        if bool((history[-1] <= tolerance).all()):
            break
        x = x + 0.15 * operator.adjoint(target - operator.forward(x))
        history.append(norms(target - operator.forward(x)) / size)
    status = tuple("converged" if r <= tolerance else "max_steps" for r in history[-1].tolist())
    return Solution(x, torch.stack(history), status)


# %%
# The suite of ``unconv.testing`` asks what every solver must satisfy: that it solves, that the residual it
# states is the true one, that a batch gives what its inputs give alone, that units do not matter. In a project it
# is a test class, and pytest runs what it inherits; here the checks are called by hand.

from unconv.testing import OperatorConformance, SolverConformance


class TestLandweber(SolverConformance):
    """What pytest would collect."""

    def solve(self, operator, target: Tensor) -> Solution[Tensor]:
        """The solver under test."""
        return landweber(operator, target)


def run(suite) -> None:
    """Every check of a suite, by name."""
    for name in dir(suite):
        if name.startswith("test_"):
            try:
                getattr(suite, name)()
                print(f"passed  {name}")
            except AssertionError as error:
                print(f"FAILED  {name}: {str(error).splitlines()[0] if str(error) else 'see the assertion'}")


run(TestLandweber())

# %%
# An operator, and a mistake in it
# --------------------------------
#
# A blur, whose adjoint is easy to get wrong. ``OperatorConformance`` compares it with its dense matrix and with
# ``torch.func.vjp``.


class Blur:
    """A running mean of three entries, the borders extended."""

    input_shape = output_shape = (12,)

    def forward(self, x: Tensor) -> Tensor:
        """Shape ``(N, 12)`` to the same."""
        left, right = torch.cat([x[..., :1], x[..., :-1]], -1), torch.cat([x[..., 1:], x[..., -1:]], -1)
        return (left + x + right) / 3

    def adjoint(self, z: Tensor) -> Tensor:
        """As if the blur were symmetric."""
        return self.forward(z)


class ShiftedBlur(Blur):
    """The same, looking at the two entries behind it, so that it is not symmetric any more."""

    def forward(self, x: Tensor) -> Tensor:
        """Shape ``(N, 12)`` to the same."""
        one = torch.cat([x[..., :1], x[..., :-1]], -1)
        return (x + one + torch.cat([one[..., :1], one[..., :-1]], -1)) / 3


class TestBlur(OperatorConformance):
    """The blur with the symmetric border is its own adjoint."""

    def operators(self):
        """The operator under test."""
        return [Blur()]


class TestShiftedBlur(OperatorConformance):
    """The other one is not."""

    def operators(self):
        """The operator under test."""
        return [ShiftedBlur()]


run(TestBlur())
run(TestShiftedBlur())
