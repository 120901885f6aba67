"""Train the bundled network on CIFAR-10: ``python experiments/train_cifar_vgg.py --data FOLDER``.

FOLDER is an ImageFolder tree, ``train/<class>/*`` and ``test/<class>/*``. SGD with Nesterov momentum under a
triangular learning rate, label smoothing, random flips, shifts by up to four pixels and, if asked for,
square cut-outs. Writes the weights as safetensors, and beside them a JSON log with the
accuracy on the way. Nothing is selected on the test set: the last epoch is what is kept. With
``--init`` a further cycle of the schedule starts from given weights (warm restarts, Loshchilov and Hutter 2017); with
``--average`` the rate stays and the weights on the way are averaged (Izmailov et al. 2018).
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor
from torchvision.datasets import ImageFolder
from torchvision.transforms.functional import pil_to_tensor

from unconv.cifar_vgg import CLASSES, MEAN, STD, CifarVGG

AVERAGE_EVERY = 65  # steps, three times an epoch
TEST_EVERY = 6  # epochs


def load_split(folder: Path) -> tuple[Tensor, Tensor]:
    """Read one split of an ImageFolder tree."""
    split = ImageFolder(folder)
    if split.classes != sorted(CLASSES):
        raise FileNotFoundError(f"{folder} has the classes {split.classes}; expected {folder}/<class>/*.jpg")
    pixels = torch.stack([pil_to_tensor(image) for image, _ in split]).float() / 255
    labels = torch.tensor([CLASSES.index(split.classes[label]) for label in split.targets])
    return (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None], labels


def augment(images: Tensor, shift: int, cut: int, generator: torch.Generator) -> Tensor:
    """Flip half of the images, shift each, and blank one square of each."""
    n, _, h, w = images.shape
    device = images.device

    def draw(high: int, size: tuple[int, ...]) -> Tensor:
        return torch.randint(high, size, generator=generator).to(device)

    flip = draw(2, (n, 1, 1, 1)).bool()
    images = torch.where(flip, images.flip(-1), images)
    padded = F.pad(images, (shift,) * 4, mode="reflect")
    rows = draw(2 * shift + 1, (n, 1)) + torch.arange(h, device=device)
    columns = draw(2 * shift + 1, (n, 1)) + torch.arange(w, device=device)
    index = torch.arange(n, device=device)[:, None, None]
    shifted = padded.permute(0, 2, 3, 1)[index, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    if not cut:
        return shifted
    top, left = draw(h - cut + 1, (n, 1)), draw(w - cut + 1, (n, 1))
    y, x = torch.arange(h, device=device)[None], torch.arange(w, device=device)[None]
    inside = ((y >= top) & (y < top + cut))[:, None, :, None] & ((x >= left) & (x < left + cut))[:, None, None]
    return shifted.masked_fill(inside, 0.0)


@torch.no_grad()
def accuracy(model: CifarVGG, images: Tensor, labels: Tensor, batch: int = 1000) -> float:
    """Share of images whose highest score is their label, in float32 and without augmentation."""
    model.eval()
    hits = [(model(x).argmax(1) == y).sum().item() for x, y in zip(images.split(batch), labels.split(batch))]
    return sum(hits) / len(labels)


@torch.no_grad()
def measure_statistics(model: CifarVGG, images: Tensor, batch: int = 1000) -> None:
    """Measure the batch norms' running statistics anew, which averaged weights need."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    model.train()
    for x in images.split(batch):
        model(x)


def train(args: argparse.Namespace) -> None:
    """Train, and write weights and log."""
    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    device = torch.device(args.device)
    torch.backends.cudnn.deterministic = True
    images, labels = (t.to(device) for t in load_split(args.data / "train"))
    test_images, test_labels = (t.to(device) for t in load_split(args.data / "test"))

    model = CifarVGG()
    if args.init is not None:
        model.load_state_dict(load_file(args.init), strict=False)
    model = model.to(device).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    decayed = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.SGD(
        [{"params": decayed, "weight_decay": args.weight_decay}, {"params": rest, "weight_decay": 0.0}],
        lr=args.lr,
        momentum=0.9,
        nesterov=True,
    )
    steps_per_epoch = len(images) // args.batch
    total = args.epochs * steps_per_epoch
    rise = 0.2 * total

    def rate(step: int) -> float:
        if args.average:
            return 1.0
        return min(step / rise, (total - step) / (total - rise)) if step < total else 0.0

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    mean = torch.optim.swa_utils.AveragedModel(model) if args.average else None

    log: list[dict[str, Any]] = []
    start = time.perf_counter()
    for epoch in range(args.epochs):
        model.train()
        losses = []
        order = torch.randperm(len(images), generator=generator).to(device)
        for step in range(steps_per_epoch):
            index = order[step * args.batch : (step + 1) * args.batch]
            x = augment(images[index], shift=4, cut=args.cut, generator=generator)
            with torch.autocast(device.type, torch.bfloat16):
                scores = model(x.contiguous(memory_format=torch.channels_last))
            loss = F.cross_entropy(scores.float(), labels[index], label_smoothing=args.label_smoothing)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.detach())
            if mean is not None and step % AVERAGE_EVERY == AVERAGE_EVERY - 1:
                mean.update_parameters(model)
        row = {"epoch": epoch + 1, "train_loss": round(torch.stack(losses).mean().item(), 4)}
        if (epoch + 1) % TEST_EVERY == 0 or epoch + 1 == args.epochs:
            row["test_accuracy"] = accuracy(model, test_images, test_labels)
        row["seconds"] = round(time.perf_counter() - start, 1)
        log.append(row)
        print(json.dumps(row), flush=True)

    if mean is not None:
        model = cast(CifarVGG, mean.module)
        measure_statistics(model, images)
        log.append({"epoch": args.epochs, "averaged": True, "test_accuracy": accuracy(model, test_images, test_labels)})
        print(json.dumps(log[-1]), flush=True)

    args.out.parent.mkdir(parents=True, exist_ok=True)
    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    save_file({k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}, args.out)
    config = {k: v for k, v in vars(args).items() if k not in {"out", "data", "init"}}
    earlier = [] if args.init is None else json.loads(args.init.with_suffix(".json").read_text())["cycles"]
    environment = {
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
    }
    record = {
        "command": "python experiments/train_cifar_vgg.py",
        "data": "CIFAR-10, JPEG re-encoded; no validation split, last epoch kept",
        "test_accuracy": log[-1]["test_accuracy"],
        "cycles": [*earlier, {"config": config, "environment": environment, "epochs": log}],
    }
    args.out.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with train/<class>/* and test/<class>/*")
    parser.add_argument("--out", type=Path, default=Path("cifar_vgg.safetensors"))
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--lr", type=float, default=0.2)
    parser.add_argument("--weight-decay", type=float, default=5e-4)
    parser.add_argument("--label-smoothing", type=float, default=0.1)
    parser.add_argument("--init", type=Path, help="weights of an earlier cycle to start from, under a new schedule")
    parser.add_argument("--average", action="store_true", help="constant rate, and the mean of the weights on the way")
    parser.add_argument("--cut", type=int, default=0, help="side of the blanked square in pixels; 0 for none")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
