"""Typical codes instead of the worst one: between which ratios ``||W^T z|| / ||z||`` a share of all codes lies.

Nothing is assumed of the distribution: of ``n`` codes drawn from it, the number below its ``q`` quantile is binomial,
so order statistics of the sample bound quantiles with a known confidence (Wilks 1941; David and Nagaraja 2003).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import bdtr
from torch import Tensor

from unconv.errors import UsageError


@dataclass(frozen=True)
class TypicalRatio:
    """What most codes do, with a confidence that holds for every distribution of independent codes."""

    samples: int  # codes that were drawn
    # share of all codes that both statements are about; less than was asked for where the sample is too small
    share: float
    confidence: float  # probability, over the sample, that each statement is true
    within: float  # at least the share of all codes have |ratio - 1| at most this
    low: float  # at least the share of all codes have a ratio of at least this
    high: float  # and at most this

    def __str__(self) -> str:
        return f"{self.sentence('codes')} ({self.samples} drawn)"

    def sentence(self, codes: str) -> str:
        """Say it in one line; ``codes``: which ones, in the plural."""
        kept = f"keep their norm within {100 * self.within:.2g} %"
        if self.within >= 0.5:
            kept = f"have their norm multiplied by {self.low:.3g} to {self.high:.3g}"
        return f"{100 * self.share:.3g} % of {codes} {kept}, at {100 * self.confidence:g} % confidence"


def typical_ratio(ratios: Tensor, *, share: float = 0.99, confidence: float = 0.95) -> TypicalRatio:
    """Bound the ratios of most codes by order statistics of a sample of independent codes, shape ``(n,)``.

    ``within`` is the smallest order statistic ``X_(j)`` of ``|ratio - 1|`` with ``P(B < j) >= confidence``, ``B``
    binomial of ``n`` draws at ``share``: then the ``share`` quantile lies at or below it. ``low`` and ``high`` are
    ``X_(r)`` and ``X_(n + 1 - r)`` of the ratios with the largest ``r`` for which ``P(B < n + 1 - 2 r) >= confidence``:
    a two-sided tolerance interval. Where not even the smallest and the largest value enclose the share that was asked
    for, the largest one that they do enclose is spoken of. UsageError for fewer than two ratios, or not finite ones.

    Example:
        >>> import torch
        >>> from unconv.measure.typical import typical_ratio
        >>> ratios = 1 + 0.03 * torch.randn(1000, generator=torch.Generator().manual_seed(0))
        >>> print(typical_ratio(ratios))
        99 % of codes keep their norm within 10 %, at 95 % confidence (1000 drawn)
    """
    values = np.sort(ratios.detach().cpu().double().numpy().ravel())
    n = len(values)
    if not 0 < share < 1 or not 0 < confidence < 1:
        raise UsageError(f"share is {share} and confidence {confidence}; each lies between 0 and 1")
    if n < 2 or not np.isfinite(values).all():
        raise UsageError(f"there are {n} ratios, {int((~np.isfinite(values)).sum())} not finite; give two or more")
    # the smallest and the largest value enclose a share q with probability 1 - n q^(n - 1) + (n - 1) q^n
    shares = np.arange(1, 1000) / 1000
    share = min(share, max(shares[1 - n * shares ** (n - 1) + (n - 1) * shares**n >= confidence], default=0.001))
    below = bdtr(np.arange(n + 1.0), n, share)  # P(B <= 0), P(B <= 1) ...
    j = int(np.searchsorted(below, confidence)) + 1
    # P(B <= n - 2 r) falls with r
    r = int((below[n - 2 * np.arange(1, n // 2 + 1)] >= confidence).sum())
    if not r:
        raise UsageError(f"{n} ratios enclose no share at confidence {confidence}; give more of them")
    within = np.sort(np.abs(values - 1))[j - 1]
    return TypicalRatio(n, float(share), confidence, float(within), float(values[r - 1]), float(values[n - r]))
