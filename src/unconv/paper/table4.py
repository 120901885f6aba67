"""Table 4: coherence of the filters of each layer, learned beside Gaussian, at both labellings of the paper's row."""

from __future__ import annotations

from itertools import pairwise

from unconv.io import finite
from unconv.measure.coherence import coherence
from unconv.paper.context import Context, Result, Table, label, numbering
from unconv.paper.paper_values import SETTING, TABLE_4

# the value printed at conv(1,1) is that of conv(1,2), and so on
ONE_LATER = {layer: TABLE_4[before] for before, layer in pairwise(TABLE_4)}
BANKS = ("learned", "random")
KINDS = ("signed", "absolute", "shifted")


def run(context: Context) -> Result:
    """Measure the coherence of every block; no image is read."""
    numbers = numbering(context.blocks)
    ours = {}
    for name in context.names:
        w = context.blocks.get(name).operator
        found = {"learned": coherence(w), "random": coherence(w.gaussian(context.seed))}
        ours[label(numbers[name])] = {"block": name} | {
            bank: {kind: finite(getattr(found[bank], kind)) for kind in KINDS} for bank in BANKS
        }
    return {
        "name": "table4",
        "paper": {"as_printed": TABLE_4, "one_layer_later": ONE_LATER},
        "ours": ours,
        "notes": [
            f"Ours: {context.model}, batch norm folded into the filters where there is one; the paper: {SETTING}.",
            "The paper's learned row is the signed maximum over whole filters. 'absolute' is the maximum of the "
            "magnitude, 'shifted' that over all overlaps of two filters: the coherence that model-RIP meets.",
            "On Caffe's VGG weights the printed labels stand one layer early: the value at conv(i,j) is that of the "
            "next convolution. Both labellings are shown.",
        ],
    }


def tables(result: Result) -> dict[str, Table]:
    """Return ours beside the paper's at both labellings."""
    labellings = {"as_printed": "as printed", "one_layer_later": "moved one on"}
    header = (
        *("layer", "conv block"),
        *(f"{bank} {kind}" for bank in BANKS for kind in KINDS),
        *(f"paper {bank}, {words}" for words in labellings.values() for bank in BANKS),
    )
    rows = []
    for layer, row in result["ours"].items():
        theirs = [result["paper"][where].get(layer, {}).get(bank) for where in labellings for bank in BANKS]
        rows.append((layer, row["block"], *(row[bank][kind] for bank in BANKS for kind in KINDS), *theirs))
    return {"table4": (header, rows)}
