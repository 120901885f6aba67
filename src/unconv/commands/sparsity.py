"""``unconv sparsity``: the share of non-zeros of every conv block over images (Table 2)."""

from __future__ import annotations

from typing import Any

from unconv.api_blocks import sparsity
from unconv.commands import format_table, print_skipped
from unconv.options import Sparsity


def run(options: Sparsity) -> tuple[dict[str, Any], str]:
    """Count non-zeros; return the JSON document and its text."""
    document = sparsity(options.model, **options.keywords())
    print_skipped(document["skipped"])
    rows = [(block["layer"], block["activation"], block["pooled"]) for block in document["blocks"]]
    table = format_table(("layer", "activation %", "pooled %"), rows)
    return document, f"{table}\nShare of non-zeros; pooled: behind the block's pooling, the same where it has none."
