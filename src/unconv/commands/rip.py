"""``unconv rip``: the model-RIP of a conv block's transposed convolution, sampled (Figure 3) and bounded."""

from __future__ import annotations

from typing import Any

from unconv.api_blocks import rip
from unconv.commands import format_table, print_skipped
from unconv.options import Rip
from unconv.reporting.text import typical

LEGEND = """\
k active regions; p01, p50, p99: percentiles of ||W^T z|| / ||z|| over random codes z with k.
random codes, images' codes: at 95 % confidence, how many of all such codes have a ratio within which share of 1.
delta_k is the smallest d with (1 - d) ||z||^2 <= ||W^T z||^2 <= (1 + d) ||z||^2 for all such z: at least as large as a
witness z shows, at most as large as the certificate under "how" (docs/theory.md). From 1 on
it promises nothing."""


def run(options: Rip) -> tuple[dict[str, Any], str]:
    """Sample ratios ``||W^T z|| / ||z||`` of every conv block, and bound ``delta_k``; return document and text."""
    document = rip(options.model, **options.keywords())
    print_skipped(document["skipped"])
    header = ("layer", "k", "p01", "p50", "p99", "random codes", "images' codes", "lower bound", "upper bound", "how")
    rows = []
    for block in document["blocks"]:
        # of a few images only little is certain: what is said of a minority helps no reader
        kept = [typical(one) if one["share"] >= 0.5 else None for one in block["typical"]]
        kept += [None] * (2 - len(kept))
        bounds = (*block["delta"].values(), block["delta_how"])
        rows.append((block["layer"], block["k"], *block["ratio"].values(), *kept, *bounds))
    return document, "\n".join([format_table(header, rows), LEGEND])
