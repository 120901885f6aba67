"""Where the time of a call goes, by torch's own profiler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

TOP = 8


def profile(call: Callable[[], object]) -> list[dict[str, Any]]:
    """The operations that a call spends its time in.

    Args:
        call: What to run, once.

    Returns:
        ``{"operation", "percent", "calls"}`` of those that take longest, by their own time on the CPU.
    """
    with torch.autograd.profiler.profile(use_kineto=False) as found:
        call()
    assert found is not None
    events = sorted(found.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events) or 1.0
    return [
        {"operation": e.key, "percent": round(100 * e.self_cpu_time_total / total, 1), "calls": e.count}
        for e in events[:TOP]
    ]
