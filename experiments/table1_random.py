"""Random cells of Table 1, wide ones: ``python experiments/table1_random.py --data FOLDER --channels 64 512``.

A block is a convolution with frozen Gaussian filters, batch norm, ReLU, 2x2 max pooling, and batch norm again; the
norms are measured on 500 training images. Groups of such networks stand side by side, and one linear classifier reads
the last blocks' maps, averaged to 4x4 places and over an image and its mirror image: softmax regression whose penalty
leans to smooth maps. Its weight is chosen by held-out training images; then it is learned from all training images, and
the test set is looked at once. Features go to a working folder, so that the same command goes on after a stop.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.fft import dct
from scipy.linalg import cho_factor, cho_solve, get_blas_funcs
from table1 import Data, add, command_line, load
from torch import Tensor, nn

MEASURED = 500  # training images that batch norms and the features' mean are measured on
CHUNK = 2500  # images a file
GRID = 4  # places that maps are averaged to, each way
LARGEST_FREQUENCY = 3  # sum of both frequencies of the cosine coefficients that are learned from
LEANING = 0.3  # how much less the higher of them weigh
STEPS = 12  # of the classifier


@torch.no_grad()
def network(images: Tensor, channels: Sequence[int], size: int, seed: int) -> nn.Sequential:
    """Blocks of Gaussian filters, with batch norms measured on some images."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    before = images.shape[1]
    for count in channels:
        convolution = nn.Conv2d(before, count, size, padding=size // 2, bias=False)
        nn.init.normal_(convolution.weight)
        layers += [convolution, nn.BatchNorm2d(count, affine=False, momentum=None), nn.ReLU(inplace=True)]
        layers += [nn.MaxPool2d(2), nn.BatchNorm2d(count, affine=False, momentum=None)]
        before = count
    blocks = nn.Sequential(*layers).to(memory_format=torch.channels_last)
    blocks(images.contiguous(memory_format=torch.channels_last))
    blocks.eval()
    # conv and the batch norm behind it as one convolution: the maps are large
    folded: list[nn.Module] = []
    for layer in blocks:
        if isinstance(layer, nn.BatchNorm2d) and isinstance(folded[-1], nn.Conv2d):
            folded[-1] = torch.nn.utils.fuse_conv_bn_eval(folded[-1].eval(), layer)
        else:
            folded.append(layer)
    return nn.Sequential(*folded)


@torch.no_grad()
def features(blocks: nn.Module, images: Tensor, dtype: str, batch: int = 125) -> Tensor:
    """Maps averaged over an image and its mirror image and to few places, as cosine coefficients: ``(N, p)``."""
    found = []
    transform = torch.from_numpy(dct(np.eye(GRID), axis=0, norm="ortho")).float()
    for x in images.split(batch):
        both = torch.cat([x, x.flip(-1)]).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            maps = blocks(both)
        maps = F.adaptive_avg_pool2d(maps.float(), GRID)
        maps = (maps[: len(x)] + maps[len(x) :]) / 2
        found.append(torch.einsum("ai,bj,ncij->ncab", transform, transform, maps).flatten(1))
    return torch.cat(found)


def stream(blocks: nn.Module, images: Tensor, name: str, folder: Path, dtype: str) -> None:
    """Extract the features that are not in the folder yet."""
    for start in range(0, len(images), CHUNK):
        file = folder / f"{name}-{start}.npy"
        if file.exists():
            continue
        begun = time.process_time()
        part = file.with_suffix(".part.npy")
        np.save(part, features(blocks, images[start : start + CHUNK], dtype).half().numpy())
        part.rename(file)
        print(f"{file.name}: {time.process_time() - begun:.0f} s", flush=True)


def read(folders: Sequence[Path], name: str, count: int) -> np.ndarray:
    """The features of all groups that are learned from, the higher frequencies made smaller: ``(count, p)``."""
    place = np.arange(GRID)
    kept = (place[:, None] + place <= LARGEST_FREQUENCY).ravel()
    scale = (1 / (1 + LEANING * (place[:, None] ** 2 + place**2))).ravel()[kept].astype(np.float32)
    rows = []
    for start in range(0, count, CHUNK):
        parts = [np.load(folder / f"{name}-{start}.npy") for folder in folders]
        parts = [part.reshape(len(part), -1, GRID * GRID)[:, :, kept].astype(np.float32) * scale for part in parts]
        rows.append(np.concatenate([part.reshape(len(part), -1) for part in parts], axis=1))
    return np.concatenate(rows)


def classify(x: np.ndarray, labels: np.ndarray, penalty: float) -> Callable[[np.ndarray], np.ndarray]:
    """Softmax regression by accelerated descent, preconditioned by half of Boehning's bound of the Hessian."""
    count, p = x.shape
    targets = np.eye(labels.max() + 1, dtype=np.float32)[labels]
    mean = x.mean(0)
    (syrk,) = get_blas_funcs(("syrk",), dtype=np.float32)
    # X^T X - N m m^T; only the upper triangle is written and read
    gram = syrk(1.0, x.T) - count * np.outer(mean, mean)
    weight = penalty * float(np.trace(gram)) / count
    gram *= 0.25
    gram[np.diag_indices(p)] += weight
    factor = cho_factor(gram, overwrite_a=True)
    offset = np.log(targets.mean(0))
    ahead = weights = np.zeros((p, targets.shape[1]), np.float32)
    momentum = 1.0
    for _ in range(STEPS):
        scores = x @ ahead + (offset - mean @ ahead)
        shares = np.exp(scores - scores.max(1, keepdims=True))
        difference = shares / shares.sum(1, keepdims=True) - targets
        # g = (X - 1 m^T)^T (P - T) + penalty W
        gradient = x.T @ difference - np.outer(mean, difference.sum(0)) + weight * ahead
        moved = ahead - cho_solve(factor, gradient)
        if ((moved - weights) * gradient).sum() > 0:
            momentum = 1.0
        following = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        ahead = moved + (momentum - 1) / following * (moved - weights)
        weights, momentum = moved, following
    return lambda z: z @ weights + (offset - mean @ weights)


def accuracy(classifier: Callable[[np.ndarray], np.ndarray], x: np.ndarray, labels: Tensor) -> float:
    """Share of images whose highest score is their label."""
    return float((classifier(x).argmax(1) == labels.numpy()).mean())


def main(arguments: list[str] | None = None) -> int:
    """Measure a cell with every seed, and add each to the file."""
    parser = command_line(__doc__ or "", size=3)
    parser.add_argument("--work", type=Path, default=Path("runs/table1"), help="folder for features")
    parser.add_argument("--groups", type=int, default=2, help="networks side by side that one classifier reads")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="of the convolutions")
    parser.add_argument("--penalties", nargs="+", type=float, default=[0.003, 0.01], help="chosen by held-out images")
    given = sys.argv[1:] if arguments is None else arguments
    chosen = parser.parse_args(given)
    data = load(chosen.data)
    for seed in chosen.seeds:
        add(chosen.out, measure(data, seed, chosen), "table1_random.py", given, chosen.data)
    return 0


def measure(data: Data, seed: int, chosen: argparse.Namespace) -> dict[str, Any]:
    """Extract the features, choose the penalty, learn the classifier and look at the test set."""
    start = time.process_time()
    folders = []
    for group in range(chosen.groups):
        drawn = 100 * seed + group
        folders.append(chosen.work / "-".join(map(str, (*chosen.channels, chosen.size, drawn, chosen.dtype))))
        folders[-1].mkdir(parents=True, exist_ok=True)
        blocks = network(data.training[0][:MEASURED], chosen.channels, chosen.size, drawn)
        for name, part in (("held-out", data.validation), ("training", data.training), ("test", data.test)):
            stream(blocks, part[0], name, folders[-1], chosen.dtype)
    x, held = (
        read(folders, name, len(part[1])) for name, part in (("training", data.training), ("held-out", data.validation))
    )
    found = {}
    for penalty in chosen.penalties:
        found[penalty] = accuracy(classify(x, data.training[1].numpy(), penalty), held, data.validation[1])
        print(f"penalty {penalty}: held out {found[penalty]:.4f}", flush=True)
    best = max(found, key=lambda penalty: found[penalty])
    labels = np.concatenate([data.training[1].numpy(), data.validation[1].numpy()])
    classifier = classify(np.concatenate([x, held]), labels, best)
    return {
        **{"filters": "random", "blocks": len(chosen.channels), "size": chosen.size},
        "channels": f"{chosen.groups} x ({', '.join(map(str, chosen.channels))})",
        **{"seed": seed, "epochs": 1, "penalty": best, "dtype": chosen.dtype, "images": len(labels)},
        "validation": found[best],
        "test": accuracy(classifier, read(folders, "test", len(data.test[1])), data.test[1]),
        "seconds": round(time.process_time() - start),
    }


if __name__ == "__main__":
    sys.exit(main())
