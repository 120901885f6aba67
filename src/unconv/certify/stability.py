"""Is this code enough? The smallest singular value of the linear map that a code fixes, and what it promises.

With its switches (or gates) known, a code is a system of linear equations ``A x = b``: ``A`` holds the rows of
``W`` at the places that the switches name, or is the Jacobian of a network with its gates frozen. An error of ``e``
in ``b`` moves the least-squares, least-norm solution by at most ``e / sigma``, with ``sigma`` the smallest non-zero
singular value of ``A``; what lies in the null space of ``A`` the equations do not determine at all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from unconv.errors import UsageError
from unconv.linalg import tiny
from unconv.operators import ConvOperator, LinearOperator, check_linear
from unconv.solvers.cgls import cgls
from unconv.solvers.lanczos import bidiagonalise
from unconv.sparsity import AveragePool, Code

DENSE_ENTRIES = 2**24  # of a matrix that is decomposed whole
DENSE_SIDE = 1500  # of its shorter side
BASIS_ENTRIES = 2**27  # of all Lanczos vectors together
FAILURE = 1e-9  # probability with which ``probabilistic_lower_bound`` may fail
TEST_EVERY = 10  # Lanczos steps between two stopping tests


@dataclass(frozen=True)
class StabilityCertificate:
    """How well the equations ``A x = b`` of a code determine its input."""

    # smallest singular value of A on what its equations see: of A with at least as many equations as unknowns, else of
    # its transpose. Attained by a vector, so never below the true one
    sigma: float
    # around sigma, by the residual of its singular vectors, rounding covered: holds a singular value; the smallest,
    # unless the iteration has missed a smaller one altogether
    interval: tuple[float, float]
    # of the smallest singular value, whatever the iteration missed, but for a chance of 1e-9 over its random start (a
    # union bound over tests); 0 where it was too short to say. Of a matrix decomposed whole, the low end of interval
    probabilistic_lower_bound: float
    largest: float  # largest singular value found
    undetermined: int  # dimensions of the input that the equations do not determine; at least this many,
    exact: bool  # and exactly as many where this holds
    # a change of the input, of unit norm, that the equations see least: out of the null space if there is one, as far
    # as the iteration comes. Shape input_shape; None where none was asked for
    direction: Tensor | None
    gain: float | None  # ||A direction||
    equations: int  # rows of A
    unknowns: int  # columns of A
    steps: int  # of Lanczos; 0 for a matrix decomposed whole

    @property
    def proven(self) -> bool:
        """Whether the matrix was decomposed whole, so that no chance is left in ``error_bound``."""
        return self.steps == 0

    @property
    def resolved(self) -> bool:
        """Whether ``sigma`` is more than rounding; one that is not may stand for dimensions that are open."""
        return self.sigma > self.interval[1] - self.sigma

    def error_bound(self, error: float) -> float:
        """How far an error of that norm in the code moves the least-norm, least-squares input at most; may be inf."""
        sigma = self.probabilistic_lower_bound
        return error / sigma if sigma > 0 else math.inf

    def observed_error(self, error: float) -> float:
        """How far some error of that norm moves it, in the direction found; inf if ``sigma`` is but rounding."""
        return error / self.sigma if self.resolved else math.inf

    def __str__(self) -> str:
        left = f"{self.undetermined} of {self.unknowns} dimensions ({self.undetermined / self.unknowns:.0%}) are open"
        left = left if self.exact else f"at least {left}"
        if not self.resolved:
            return left if self.sigma == 0 else f"{left}; the rest is seen no better than rounding, nothing is promised"
        moved = f"an error of 1 in the code moves the rest by {self.observed_error(1):.3g}"
        if math.isinf(self.error_bound(1)):
            return f"{left}; {moved}, and no bound was found"
        chance = "" if self.proven else f" but for a chance of {FAILURE:.0e}"
        return f"{left}; {moved}, and none by more than {self.error_bound(1):.3g}{chance}"


def known_entries(code: Code, *, rectified: bool) -> Tensor:
    """The places of the dense activation that a code with known switches tells. Shape ``(N, K, *spatial)``, bool.

    ``rectified``: whether a ReLU came before, so that a zero only says "not positive" and is no equation. UsageError if
    the pooling averages: its values are equations, but of no one place.
    """
    if isinstance(code.pooling, AveragePool):
        raise UsageError("an average-pooled code names no places; certify the Jacobian of the pooled layer instead")
    told = code.values > 0 if rectified else torch.ones_like(code.values, dtype=torch.bool)
    return replace(code, values=told.double()).dense() > 0


def certify(
    operator: LinearOperator,
    mask: Tensor | None = None,
    *,
    steps: int = 200,
    tolerance: float = 1e-3,
    start: Tensor | None = None,
    seek: int | None = None,
    whole: int = DENSE_SIDE,
    seed: int = 0,
) -> StabilityCertificate:
    """Certify how well the equations ``(operator x)[mask] = b`` determine ``x``.

    Golub-Kahan-Lanczos bidiagonalisation from a random start, reorthogonalised on the shorter side; small
    systems are decomposed whole. The residual bound is that of Hermitian eigenvalue problems, the one that
    holds whatever the spectrum is Kuczynski and Wozniakowski's (1992): after ``q`` steps from a
    random start in ``n`` dimensions, the largest eigenvalue of a semidefinite matrix is missed by a relative
    ``e`` with probability at most ``1.648 sqrt(n) exp(-sqrt(e) (2 q - 1))``.

    ``operator``: a convolution, a ``Jacobian``, or any other linear operator; ``mask``: which outputs are known, bool,
    shape ``output_shape``, all where ``None``. The iteration stops when the residual is below ``tolerance`` times
    ``sigma``, or after ``steps``; memory is ``steps`` vectors of the shorter side, and fewer are made where that is
    more than a gigabyte in float64. Systems whose shorter side is at most ``whole`` are decomposed whole, at one
    product for each of its entries. Where dimensions are open, ``direction`` is the unseen part of ``start``, shape
    ``input_shape``, e.g. the image itself (random where ``None``), by at most ``seek`` conjugate-gradient steps (as
    many as ``steps`` where ``None``; 0 for none). UsageError for no operator, or a mask or start of other shape.
    """
    check_linear(operator)
    if mask is not None and tuple(mask.shape) != operator.output_shape:
        raise UsageError(f"mask has shape {tuple(mask.shape)}; expected the output's, {operator.output_shape}")
    if start is not None and tuple(start.shape) != operator.input_shape:
        raise UsageError(f"start has shape {tuple(start.shape)}; expected the input's, {operator.input_shape}")
    rows = _Rows(operator, mask)
    generator = torch.Generator().manual_seed(seed)
    if rows.unknowns * rows.equations <= DENSE_ENTRIES and min(rows.unknowns, rows.equations) <= whole:
        return _decompose(rows, start, generator)
    found, least = _iterate(rows, steps, tolerance, generator)
    if seek == 0:
        return found
    if found.undetermined:
        least = _null_direction(rows, start, steps if seek is None else seek, generator)
    return replace(found, direction=least.reshape(operator.input_shape), gain=rows.forward(least[None]).norm().item())


def least_singular_value(normal: Tensor) -> tuple[float, float]:
    """An interval of the smallest singular value of ``A``, from ``A^T A`` in float64, up to the rounding of that."""
    values = torch.linalg.eigvalsh(normal)
    # |error of an eigenvalue| <= ||error of the matrix|| (Weyl); entries and solver together err by less than that
    slack = 64 * len(normal) * torch.finfo(torch.float64).eps * values[-1].item()
    low, high = (math.sqrt(max(0.0, values[0].item() + sign * slack)) for sign in (-1, 1))
    return low, high


class _Rows:
    """The known rows of an operator, on flat vectors."""

    def __init__(self, operator: LinearOperator, mask: Tensor | None) -> None:
        # filters are known exactly, so their products are worth float64; a network's Jacobian keeps its type
        if isinstance(operator, ConvOperator):
            operator = operator.to(torch.float64)
        self.operator = operator
        self.dtype = getattr(operator, "dtype", torch.float32)
        self.device = getattr(operator, "device", torch.device("cpu"))
        self.size, self.unknowns = math.prod(operator.output_shape), math.prod(operator.input_shape)
        known = torch.arange(self.size) if mask is None else mask.flatten().nonzero().flatten()
        self.index, self.equations = known.to(self.device), len(known)

    def forward(self, x: Tensor) -> Tensor:
        return self.operator.forward(x.reshape(-1, *self.operator.input_shape)).flatten(1)[:, self.index]

    def adjoint(self, y: Tensor) -> Tensor:
        z = torch.zeros(len(y), self.size, dtype=y.dtype, device=y.device)
        z[:, self.index] = y
        return self.operator.adjoint(z.reshape(-1, *self.operator.output_shape)).flatten(1)

    def random(self, size: int, generator: torch.Generator) -> Tensor:
        v = torch.randn(1, size, generator=generator, dtype=torch.float64).to(self.device, self.dtype)
        return v / v.norm()


def _decompose(rows: _Rows, start: Tensor | None, generator: torch.Generator) -> StabilityCertificate:
    # the certificate of a small system, by a singular value decomposition in float64
    wide = rows.equations < rows.unknowns
    identity = torch.eye(min(rows.equations, rows.unknowns), dtype=rows.dtype, device=rows.device)
    if rows.equations == 0:
        matrix = torch.zeros(1, rows.unknowns, dtype=torch.float64)
    else:
        product = rows.adjoint if wide else rows.forward
        matrix = torch.cat([product(part) for part in identity.split(64)]).double().cpu()
        matrix = matrix if wide else matrix.T
    _, values, vectors = torch.linalg.svd(matrix, full_matrices=False)
    largest = values[0].item()
    # the decomposition errs by eps of float64; the entries, computed in the operator's type, by eps of that
    cut, slack = (max(matrix.shape) * torch.finfo(dtype).eps * largest for dtype in (torch.float64, rows.dtype))
    rank = int((values > cut).sum())
    undetermined = rows.unknowns - rank
    sigma = values[rank - 1].item() if rank else 0.0
    if undetermined and rank < len(vectors) and start is None:
        direction = vectors[rank]
    elif undetermined:
        first = rows.random(rows.unknowns, generator)[0] if start is None else start.flatten()
        first = first.double().cpu()
        # twice, since one subtraction leaves the rounding of what it removes
        for _ in range(2):
            first = first - vectors[:rank].T @ (vectors[:rank] @ first)
        direction = first / first.norm()
    else:
        direction = vectors[-1]
    direction = direction.to(rows.device, rows.dtype)
    return StabilityCertificate(
        sigma=sigma,
        interval=(max(sigma - slack, 0.0), sigma + slack),
        probabilistic_lower_bound=max(sigma - slack, 0.0),
        largest=largest,
        undetermined=undetermined,
        exact=not ((values > cut / 8) & (values <= max(slack, 8 * cut))).any(),
        direction=direction.reshape(rows.operator.input_shape),
        gain=rows.forward(direction[None]).norm().item(),
        equations=rows.equations,
        unknowns=rows.unknowns,
        steps=0,
    )


def _null_direction(rows: _Rows, start: Tensor | None, steps: int, generator: torch.Generator) -> Tensor:
    # what is left of a vector without the least-norm solution of its own equations, the part in the row space
    first = rows.random(rows.unknowns, generator) if start is None else start.reshape(1, -1).to(rows.device, rows.dtype)
    accuracy = 8 * torch.finfo(rows.dtype).eps
    seen = cgls(rows, rows.forward(first), tolerance=accuracy, slope_tolerance=accuracy, max_steps=steps)
    left = (first - seen.value)[0]
    return left / left.norm().clamp_min(tiny(left))


def _iterate(
    rows: _Rows, steps: int, tolerance: float, generator: torch.Generator
) -> tuple[StabilityCertificate, Tensor]:
    """The certificate of a large system, by Lanczos bidiagonalisation of the taller of ``A`` and its transpose."""
    tall = rows.equations >= rows.unknowns
    there, back = (rows.forward, rows.adjoint) if tall else (rows.adjoint, rows.forward)
    short = min(rows.equations, rows.unknowns)
    eps = torch.finfo(rows.dtype).eps
    limit = min(steps, short, max(2, BASIS_ENTRIES // short))
    basis = torch.empty(limit, short, dtype=rows.dtype, device=rows.device)
    start = rows.random(short, generator)
    size, sigma, residual, values, right = 0, 0.0, 0.0, basis.new_zeros(1), basis.new_zeros(1, 1)
    for size, bidiagonal in enumerate(bidiagonalise(there, back, start, max_steps=limit, basis=basis), start=1):
        done = size == limit or bidiagonal.exhausted
        if done or size % TEST_EVERY == 0:
            left, values, right = torch.linalg.svd(bidiagonal.matrix())
            sigma, residual = values[-1].item(), bidiagonal.next_beta * abs(left[-1, -1].item())
            if done or residual <= tolerance * sigma:
                break
    # it may stop at any test, so the i-th takes a share of 6 / (pi i)^2 of the chance, which add up to 1 (union bound)
    chance = FAILURE * 6 / (math.pi * (size // TEST_EVERY + 1)) ** 2
    missed = (math.log(1.648 * math.sqrt(short) / chance) / (2 * size - 1)) ** 2
    top = values[0].item()
    # on top^2 / (1 - missed) I - A^T A, which is semidefinite if the largest singular value was not missed either
    square = sigma**2 - missed / max(1 - missed, eps) * top**2
    slack = 16 * eps * top
    least = right[-1].to(basis) @ basis[:size]
    found = StabilityCertificate(
        sigma=sigma,
        interval=(max(sigma - residual - slack, 0.0), sigma + slack),
        probabilistic_lower_bound=max(math.sqrt(max(square, 0.0)) - slack, 0.0),
        largest=top,
        undetermined=max(0, rows.unknowns - rows.equations),
        exact=square > 0,
        direction=None,
        gain=None,
        equations=rows.equations,
        unknowns=rows.unknowns,
        steps=size,
    )
    return found, least / least.norm()
