"""Learned cells of Table 1: ``python experiments/table1_learned.py --data FOLDER --channels 64 192 384``.

A block is a convolution, 2x2 max pooling, batch norm and ReLU; one linear classifier reads the last one. Filters are
trained with orthogonalised momentum (Muon; Jordan et al. 2024), everything else with AdamW, on images that are flipped
and shifted by up to four pixels, with label smoothing; rates rise and fall, in one cycle or more. Scores are averaged
over an image and its mirror image. The last epoch is what is measured; the test set is looked at once.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from table1 import add, command_line, load
from torch import Tensor, nn
from train_cifar_vgg import augment

SHIFT, SMOOTHING, MOMENTUM = 4, 0.1, 0.9
ADAM_RATE, DECAY = 2e-3, 0.05  # of the rest
RISE = 0.1  # share of all steps in which the rates rise, linearly; then they fall to zero


def network(channels: Sequence[int], size: int, shape: Sequence[int], classes: int = 10) -> nn.Sequential:
    """Blocks and a linear classifier; a layer's filters have the norm ``sqrt(number of filters)``."""
    layers: list[nn.Module] = []
    before, height, width = shape
    for count in channels:
        convolution = nn.Conv2d(before, count, size, padding=size // 2, bias=False)
        layers += [convolution, nn.MaxPool2d(2), nn.BatchNorm2d(count), nn.ReLU(inplace=True)]
        before, height, width = count, height // 2, width // 2
    made = nn.Sequential(*layers, nn.Flatten(), nn.Linear(before * height * width, classes))
    for weight in filters(made):
        normalise(weight)
    return made.to(memory_format=torch.channels_last)


def filters(network: nn.Sequential) -> list[nn.Parameter]:
    """The weights of the convolutions."""
    return [layer.weight for layer in network if isinstance(layer, nn.Conv2d)]


@torch.no_grad()
def normalise(weight: Tensor) -> None:
    """Batch norm follows, so that the scale of filters is free: it is fixed."""
    weight *= len(weight) ** 0.5 / weight.norm()


@torch.no_grad()
def orthogonal(gradient: Tensor, steps: int = 4) -> Tensor:
    """Nearly ``U V^T`` of ``U S V^T``, a matrix with one row a filter, by Newton-Schulz iterations (Jordan et al.)."""
    x = gradient.reshape(len(gradient), -1).bfloat16()
    x = x / (x.norm() + 1e-7)
    wide = x if x.shape[0] <= x.shape[1] else x.T
    for _ in range(steps):
        square = wide @ wide.T
        # X <- a X + (b A + c A^2) X, with A = X X^T
        wide = 3.4445 * wide + (-4.775 * square + 2.0315 * square @ square) @ wide
    return (wide if x.shape[0] <= x.shape[1] else wide.T).float().reshape(gradient.shape)


def train(
    network: nn.Sequential, images: Tensor, labels: Tensor, *, epochs: int, rate: float, batch: int, seed: int
) -> None:
    """Train all of it for one cycle, in bfloat16 where torch's autocast does; ``rate``: the largest of the filters."""
    device = next(network.parameters()).device
    learned = filters(network)
    rest = [p for layer in network if not isinstance(layer, nn.Conv2d) for p in layer.parameters()]
    optimizer = torch.optim.AdamW(rest, ADAM_RATE, weight_decay=DECAY)
    momenta = [torch.zeros_like(weight) for weight in learned]
    generator = torch.Generator().manual_seed(seed)
    steps = len(images) // batch
    done, total = 0, steps * epochs
    for epoch in range(epochs):
        begun, losses = time.perf_counter(), []
        network.train()
        order = torch.randperm(len(images), generator=generator)
        for step in range(steps):
            index = order[step * batch : (step + 1) * batch]
            x = augment(images[index].to(device), shift=SHIFT, cut=0, generator=generator)
            with torch.autocast(device.type, torch.bfloat16):
                scores = network(x.contiguous(memory_format=torch.channels_last))
            loss = F.cross_entropy(scores.float(), labels[index].to(device), label_smoothing=SMOOTHING)
            loss.backward()
            share = min(done / (RISE * total), (total - done) / ((1 - RISE) * total))
            optimizer.param_groups[0]["lr"] = ADAM_RATE * share
            optimizer.step()
            with torch.no_grad():
                for weight, momentum in zip(learned, momenta, strict=True):
                    # m <- 0.9 m + g, W <- W - rate U V^T of g + 0.9 m
                    momentum.mul_(MOMENTUM).add_(weight.grad)
                    weight -= rate * share * orthogonal(weight.grad + MOMENTUM * momentum)
                    normalise(weight)
            network.zero_grad(set_to_none=True)
            done += 1
            losses.append(loss.item())
        mean = sum(losses) / len(losses)
        print(f"epoch {epoch + 1}: loss {mean:.4f}, {time.perf_counter() - begun:.0f} s", flush=True)


@torch.no_grad()
def accuracy(network: nn.Module, images: Tensor, labels: Tensor, batch: int = 500) -> float:
    """Share of images whose highest score, averaged over it and its mirror image, is their label."""
    network.eval()
    device = next(network.parameters()).device
    hits = 0
    for x, y in zip(images.split(batch), labels.split(batch), strict=True):
        with torch.autocast(device.type, torch.bfloat16):
            views = [network(view.to(device).contiguous(memory_format=torch.channels_last)) for view in (x, x.flip(-1))]
        hits += int((sum(view.float() for view in views).argmax(1).cpu() == y).sum())
    return hits / len(labels)


def main(arguments: list[str] | None = None) -> int:
    """Measure a network with every seed, and add each to the file."""
    parser = command_line(__doc__ or "", size=5)
    parser.add_argument("--epochs", nargs="+", type=int, default=[12], help="of each cycle; each has half the rate")
    parser.add_argument("--batch", type=int, default=500)
    parser.add_argument("--rate", type=float, default=0.1, help="largest one of the filters, in the first cycle")
    given = sys.argv[1:] if arguments is None else arguments
    chosen = parser.parse_args(given)
    data = load(chosen.data)
    for seed in chosen.seeds:
        start = time.process_time()
        torch.manual_seed(seed)
        made = network(chosen.channels, chosen.size, data.training[0].shape[1:])
        made.to("cuda" if torch.cuda.is_available() else "cpu")
        for cycle, epochs in enumerate(chosen.epochs):
            options = {"epochs": epochs, "rate": chosen.rate / 2**cycle, "batch": chosen.batch}
            train(made, *data.training, **options, seed=seed + 1000 * cycle)
        cell = {"filters": "learned", "blocks": len(chosen.channels), "size": chosen.size}
        cell |= {"channels": ", ".join(map(str, chosen.channels)), "seed": seed, "epochs": sum(chosen.epochs)}
        cell |= {"batch": chosen.batch, "rate": chosen.rate, "dtype": "bfloat16", "images": len(data.training[0])}
        cell |= {"validation": accuracy(made, *data.validation), "test": accuracy(made, *data.test)}
        cell |= {"seconds": round(time.process_time() - start)}
        add(chosen.out, cell, "table1_learned.py", given, chosen.data)
    return 0


if __name__ == "__main__":
    sys.exit(main())
