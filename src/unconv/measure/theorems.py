"""The paper's two theorems as calculators."""

from __future__ import annotations

import math


def theorem_31_delta(
    k: int, channels: int, length: int, size: int, filters: int, *, constant: float = 1.0, failure: float = 0.01
) -> float:
    """The ``delta_k`` that Theorem 3.1 promises: ``sqrt(C k D / (M l^2) (log K + log n - log eps))``.

    Args:
        k: Number of non-zeros.
        channels: ``M``, channels of the input.
        length: ``l``, length of a filter.
        size: ``D``, length of the input.
        filters: ``K``, number of filters.
        constant: The theorem's unnamed constant ``C``.
        failure: The probability ``eps`` with which the promise may fail.

    Returns:
        The promised constant; 1 or more where the theorem says nothing.

    Raises:
        ValueError: If a size is below 1, the filter is longer than the input, or ``failure`` is not in (0, 1).
    """
    if min(k, channels, length, filters) < 1 or length > size or not constant > 0 or not 0 < failure < 1:
        raise ValueError(
            f"k={k}, M={channels}, l={length}, D={size}, K={filters}, C={constant}, eps={failure} do not fit; sizes "
            "are at least 1, the filter no longer than the input, C positive and eps between 0 and 1"
        )
    logs = math.log(filters) + math.log(size - length + 1) - math.log(failure)
    return math.sqrt(constant * k * size / (channels * length**2) * logs)


def theorem_33_bound(delta_k: float, delta_2k: float) -> float:
    """Theorem 3.3's bound on ``||x^ - x|| / ||x||`` of one-step IHT.

    Args:
        delta_k: Model-RIP constant, or an upper bound on it.
        delta_2k: The constant over sums of two vectors, or an upper bound on it.

    Returns:
        ``5 d_2k / (1 - d_k) sqrt((1 + d_2k) / (1 - d_2k))``; infinite where ``d_2k >= 1``, where the theorem says
        nothing. (It exceeds 1, the error of answering 0, from ``d_2k`` = 0.169 on at the latest.)

    Raises:
        ValueError: If not ``0 <= delta_k <= delta_2k``.
    """
    if not 0 <= delta_k <= delta_2k:
        raise ValueError(f"delta_k={delta_k} and delta_2k={delta_2k} do not fit; expected 0 <= delta_k <= delta_2k")
    if delta_2k >= 1:
        return math.inf
    return 5 * delta_2k / (1 - delta_k) * math.sqrt((1 + delta_2k) / (1 - delta_2k))
