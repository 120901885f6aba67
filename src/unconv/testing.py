"""Test suites that an operator or a solver inherits: supply the thing itself, and run pytest.

``class TestMine(OperatorConformance)`` with a method ``operators`` checks any linear operator;
``class TestMySolver(SolverConformance)`` with a method ``solve`` checks any solver of ``A x = target``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from unconv.linalg import column, norms
from unconv.operators import LinearOperator, adjoint_gap
from unconv.solvers.solution import Solution


class OperatorConformance:
    """What every linear operator must satisfy in a ``dtype``, with relative errors of at most ``tolerance``."""

    dtype: torch.dtype = torch.float64
    tolerance: float = 1e-12

    def operators(self) -> Iterable[LinearOperator]:
        """Return the operators under test, at least one, small enough for a dense matrix."""
        raise NotImplementedError("return the operators under test")

    def check(self, operator: LinearOperator) -> None:
        """Check one operator: shapes, linearity, dense matrix, adjoint, ``torch.func.vjp``, batching."""
        x = self._draw(3, operator.input_shape, seed=1)
        z = self._draw(3, operator.output_shape, seed=2)
        h, a = operator.forward(x), operator.adjoint(z)
        assert h.shape == z.shape, f"forward gives {tuple(h.shape)}, output_shape says {tuple(z.shape)}"
        assert a.shape == x.shape, f"adjoint gives {tuple(a.shape)}, input_shape says {tuple(x.shape)}"
        assert h.dtype == a.dtype == self.dtype
        assert adjoint_gap(operator, x, z) <= self.tolerance, "adjoint is not the adjoint of forward"

        dense = dense_matrix(operator, self.dtype)
        self._close(h.flatten(1), x.flatten(1) @ dense.T, "forward differs from its dense matrix")
        self._close(a.flatten(1), z.flatten(1) @ dense, "adjoint differs from the dense matrix's transpose")
        pull = torch.func.vjp(operator.forward, x)[1]
        self._close(a, pull(z)[0], "adjoint differs from torch.func.vjp of forward")

        y = self._draw(3, operator.input_shape, seed=3)
        self._close(operator.forward(2 * x - 3 * y), 2 * h - 3 * operator.forward(y), "forward is not linear")
        self._close(operator.forward(x[1:2]), h[1:2], "forward depends on the rest of the batch")
        self._close(operator.adjoint(z[1:2]), a[1:2], "adjoint depends on the rest of the batch")

    def test_operator_conformance(self) -> None:
        """Every operator passes every check."""
        count = 0
        for operator in self.operators():
            self.check(operator)
            count += 1
        assert count, "operators() gave none"

    def _draw(self, n: int, shape: tuple[int, ...], seed: int) -> Tensor:
        return torch.randn(n, *shape, dtype=self.dtype, generator=torch.Generator().manual_seed(seed))

    def _close(self, a: Tensor, b: Tensor, message: str) -> None:
        scale = max(norms(a).max().item(), norms(b).max().item(), 1.0)
        assert (a - b).abs().max().item() <= self.tolerance * scale, message


@dataclass(frozen=True)
class MatrixOperator:
    """A dense matrix as an operator; the small problems of ``SolverConformance`` are made of it."""

    matrix: Tensor  # shape (m, n)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """``(n,)``."""
        return (self.matrix.shape[1],)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """``(m,)``."""
        return (self.matrix.shape[0],)

    def forward(self, x: Tensor) -> Tensor:
        """Shape ``(*batch, n)`` to ``(*batch, m)``."""
        return x @ self.matrix.T

    def adjoint(self, z: Tensor) -> Tensor:
        """Shape ``(*batch, m)`` to ``(*batch, n)``."""
        return z @ self.matrix


class SolverConformance:
    """What every solver of ``A x = target`` must satisfy: a residual of ``tolerance`` on well-conditioned systems."""

    tolerance: float = 1e-3

    def solve(self, operator: LinearOperator, target: Tensor) -> Solution[Tensor]:
        """Solve ``A x = target`` for a batch: ``A`` a ``MatrixOperator``, targets ``(N, m)``, solutions ``(N, n)``."""
        raise NotImplementedError("run the solver under test")

    def systems(self) -> Iterable[tuple[MatrixOperator, Tensor]]:
        """Yield solvable systems: square, wide and tall, four right-hand sides each."""
        generator = torch.Generator().manual_seed(0)
        for m, n in [(12, 12), (8, 20), (20, 8)]:
            u, _, v = torch.linalg.svd(torch.randn(m, n, dtype=torch.float64, generator=generator), full_matrices=False)
            matrix = u * torch.linspace(1, 3, min(m, n), dtype=torch.float64) @ v
            yield MatrixOperator(matrix), torch.randn(4, n, dtype=torch.float64, generator=generator) @ matrix.T

    def test_solves(self) -> None:
        """The residual is small, and the one that the solution states is the true one."""
        for operator, target in self.systems():
            solution = self.solve(operator, target)
            residual = norms(operator.forward(solution.value) - target) / norms(target)
            assert residual.max().item() <= self.tolerance
            assert torch.allclose(solution.residual.to(residual), residual, atol=1e-9, rtol=1e-3)

    def test_history_and_status(self) -> None:
        """One history entry per step and input, one status per input, nothing that is not finite."""
        for operator, target in self.systems():
            solution = self.solve(operator, target)
            assert solution.history.shape == (solution.steps + 1, len(target))
            assert torch.isfinite(solution.history).all()
            assert torch.isfinite(solution.value).all()
            assert len(solution.status) == len(target)
            assert set(solution.status) <= {"converged", "max_steps", "stalled"}

    def test_inputs_do_not_meet(self) -> None:
        """A batch gives what its inputs give alone."""
        for operator, target in self.systems():
            together = self.solve(operator, target).value
            alone = torch.cat([self.solve(operator, row[None]).value for row in target])
            assert torch.allclose(together, alone, atol=10 * self.tolerance)

    def test_zero_target(self) -> None:
        """Nothing in, nothing out: an input with a zero right-hand side stays zero and finite beside others."""
        for operator, target in self.systems():
            mixed = target.clone()
            mixed[0] = 0
            value = self.solve(operator, mixed).value
            assert value[0].abs().max().item() == 0
            assert torch.isfinite(value).all()

    def test_scale(self) -> None:
        """Right-hand sides in other units give the solution in those units."""
        for operator, target in self.systems():
            factors = torch.tensor([1e-3, 1.0, 10.0, 1e3], dtype=target.dtype)
            scaled = self.solve(operator, target * column(factors, target)).value
            plain = self.solve(operator, target).value
            assert torch.allclose(scaled / column(factors, target), plain, atol=20 * self.tolerance)


def dense_matrix(operator: LinearOperator, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return the matrix of any linear operator, one column per unit vector, shape ``(outputs, inputs)``."""
    n = math.prod(operator.input_shape)
    identity = torch.eye(n, dtype=dtype).reshape(n, *operator.input_shape)
    return operator.forward(identity).reshape(n, -1).T
