"""Table 1: CIFAR-10 with random and with learned filters. Not computed anew: it takes hours.

``experiments/table1_random.py`` and ``table1_learned.py`` write ``experiments/results/table1.json``, which has these
entries.
"""

from __future__ import annotations

from unconv.paper.context import Result, Table
from unconv.paper.paper_values import TABLE_1

COLUMNS = ("accuracy", "interval", "seeds", "size", "channels", "epochs", "images")
# by number of blocks: percent of the test set, half of the 95 % interval over seeds, number of seeds, side of the
# filters, filters of every block, passes over the training images, training images
OURS = {
    "random": {
        "1": (71.20, 0.42, 3, 5, "2 x (256)", 1, 50000),
        "2": (73.15, 0.78, 3, 3, "2 x (64, 512)", 1, 50000),
        "3": (74.5, None, 1, 3, "2 x (64, 512, 1024)", 1, 50000),
    },
    "learned": {
        "1": (70.09, 0.57, 3, 5, "128", 10, 45000),
        "2": (82.64, 0.55, 3, 5, "64, 256", 16, 45000),
        "3": (88.02, None, 1, 5, "64, 192, 384", 22, 45000),
    },
}
NOTES = (
    "Not computed now; made by experiments/table1_random.py and table1_learned.py, whose commands stand in "
    "experiments/results/table1.json.",
    "Percent of CIFAR-10's test set; our images are JPEG re-encoded by a public mirror, the paper's are the originals.",
    "Random filters: two Gaussian networks side by side, frozen, maps averaged to 4x4 places and over mirror images, "
    "softmax regression in 12 steps of its own solver (one epoch).",
    "Learned filters: pooling before batch norm and ReLU, flipped and shifted images, label smoothing, scores averaged "
    "over an image and its mirror image.",
    "Sizes 3 and 5 and up to 1024 channels here; the paper searched sizes 3, 5, 7 and up to 2048 channels.",
)


def run() -> Result:
    """Return the six entries that were measured."""
    ours = {
        filters: {blocks: dict(zip(COLUMNS, values, strict=True)) for blocks, values in entries.items()}
        for filters, entries in OURS.items()
    }
    return {"name": "table1", "paper": {"accuracy": TABLE_1}, "ours": ours, "notes": list(NOTES)}


def tables(result: Result) -> dict[str, Table]:
    """Return the six entries beside the paper's."""
    header = (
        *("filters", "blocks", "paper %", "test accuracy %", "95 % interval +/-", "seeds"),
        *("size chosen", "channels chosen", "epochs", "training images"),
    )
    rows = [
        (filters, blocks, result["paper"]["accuracy"][filters][blocks], *(ours[name] for name in COLUMNS))
        for filters, entries in result["ours"].items()
        for blocks, ours in entries.items()
    ]
    return {"accuracy": (header, rows)}
