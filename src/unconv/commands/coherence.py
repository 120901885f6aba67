"""``unconv coherence``: the largest cosines between filters, learned and Gaussian (Table 4)."""

from __future__ import annotations

from itertools import product
from typing import Any

from unconv.api_blocks import coherence
from unconv.commands import format_table
from unconv.options import Coherence

LEGEND = """\
Largest cosine between two filters: signed; absolute; shifted: absolute, also over all shifts. Random: Gaussian filters
of the same sizes."""
COLUMNS = tuple(product(("learned", "random"), ("signed", "absolute", "shifted")))


def run(options: Coherence) -> tuple[dict[str, Any], str]:
    """Measure the coherence of every conv block's filters; return the JSON document and its text."""
    document = coherence(options.model, **options.keywords())
    rows = [(block["layer"], *(block[bank][kind] for bank, kind in COLUMNS)) for block in document["blocks"]]
    return document, "\n".join([format_table(("layer", *map(" ".join, COLUMNS)), rows), LEGEND])
