"""What the two scripts of Table 1 share: CIFAR-10 with a part held out, and the file of results.

``table1_random.py`` measures the cells with frozen random filters, ``table1_learned.py`` those with learned ones. Each
appends the networks that it finishes to one JSON file. The table's entry for a kind of filters and a number of blocks
is the network that does best on the held-out images, over all seeds that it was measured with.
"""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch import Tensor
from train_cifar_vgg import load_split

from unconv.errors import UnconvError
from unconv.evaluate.audit import interval
from unconv.evaluate.run_directory import environment
from unconv.io import write_json
from unconv.paper.paper_values import TABLE_1, TABLE_1_SEARCH

HELD_OUT, SPLIT_SEED = 5000, 0
RESULTS = Path(__file__).with_name("results") / "table1.json"
MEASURED = ("seed", "penalty", "validation", "test", "seconds")  # the rest of a cell says what it is
NOTES = (
    "Percent of CIFAR-10's test set; our images are JPEG re-encoded by a public mirror, the paper's are the originals.",
    "Random filters (table1_random.py): Gaussian and frozen, filters of each block in a row, batch norm on both sides "
    "of ReLU, maps averaged to 4x4 places and over mirror images, softmax regression (in 12 steps of its own solver, "
    "one epoch), whose penalty is chosen by 5000 held-out training images; then learned from all of them.",
    "Learned filters (table1_learned.py): max pooling comes before batch norm and ReLU, which is the same function "
    "where batch norm does not turn the sign, and less to compute. Flipped and shifted images, label smoothing, scores "
    "averaged over an image and its mirror image; without the held-out images. The cycles of three blocks were run one "
    "by one, each behind a look at the accuracy of the last.",
)


class Data(NamedTuple):
    """CIFAR-10, with a part of the training set held out: images and labels, ``(N, 3, 32, 32)`` and ``(N,)``."""

    training: tuple[Tensor, Tensor]
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


def command_line(title: str, size: int) -> argparse.ArgumentParser:
    """What both scripts are asked for."""
    parser = argparse.ArgumentParser(description=title.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with train/<class>/* and test/<class>/*")
    parser.add_argument("--out", type=Path, default=RESULTS, help="JSON file to extend")
    parser.add_argument("--channels", nargs="+", type=int, required=True, help="filters of each block (of a group)")
    parser.add_argument("--size", type=int, default=size, help="side of the filters")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    return parser


def load(folder: Path) -> Data:
    """Read CIFAR-10, ``train/<class>/*`` and ``test/<class>/*``, and hold a part out."""
    try:
        images, labels = load_split(folder / "train")
        test = load_split(folder / "test")
    except FileNotFoundError as error:
        raise UnconvError(f"CIFAR-10 is not there: {error}") from error
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(SPLIT_SEED))
    held = min(HELD_OUT, len(images) // 10)
    return Data((images[order[held:]], labels[order[held:]]), (images[order[:held]], labels[order[:held]]), test)


def summarise(cells: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The table's entries, in percent, with half of the 95 % interval over seeds."""
    found: dict[str, Any] = {}
    for filters, blocks in sorted({(cell["filters"], cell["blocks"]) for cell in cells}, reverse=True):
        tried: dict[str, list[dict[str, Any]]] = {}
        for cell in cells:
            if (cell["filters"], cell["blocks"]) == (filters, blocks):
                settings = {name: value for name, value in cell.items() if name not in MEASURED}
                tried.setdefault(json.dumps(settings, sort_keys=True), []).append(cell)
        best = max(tried.values(), key=lambda seeds: fmean(cell["validation"] for cell in seeds))
        accuracies = [100 * cell["test"] for cell in best]
        both = interval(accuracies)
        half = None if both is None else (both[1] - both[0]) / 2
        entry = {"accuracy": fmean(accuracies), "interval": half, "seeds": len(best)}
        entry |= {name: value for name, value in best[0].items() if name not in MEASURED}
        found.setdefault(filters, {})[str(blocks)] = entry
    return {filters: dict(sorted(entries.items())) for filters, entries in found.items()}


def add(path: Path, cell: dict[str, Any], script: str, given: Sequence[str], data: Path) -> None:
    """Add a network that was measured to the file, with the command of the script."""
    print(json.dumps(cell), flush=True)
    kept = json.loads(path.read_text()) if path.exists() else {"cells": [], "commands": []}
    words = ["FOLDER" if word == str(data) else word for word in given]
    for option in ("--out", "--work"):
        if option in words:
            del words[words.index(option) : words.index(option) + 2]
    command = shlex.join(["python", f"experiments/{script}", *words])
    commands = [*kept["commands"], *([] if command in kept["commands"] else [command])]
    cells = [*kept["cells"], cell]
    document = {"name": "table1", "paper": {"accuracy": TABLE_1, "searched": TABLE_1_SEARCH}, "ours": summarise(cells)}
    document |= {"notes": list(NOTES), "cells": cells, "command": " && ".join(commands), "commands": commands}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, document | {"environment": environment()})
