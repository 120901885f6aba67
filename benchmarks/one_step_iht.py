"""One-step IHT against the torch calls that no version can do without: ``make bench``.

Floor: ``conv2d``, ``max_pool2d`` with indices, ``max_unpool2d`` and ``conv_transpose2d`` of the same batch. Ours
also takes magnitudes, keeps signs and, with k, the k largest values of each image. Each run times both in
turn; the ratio of the two is what counts, and its spread over the runs. Writes ``benchmarks/one_step_iht.json``.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

from unconv.atomic import write_json
from unconv.operators import ConvOperator
from unconv.recover import iht
from unconv.runs.directory import environment
from unconv.sparsity import Pooled

RUNS = 31
SETTINGS = {
    "VGG conv2_1, pool(1) at 224x224": (4, 64, 128, 112),
    "VGG conv3_1, pool(2) at 224x224": (4, 128, 256, 56),
    "VGG conv5_1, pool(4) at 224x224": (8, 512, 512, 14),
    "cifar-vgg features.10, 32x32": (64, 128, 128, 16),
}


def seconds(call: Callable[[], object]) -> float:
    """Time of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


@torch.inference_mode()
def measure(batch: int, channels: int, filters: int, side: int) -> dict[str, object]:
    """Ratios of ours to the floor in one setting."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(filters, channels, 3, 3, generator=generator)
    x = torch.randn(batch, channels, side, side, generator=generator)
    operator = ConvOperator(weight, x.shape[1:], padding=1).normalised()
    w = operator.weight
    regions = filters * (side // 2) ** 2

    def floor() -> torch.Tensor:
        values, switches = F.max_pool2d(F.conv2d(x, w, padding=1), 2, return_indices=True)
        return F.conv_transpose2d(F.max_unpool2d(values, switches, 2), w, padding=1)

    variants: dict[str, Callable[[], object]] = {
        "signed pooling, all regions": lambda: iht(operator, x, Pooled(2, signed=True)),
        "magnitude pooling, all regions": lambda: iht(operator, x, Pooled(2)),
        "magnitude pooling, k half of the regions": lambda: iht(operator, x, Pooled(2, k=regions // 2)),
    }
    calls = {"floor": floor} | variants
    for call in calls.values():
        call()
    times = {name: [] for name in calls}
    for _ in range(RUNS):
        for name, call in calls.items():
            times[name].append(seconds(call))
    ratios = {}
    for name in variants:
        paired = [ours / bare for ours, bare in zip(times[name], times["floor"], strict=True)]
        ratios[name] = {
            "median": round(statistics.median(paired), 3),
            "min": round(min(paired), 3),
            "max": round(max(paired), 3),
        }
    return {
        "batch": batch,
        "shape": [channels, filters, side, side],
        "floor_ms": round(1e3 * statistics.median(times["floor"]), 2),
        "ratio_to_floor": ratios,
    }


def main() -> None:
    """Measure every setting and write the file."""
    rows = {name: measure(*setting) for name, setting in SETTINGS.items()}
    record = {"command": "make bench", "paired_runs": RUNS, "settings": rows, "environment": environment()}
    write_json(Path(__file__).with_suffix(".json"), record)
    for name, row in rows.items():
        print(f"{name}: floor {row['floor_ms']} ms")
        for variant, ratio in row["ratio_to_floor"].items():
            print(f"  {variant}: {ratio['median']} ({ratio['min']} to {ratio['max']})")


if __name__ == "__main__":
    main()
