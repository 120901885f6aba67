"""Order statistics against SciPy's binomial and beta laws, and the promise itself on distributions that are known."""

import math

import pytest
import torch
from scipy import stats

from unconv.errors import UsageError
from unconv.measure.typical import typical_ratio


@pytest.mark.parametrize(("n", "share", "confidence"), [(299, 0.95, 0.95), (1000, 0.99, 0.95), (5000, 0.9, 0.99)])
def test_the_order_statistics_are_the_tightest_that_keep_the_promise(n, share, confidence):
    ratios = 2 + torch.randperm(n, generator=torch.Generator().manual_seed(0)).double()  # |ratio - 1| from 1 to n
    found = typical_ratio(ratios, share=share, confidence=confidence)
    assert found.share == share
    j = round(found.within)
    assert stats.binom.cdf(j - 1, n, share) >= confidence > stats.binom.cdf(j - 2, n, share)
    r = round(found.low) - 1
    assert found.high == n + 2 - r
    # the share between the r-th smallest and the r-th largest has a beta law
    enclosed = [stats.beta.sf(share, n + 1 - 2 * r, 2 * r) for r in (r, r + 1)]
    assert enclosed[0] >= confidence > enclosed[1]


def test_the_promise_is_kept_as_often_as_it_says():
    generator, kept_within, kept_between, trials = torch.Generator().manual_seed(1), 0, 0, 400
    law = stats.norm(1, 0.1)
    for _ in range(trials):
        found = typical_ratio(1 + 0.1 * torch.randn(500, generator=generator, dtype=torch.float64))
        kept_within += law.cdf(1 + found.within) - law.cdf(1 - found.within) >= found.share
        kept_between += law.cdf(found.high) - law.cdf(found.low) >= found.share
    # 95 % less four standard deviations
    assert min(kept_within, kept_between) >= trials * 0.95 - 4 * math.sqrt(trials * 0.95 * 0.05)


def test_a_small_sample_speaks_of_a_smaller_share():
    found = typical_ratio(torch.tensor([0.9, 1.0, 1.3, 1.1, 0.95, 1.02, 1.05, 0.97]))
    assert 0.5 < found.share < 0.6
    assert stats.beta.sf(found.share, 7, 2) >= 0.95
    assert (found.low, found.high) == (pytest.approx(0.9), pytest.approx(1.3))
    assert typical_ratio(torch.tensor([1.0, 1.2])).share < 0.05


def test_bad_input_is_one_line():
    for ratios, options, text in [
        (torch.ones(1), {}, "there are 1 ratios"),
        (torch.tensor([1.0, math.nan]), {}, "1 not finite"),
        (torch.ones(9), {"share": 99}, "between 0 and 1"),
        (torch.ones(2), {"confidence": 0.999}, "2 ratios enclose no share"),
    ]:
        with pytest.raises(UsageError, match=text):
            typical_ratio(ratios, **options)
