"""Table 1: CIFAR-10 with frozen random filters against learned ones, one to three blocks.

``python experiments/table1.py --data FOLDER`` trains, and appends every finished network to a JSON file, so that
a stop loses one network at most; the same command goes on. FOLDER is an ImageFolder tree, ``train/<class>/*`` and
``test/<class>/*``. A block is a convolution, ReLU, batch norm and 2x2 max pooling; a linear classifier reads the last
one. With random filters only the classifier is trained, on features that are extracted once. Sizes and channels are
chosen by a held-out part of the training set at the first seed, the other seeds then run at that choice.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from train_cifar_vgg import augment, load_split

from unconv.errors import UnconvError
from unconv.evaluate.run_directory import environment
from unconv.io import write_json
from unconv.operators import gaussian_like
from unconv.paper.paper_values import TABLE_1, TABLE_1_SEARCH

COMMAND = "python experiments/table1.py --data FOLDER"
FILTERS = ("random", "learned")
HELD_OUT, SPLIT_SEED = 5000, 0
SEARCHED = ("size", "channels", "epochs", "rate", "decay", "dropout", "flips")
# 97.5 % quantiles of Student's t by number of seeds
STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
Filters = Literal["random", "learned"]


@dataclass(frozen=True)
class Cell:
    """One network, and how it is trained.

    Attributes:
        filters: ``"random"`` (frozen) or ``"learned"``.
        blocks: Number of blocks.
        size: Side of the filters.
        channels: Filters of every block.
        seed: Seed of filters, initial weights, order and augmentation.
        epochs: Passes over the training images.
        rate: Largest learning rate.
        decay: Weight decay.
        dropout: Share of the classifier's inputs that is ignored at each step.
        dtype: Type that random features are kept in, and that networks compute in.
        images: Number of training images, without those held out.
        flips: Whether random features of the mirrored images are learned from too; learned networks always see both.
    """

    filters: Filters
    blocks: int
    size: int
    channels: int
    seed: int
    epochs: int
    rate: float
    decay: float
    dropout: float
    dtype: str
    images: int
    flips: bool


@dataclass(frozen=True)
class Data:
    """CIFAR-10, with a part of the training set held out.

    Attributes:
        training: Images and labels, ``(N, 3, 32, 32)`` and ``(N,)``.
        validation: The same for the images held out.
        test: The same for the test set.
    """

    training: tuple[Tensor, Tensor]
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


def load(folder: Path, limit: int | None = None) -> Data:
    """Read CIFAR-10 and hold a part out."""
    try:
        images, labels = load_split(folder / "train")
        test = load_split(folder / "test")
    except FileNotFoundError as error:
        raise UnconvError(f"CIFAR-10 is not there: {error}") from error
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(SPLIT_SEED))
    held = min(HELD_OUT, len(images) // 10)
    training = order[held : None if limit is None else held + limit]
    return Data((images[training], labels[training]), (images[order[:held]], labels[order[:held]]), test)


class DroppingLinear(nn.Linear):
    """A linear classifier that ignores a random part of its inputs at each step, the same for the whole batch."""

    def __init__(self, inputs: int, outputs: int, dropped: float) -> None:
        """Make it."""
        super().__init__(inputs, outputs)
        self.dropped = dropped

    def forward(self, input: Tensor) -> Tensor:
        """Class scores."""
        weight = self.weight
        if self.training and self.dropped:
            keep = torch.rand(self.in_features, device=weight.device) >= self.dropped
            weight = weight * (keep / (1 - self.dropped))
        return F.linear(input, weight, self.bias)


class Blocks(nn.Module):
    """Convolution, ReLU, batch norm, 2x2 max pooling, one to three times; then a linear classifier."""

    def __init__(self, cell: Cell, shape: Sequence[int], classes: int) -> None:
        """Draw the filters; random ones are Gaussian of variance ``1 / (M l^2)``."""
        super().__init__()
        channels, height, width = shape
        layers: list[nn.Module] = []
        learned = cell.filters == "learned"
        for number in range(cell.blocks):
            convolution = nn.Conv2d(channels, cell.channels, cell.size, padding=cell.size // 2, bias=False)
            if not learned:
                convolution.weight.data = gaussian_like(convolution.weight.data, cell.seed * 100 + number)
                convolution.weight.requires_grad_(False)
            layers += [convolution, nn.ReLU(inplace=True), nn.BatchNorm2d(cell.channels, affine=learned)]
            layers.append(nn.MaxPool2d(2))
            channels, height, width = cell.channels, height // 2, width // 2
        self.features = nn.Sequential(*layers, nn.Flatten())
        self.classifier = DroppingLinear(channels * height * width, classes, cell.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores."""
        return self.classifier(self.features(x))


def train(cell: Cell, data: Data, batch: int = 128) -> dict[str, Any]:
    """Train one network and measure it."""
    start = time.perf_counter()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(cell.seed)
    images, labels = data.training
    classes = int(labels.max()) + 1
    network = Blocks(cell, images.shape[1:], classes).to(device)
    if cell.filters == "random":
        measure_statistics(network, images)
        if cell.flips:
            images, labels = torch.cat([images, images.flip(-1)]), torch.cat([labels, labels])
        kept = [(extract(network, x, cell.dtype), y) for x, y in ((images, labels), data.validation, data.test)]
        learner: nn.Module = network.classifier
    else:
        kept = [data.training, data.validation, data.test]
        learner = network
    loss = _fit(learner, cell, *kept[0], batch=batch, device=device)
    scores = {
        name: _accuracy(learner, *part, dtype=cell.dtype, device=device)
        for name, part in (("validation", kept[1]), ("test", kept[2]))
    }
    seconds = round(time.perf_counter() - start, 1)
    return asdict(cell) | scores | {"training_loss": loss, "seconds": seconds}


@torch.no_grad()
def measure_statistics(network: Blocks, images: Tensor, count: int = 512) -> None:
    """Set the batch norms of random blocks to the statistics of some training images."""
    norms = [module for module in network.features if isinstance(module, nn.BatchNorm2d)]
    for module in norms:
        module.momentum = 1.0
    network.train()
    network.features(images[:count].to(network.classifier.weight.device))
    network.eval()


@torch.no_grad()
def extract(network: Blocks, images: Tensor, dtype: str, batch: int = 250) -> Tensor:
    """What the frozen blocks make of images."""
    kind = getattr(torch, dtype)
    device = network.classifier.weight.device
    found = torch.empty(len(images), network.classifier.in_features, dtype=kind, device=device)
    with torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
        for start in range(0, len(images), batch):
            x = images[start : start + batch].to(device, memory_format=torch.channels_last)
            found[start : start + batch] = network.features(x).to(kind)
    return found


def _fit(learner: nn.Module, cell: Cell, x: Tensor, y: Tensor, *, batch: int, device: torch.device) -> float:
    """Adam under a rise and a cosine; returns the last epoch's mean loss."""
    whole = isinstance(learner, Blocks)
    generator = torch.Generator().manual_seed(cell.seed)
    parameters = [p for p in learner.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, cell.rate, weight_decay=cell.decay)
    batch = min(batch, len(x))
    steps = len(x) // batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, cell.rate, total_steps=cell.epochs * steps, pct_start=0.2, cycle_momentum=False
    )
    losses: list[Tensor] = []
    for _ in range(cell.epochs):
        learner.train()
        losses = []
        order = torch.randperm(len(x), generator=generator)
        for step in range(steps):
            index = order[step * batch : (step + 1) * batch]
            images = x[index.to(x.device)].to(device)
            if whole:
                images = augment(images, shift=4, cut=0, generator=generator)
            with torch.autocast(device.type, torch.bfloat16, enabled=cell.dtype == "bfloat16"):
                scores = learner(images.contiguous(memory_format=torch.channels_last) if whole else images)
            loss = F.cross_entropy(scores.float(), y[index].to(device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.detach())
    return torch.stack(losses).mean().item()


@torch.no_grad()
def _accuracy(learner: nn.Module, x: Tensor, y: Tensor, *, dtype: str, device: torch.device, batch: int = 250) -> float:
    learner.eval()
    hits = 0
    with torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
        for images, labels in zip(x.split(batch), y.split(batch), strict=True):
            hits += int((learner(images.to(device)).argmax(1) == labels.to(device)).sum())
    return hits / len(y)


def choose(cells: Iterable[dict[str, Any]], seed: int) -> dict[tuple[str, int], dict[str, Any]]:
    """The architecture of every entry of the table, by the held-out images at one seed."""
    best: dict[tuple[str, int], dict[str, Any]] = {}
    for cell in cells:
        key = (cell["filters"], cell["blocks"])
        if cell["seed"] == seed and (key not in best or cell["validation"] > best[key]["validation"]):
            best[key] = cell
    return best


def summarise(cells: Sequence[dict[str, Any]], seed: int) -> dict[str, Any]:
    """The table's entries, in percent."""
    found: dict[str, Any] = {name: {} for name in FILTERS}
    for (filters, blocks), chosen in sorted(choose(cells, seed).items()):
        fixed = {name: value for name, value in chosen.items() if name in Cell.__annotations__ and name != "seed"}
        seeds = [cell for cell in cells if all(cell[name] == value for name, value in fixed.items())]
        accuracies = [100 * cell["test"] for cell in seeds]
        mean = sum(accuracies) / len(accuracies)
        interval = None
        if len(accuracies) in STUDENT:
            variance = sum((a - mean) ** 2 for a in accuracies) / (len(accuracies) - 1)
            interval = STUDENT[len(accuracies)] * math.sqrt(variance / len(accuracies))
        searched = [
            cell for cell in cells if (cell["filters"], cell["blocks"], cell["seed"]) == (filters, blocks, seed)
        ]
        found[filters][str(blocks)] = {
            "accuracy": mean,
            "interval": interval,
            "seeds": len(accuracies),
            **fixed,
            "searched": [
                {key: cell[key] for key in (*SEARCHED, "dtype", "images")} | {"validation": 100 * cell["validation"]}
                for cell in searched
            ],
        }
    return found


def document(cells: Sequence[dict[str, Any]], seed: int) -> dict[str, Any]:
    """What the JSON file holds, besides command, settings and environment."""
    searched = f"sizes {_listed(cells, 'size')} and channels {_listed(cells, 'channels')}"
    return {
        "name": "table1",
        "paper": {"accuracy": TABLE_1, "searched": TABLE_1_SEARCH},
        "ours": summarise(cells, seed),
        "notes": [
            "Percent of CIFAR-10's test set; our images are JPEG re-encoded by a public mirror, the paper's are the "
            "originals.",
            "Random filters by table1.py: Gaussian, frozen, batch norm from 512 training images, features extracted "
            "once from the images (and from their mirror images where flips says so), a linear classifier on all of "
            "them by Adam. By table1_random.py (one epoch): filters of each block in a row, batch norm on both sides "
            "of ReLU and pooling, maps averaged to 4x4 places and over mirror images, softmax regression (12 steps, "
            "counted as one epoch). "
            "Learned filters: the same network trained whole, on flipped and shifted images.",
            f"Searched here: {searched}, by {HELD_OUT} held-out training images; the paper: sizes 3, 5, 7 and up to "
            "2048 channels. The networks measured are those trained without the held-out images, where images says "
            "50000 the classifier was solved for once more with them.",
        ],
        "cells": list(cells),
    }


def add(path: Path, cell: dict[str, Any], script: str, given: Sequence[str], data: Path) -> None:
    """Add a network that another script measured to the file, with that script's command."""
    print(json.dumps(cell), flush=True)
    kept = json.loads(path.read_text())
    words = ["FOLDER" if word == str(data) else word for word in given]
    for option in ("--out", "--work"):
        if option in words:
            del words[words.index(option) : words.index(option) + 2]
    commands = [*kept["commands"], shlex.join(["python", f"experiments/{script}", *words])]
    record = {"command": " && ".join(commands), "commands": commands, "environment": environment()}
    write_json(path, document([*kept["cells"], cell], cell["seed"]) | record)


def _listed(cells: Sequence[dict[str, Any]], name: str) -> str:
    return ", ".join(map(str, sorted({cell[name] for cell in cells}, key=str))) or "none"


def main(arguments: list[str] | None = None) -> int:
    """Train what is missing, and write the file after every network."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with train/<class>/* and test/<class>/*")
    parser.add_argument("--out", type=Path, default=Path("experiments/results/table1.json"), help="JSON file to extend")
    parser.add_argument("--filters", nargs="+", choices=FILTERS, default=list(FILTERS))
    parser.add_argument("--blocks", nargs="+", type=int, choices=(1, 2, 3), default=[1, 2, 3])
    parser.add_argument("--sizes", nargs="+", type=int, default=[3, 5, 7])
    parser.add_argument("--channels", nargs="+", type=int, default=[64, 128, 256, 1024, 2048])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="the first one is the search's")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--decay", type=float, default=0.05)
    parser.add_argument("--dropout", type=float, default=0.5)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--flips", action="store_true", help="random features of the mirrored images too")
    parser.add_argument("--limit", type=int, help="number of training images, drawn at random; all by default")
    given = sys.argv[1:] if arguments is None else arguments
    chosen = parser.parse_args(given)
    try:
        kept = json.loads(chosen.out.read_text()) if chosen.out.exists() else {"cells": [], "commands": []}
        data = load(chosen.data, chosen.limit)
    except (UnconvError, ValueError) as error:
        print(f"table1: {error}", file=sys.stderr)
        return 1
    words = ["FOLDER" if word == str(chosen.data) else word for word in given]
    if "--out" in words:
        del words[words.index("--out") : words.index("--out") + 2]
    command = shlex.join(["python", "experiments/table1.py", *words])
    commands = [*kept["commands"], *([] if command in kept["commands"] else [command])]
    cells: list[dict[str, Any]] = kept["cells"]

    def measured(filters: Filters, blocks: int, size: int, channels: int, seed: int) -> dict[str, Any]:
        settings = (chosen.epochs, chosen.rate, chosen.decay, chosen.dropout, chosen.dtype, len(data.training[0]))
        flips = chosen.flips and filters == "random"
        cell = Cell(filters, blocks, size, channels, seed, *settings, flips)
        done = next((c for c in cells if all(c[name] == value for name, value in asdict(cell).items())), None)
        if done is not None:
            return done
        cells.append(train(cell, data))
        print(json.dumps(cells[-1]), flush=True)
        record = {"command": " && ".join(commands), "commands": commands, "environment": environment()}
        chosen.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(chosen.out, document(cells, chosen.seeds[0]) | record)
        return cells[-1]

    for blocks in chosen.blocks:
        for filters in chosen.filters:
            tried = [measured(filters, blocks, s, c, chosen.seeds[0]) for c in chosen.channels for s in chosen.sizes]
            best = max(tried, key=lambda cell: cell["validation"])
            for seed in chosen.seeds[1:]:
                measured(filters, blocks, best["size"], best["channels"], seed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
