"""How far float32 moves a report's relative errors from float64: ``python benchmarks/float64.py``.

The bundled network at 32 pixels on the bundled photographs, two stages, every way of the report; the largest
difference of a relative error by way, relative and absolute, into
``float64.json`` beside this file (docs/robustness.md).
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from unconv.inversion.methods import DEFAULT_METHODS, SolverOptions, invert_batch, stages_needed

from unconv.evaluate.network import Network
from unconv.evaluate.run_directory import environment
from unconv.images import ImageStream, sample_photographs
from unconv.io import write_json
from unconv.linalg import relative_norm
from unconv.models import load_model
from unconv.tracing import capture_inputs as capture

STAGES = ("features.0", "features.7")
EFFORT = 0.35


def errors(dtype: torch.dtype) -> dict[str, dict[str, Tensor]]:
    """Relative errors by stage and way, one per image."""
    loaded = load_model("cifar-vgg", size=32)
    network = Network(loaded.module.to(dtype), loaded.preprocess)
    images = next(iter(ImageStream(sample_photographs(), loaded.preprocess, 4))).inputs.to(dtype)
    stages = network.stages(images.shape[1:])
    found: dict[str, dict[str, Tensor]] = {name: {} for name in STAGES}
    for name in STAGES:
        for way in DEFAULT_METHODS:
            inputs = capture(network.module, stages_needed(stages, name, way), images)
            region = 2 if way.code == "paper" else None
            result = invert_batch(
                network.module,
                stages,
                name,
                images,
                inputs,
                way,
                region=region,
                box=network.box,
                tuning=SolverOptions(effort=EFFORT),
            )
            found[name][" ".join(way.fields().values())] = relative_norm(
                result.estimate - result.reference, result.reference
            )
    return found


def main() -> None:
    """Measure and write."""
    single, double = errors(torch.float32), errors(torch.float64)
    rows = [
        {
            "stage": name,
            "way": way,
            "difference": ((single[name][way].double() - exact) / exact).abs().max().item(),
            "absolute": (single[name][way].double() - exact).abs().max().item(),
        }
        for name in STAGES
        for way, exact in double[name].items()
    ]
    write_json(
        Path(__file__).with_suffix(".json"),
        {"command": "python benchmarks/float64.py", "effort": EFFORT, "rows": rows, "environment": environment()},
    )
    for row in rows:
        print(f"{row['stage']:12s} {row['way']:45s} {row['difference']:.1e} {row['absolute']:.1e}")


if __name__ == "__main__":
    main()
