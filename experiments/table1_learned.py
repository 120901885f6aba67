"""One learned cell of Table 1, trained fast: ``python experiments/table1_learned.py --data FOLDER --channels 64 256``.

A block is convolution, 2x2 max pooling, batch norm and ReLU (the same function as with ReLU in front of the pooling);
a linear classifier reads the last one. The first block starts from whitened patches, the filters of the later ones are
trained by Muon (orthogonalised momentum, Jordan et al. 2024), all else by Adam; label smoothing, flips and shifts; the
scores of an image and of its mirror image are averaged. A checkpoint in a working folder lets the same command go on
after a stop.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from table1 import Data, add, load
from torch import Tensor, nn
from train_cifar_vgg import augment

WARM_STEPS = 30
CHECKPOINT_EVERY = 25  # steps
SMOOTHING = 0.1
MOMENTUM = 0.8
ADAM_RATES = {"first": 1e-3, "classifier": 5e-4, "norms": 1e-2}


class WhitenedConv(nn.Module):
    """A convolution whose filters are mixtures of whitened patch directions."""

    whitening: Tensor

    def __init__(self, images: Tensor, channels: int, size: int) -> None:
        """Start with every direction in both signs, and random mixtures where channels are left."""
        super().__init__()
        patches = F.unfold(images, size).transpose(1, 2).flatten(0, 1)
        values, vectors = torch.linalg.eigh(torch.cov(patches.T))
        # rows: v_i^T / sqrt(lambda_i), so that each direction's response has unit variance
        self.register_buffer("whitening", vectors.T / (values + 1e-3 * values.mean()).sqrt()[:, None])
        directions = len(values)
        signed = torch.cat([torch.eye(directions), -torch.eye(directions)]).flip(0)[:channels]
        rest = F.normalize(torch.randn(channels - len(signed), directions), dim=1)
        self.mixture = nn.Parameter(torch.cat([signed, rest]))
        self.shape = (channels, images.shape[1], size, size)

    def forward(self, x: Tensor) -> Tensor:
        """Filter images."""
        weight = (self.mixture @ self.whitening).view(self.shape)
        return F.conv2d(x, weight, padding=self.shape[-1] // 2)


class Network(nn.Module):
    """Blocks and a linear classifier."""

    def __init__(self, images: Tensor, channels: Sequence[int], size: int, classes: int) -> None:
        """Draw what is drawn."""
        super().__init__()
        self.first = WhitenedConv(images, channels[0], size)
        later = [nn.Conv2d(n, m, size, padding=size // 2, bias=False) for n, m in pairwise(channels)]
        self.later = nn.ModuleList(later)
        self.norms = nn.ModuleList([nn.BatchNorm2d(count) for count in channels])
        for norm in self.norms:
            norm.weight.requires_grad_(False)
        side = images.shape[-1] // 2 ** len(channels)
        self.classifier = nn.Linear(channels[-1] * side * side, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores."""
        for convolution, norm in zip((self.first, *self.later), self.norms, strict=True):
            x = F.relu(norm(F.max_pool2d(convolution(x), 2)))
        return self.classifier(x.flatten(1))


class Muon(torch.optim.Optimizer):
    """Momentum whose matrices are made orthogonal; filters keep the norm sqrt(number of filters)."""

    def __init__(self, parameters: list[Tensor], lr: float) -> None:
        """Keep the rate."""
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Move every filter bank."""
        for group in self.param_groups:
            for p in group["params"]:
                buffer = self.state[p].setdefault("momentum", torch.zeros_like(p))
                buffer.mul_(MOMENTUM).add_(p.grad)
                update = orthogonal((p.grad + MOMENTUM * buffer).flatten(1)).view_as(p)
                p.mul_(len(p) ** 0.5 / p.norm()).sub_(group["lr"] * update)


def orthogonal(matrix: Tensor, steps: int = 4) -> Tensor:
    """Bring all singular values near 1, by Newton-Schulz steps of degree five."""
    x = matrix / matrix.norm()
    for _ in range(steps):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x


def train(
    data: Data, channels: Sequence[int], size: int, *, rate: float, batch: int, steps: int, seed: int, checkpoint: Path
) -> tuple[Network, float, float]:
    """Train while the rates fall to 0 in a straight line; return the network, its last loss and CPU seconds."""
    torch.manual_seed(seed)
    images, labels = data.training
    network = Network(images[:2000], channels, size, int(labels.max()) + 1).to(memory_format=torch.channels_last)
    muon = Muon([module.weight for module in network.later if isinstance(module, nn.Conv2d)], rate)
    adam = torch.optim.AdamW(
        [
            {"params": list(network.first.parameters()), "lr": ADAM_RATES["first"], "weight_decay": 0.0},
            {"params": [norm.bias for norm in network.norms], "lr": ADAM_RATES["norms"], "weight_decay": 0.0},
            {"params": list(network.classifier.parameters()), "lr": ADAM_RATES["classifier"], "weight_decay": 0.05},
        ],
        betas=(0.85, 0.98),
    )
    groups = [(group, group["lr"]) for group in (*muon.param_groups, *adam.param_groups)]
    generator = torch.Generator().manual_seed(seed)
    step, seconds, order, losses = 0, 0.0, torch.empty(0, dtype=torch.long), [math.nan]
    if checkpoint.exists():
        kept = torch.load(checkpoint, weights_only=True)
        network.load_state_dict(kept["network"])
        muon.load_state_dict(kept["muon"])
        adam.load_state_dict(kept["adam"])
        groups = [(group, full) for group, (_, full) in zip((*muon.param_groups, *adam.param_groups), groups)]
        generator.set_state(kept["generator"])
        step, order, seconds = kept["step"], kept["order"], kept["seconds"]
    per_epoch = len(images) // batch
    start = time.process_time() - seconds
    network.train()
    while step < steps:
        if step % per_epoch == 0:
            order = torch.randperm(len(images), generator=generator)
        for group, full in groups:
            group["lr"] = full * (1 - step / steps) * min(1.0, (step + 1) / WARM_STEPS)
        index = order[step % per_epoch * batch : (step % per_epoch + 1) * batch]
        x = augment(images[index], shift=2, cut=0, generator=generator)
        scores = network(x.contiguous(memory_format=torch.channels_last))
        loss = F.cross_entropy(scores, labels[index], label_smoothing=SMOOTHING)
        network.zero_grad(set_to_none=True)
        loss.backward()
        muon.step()
        adam.step()
        step += 1
        losses.append(loss.item())
        if step % CHECKPOINT_EVERY == 0:
            seconds = time.process_time() - start
            losses = [sum(losses[-CHECKPOINT_EVERY:]) / CHECKPOINT_EVERY]
            print(f"step {step} of {steps}, loss {losses[0]:.4f}, {seconds:.0f} s", flush=True)
            state = {"network": network.state_dict(), "muon": muon.state_dict(), "adam": adam.state_dict()}
            state |= {"generator": generator.get_state(), "step": step, "order": order, "seconds": seconds}
            torch.save(state, checkpoint)
    return network, losses[-1], time.process_time() - start


@torch.no_grad()
def accuracy(network: nn.Module, images: Tensor, labels: Tensor, batch: int = 250) -> float:
    """Share of images whose highest score, the mirror image's added, is their label."""
    network.eval()
    hits = 0
    for x, y in zip(images.split(batch), labels.split(batch), strict=True):
        x = x.contiguous(memory_format=torch.channels_last)
        hits += int(((network(x) + network(x.flip(-1))).argmax(1) == y).sum())
    network.train()
    return hits / len(labels)


def main(arguments: list[str] | None = None) -> int:
    """Measure one cell and add it to the file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with train/<class>/* and test/<class>/*")
    parser.add_argument("--out", type=Path, default=Path("experiments/results/table1.json"), help="JSON file to extend")
    parser.add_argument("--work", type=Path, default=Path("runs/table1"), help="folder for checkpoints")
    parser.add_argument("--channels", nargs="+", type=int, required=True, help="filters of each block")
    parser.add_argument("--size", type=int, default=3, help="side of the filters")
    parser.add_argument("--steps", type=int, default=1300)
    parser.add_argument("--batch", type=int, default=500)
    parser.add_argument("--rate", type=float, default=0.08, help="of Muon")
    parser.add_argument("--seed", type=int, default=0)
    given = sys.argv[1:] if arguments is None else arguments
    chosen = parser.parse_args(given)
    data = load(chosen.data)
    chosen.work.mkdir(parents=True, exist_ok=True)
    name = "-".join(map(str, ("learned", *chosen.channels, chosen.size, chosen.seed)))
    settings = {"rate": chosen.rate, "batch": chosen.batch, "steps": chosen.steps, "seed": chosen.seed}
    checkpoint = chosen.work / f"{name}.pt"
    network, loss, seconds = train(data, chosen.channels, chosen.size, checkpoint=checkpoint, **settings)
    images = len(data.training[0])
    cell = {
        **{"filters": "learned", "blocks": len(chosen.channels), "size": chosen.size},
        **{"channels": ", ".join(map(str, chosen.channels)), "seed": chosen.seed},
        **{"epochs": round(chosen.steps * chosen.batch / images), "rate": chosen.rate, "decay": 0.05, "dropout": 0.0},
        **{"dtype": "float32", "images": images, "flips": True, "validation": accuracy(network, *data.validation)},
        **{"test": accuracy(network, *data.test), "training_loss": loss, "seconds": seconds},
    }
    add(chosen.out, cell, "table1_learned.py", given, chosen.data)
    return 0


if __name__ == "__main__":
    sys.exit(main())
