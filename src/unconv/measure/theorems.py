"""The paper's two theorems as calculators."""

from __future__ import annotations

import math

from unconv.errors import UsageError


def theorem_31_delta(
    k: int, channels: int, length: int, size: int, filters: int, *, constant: float = 1.0, failure: float = 0.01
) -> float:
    """The ``delta_k`` that Theorem 3.1 promises: ``sqrt(C k D / (M l^2) (log K + log n - log eps))``.

    ``k`` non-zeros, ``M`` input ``channels``, filters of ``length`` l, inputs of ``size`` D, ``K`` filters, ``n = D - l
    + 1``; ``C`` is the theorem's unnamed ``constant``, ``eps`` the probability of ``failure``. 1 or more where the
    theorem says nothing; UsageError for sizes that do not fit.
    """
    if min(k, channels, length, filters) < 1 or length > size or not constant > 0 or not 0 < failure < 1:
        raise UsageError(
            f"k={k}, M={channels}, l={length}, D={size}, K={filters}, C={constant}, eps={failure} do not fit; sizes "
            "are at least 1, the filter no longer than the input, C positive and eps between 0 and 1"
        )
    logs = math.log(filters) + math.log(size - length + 1) - math.log(failure)
    return math.sqrt(constant * k * size / (channels * length**2) * logs)


def theorem_33_bound(delta_k: float, delta_2k: float) -> float:
    """Theorem 3.3's bound on ``||x^ - x|| / ||x||`` of one-step IHT.

    ``5 d_2k / (1 - d_k) sqrt((1 + d_2k) / (1 - d_2k))``, infinite where ``d_2k >= 1``, where the theorem says nothing.
    (It exceeds 1, the error of answering 0, from ``d_2k`` = 0.169 on at the latest.) UsageError if not ``0 <= delta_k
    <= delta_2k``.
    """
    if not 0 <= delta_k <= delta_2k:
        raise UsageError(f"delta_k={delta_k} and delta_2k={delta_2k} do not fit; expected 0 <= delta_k <= delta_2k")
    if delta_2k >= 1:
        return math.inf
    return 5 * delta_2k / (1 - delta_k) * math.sqrt((1 + delta_2k) / (1 - delta_2k))
