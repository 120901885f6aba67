"""Where does the information sit? Every stage, under every side information, by every decoder: error, PSNR, time.

``python -m unconv.experiments.decoding MODEL --images FOLDER --out FILE`` writes the table as JSON, with the number
of equations, inequalities and unknowns of each stage and the error against time of each whole-network solver.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unconv.batched import norms, relative_norm
from unconv.decode.convex import convex
from unconv.decode.equations import equations
from unconv.decode.min_norm import min_norm
from unconv.decode.statements import Intervals, statements
from unconv.decode.transpose import transpose
from unconv.errors import UnconvError, UsageError
from unconv.images import ImageStream, find_images, quality
from unconv.invert.gauss_newton import gauss_newton
from unconv.invert.gradient import gradient_inversion
from unconv.invert.surgery import SIDE_INFO, Features
from unconv.runs.network import Network
from unconv.solution import Solution
from unconv.sparsity import AveragePool, Code
from unconv.stage import Stage, capture
from unconv.zoo import check_covered, load_model

LayerDecoder = Callable[[Stage, Code, Tensor], Tensor]
LAYER_METHODS: dict[str, LayerDecoder] = {
    "iht": lambda stage, code, x: transpose(stage.operator, code, norm=norms(x)),
    "min-norm": lambda stage, code, _: min_norm(equations(stage, code)).value,
    "convex": lambda stage, code, _: convex(stage, code, prior=None).value,
    "convex, smooth": lambda stage, code, _: convex(stage, code, prior="smooth").value,
    "convex, gaussian": lambda stage, code, _: convex(stage, code, prior="gaussian", max_steps=400).value,
    "convex, smooth, no switches": lambda stage, code, _: convex(stage, code, prior="smooth", switches=False).value,
}
IMAGE_METHODS: dict[str, Callable[..., Solution[Tensor]]] = {
    "gauss-newton": gauss_newton,
    "adam": lambda *args, **options: gradient_inversion(*args, optimizer="adam", **options),
    "lbfgs": lambda *args, **options: gradient_inversion(*args, optimizer="lbfgs", **options),
}


@dataclass
class Cell:
    """One row of the table, as it fills up.

    Attributes:
        errors: Relative error of each image.
        psnrs: PSNR of each image, in dB, for decoders of the image.
        seconds: Time of each image.
        curves: Per image, pairs of seconds and relative error after each step.
    """

    errors: list[float] = field(default_factory=list)
    psnrs: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    curves: list[list[tuple[float, float]]] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """Means, and the errors they are of."""
        count = len(self.errors)
        result: dict[str, Any] = {
            "images": count,
            "relative_error": sum(self.errors) / count,
            "seconds": sum(self.seconds) / count,
            "errors": self.errors,
        }
        if self.psnrs:
            result["psnr"] = sum(self.psnrs) / count
        if any(self.curves):
            result["curves"] = self.curves
        return result


def run(
    network: Network,
    images: ImageStream,
    names: Sequence[str],
    *,
    layer_methods: Sequence[str] = tuple(LAYER_METHODS),
    image_methods: Sequence[str] = tuple(IMAGE_METHODS),
    side_infos: Sequence[str] = SIDE_INFO,
    max_steps: dict[str, int] | None = None,
    region: int = 2,
) -> dict[str, Any]:
    """Decode every image from every stage in every way.

    Args:
        network: The network.
        images: The images; timings are per image, so batches of one say most.
        names: Stages.
        layer_methods: Decoders of the stage's own input, from ``LAYER_METHODS``.
        image_methods: Decoders of the image, from ``IMAGE_METHODS``; those start from stages that pool.
        side_infos: What decoders of the image know.
        max_steps: Steps of each decoder of the image; its default where absent.
        region: Side of the regions imposed on stages without pooling, for decoders of the stage's own input.

    Returns:
        ``name``, ``stages`` and ``rows``, fit for JSON.

    Raises:
        UsageError: If a method does not exist.
    """
    for wanted, methods in ((layer_methods, LAYER_METHODS), (image_methods, IMAGE_METHODS)):
        for method in wanted:
            if method not in methods:
                raise UsageError(f"there is no method {method!r} here; use one of {', '.join(methods)}")
    cells: dict[tuple[str, str, str, str], Cell] = {}
    counted: dict[str, dict[str, int]] = {}
    for batch in images:
        stages = network.stages(batch.inputs.shape[1:])
        inputs = capture(network.module, names, batch.inputs)
        for name in names:
            stage = stages.get(name)
            pooled = stage.with_region(region) if stage.pooling is None and region > 1 else stage
            code = pooled.encode(inputs[name])
            counted.setdefault(name, count(pooled, code))
            for method in layer_methods:
                cell = cells.setdefault(
                    (name, "layer", "none" if "no switches" in method else "switches", method), Cell()
                )
                _decode_layer(cell, method, pooled, code, inputs[name])
            if stage.pooling is None:
                continue
            features = Features(network.module, stage, batch.inputs.shape[1:])
            for side_info in side_infos:
                for method in image_methods:
                    cell = cells.setdefault((name, "image", side_info, method), Cell())
                    _decode_image(
                        cell, method, side_info, network, features, batch.inputs, (max_steps or {}).get(method)
                    )
    rows = [
        {"stage": name, "from": what, "side_info": side_info, "method": method, **cell.summary()}
        for (name, what, side_info, method), cell in cells.items()
        if cell.errors
    ]
    return {"name": "decoding", "stages": counted, "rows": rows}


def count(stage: Stage, code: Code) -> dict[str, int]:
    """Equations, inequalities and unknowns of a stage, for the first input of a code.

    Args:
        stage: The stage.
        code: Its code.

    Returns:
        The three numbers.
    """
    unknowns = stage.operator.input_shape[0]
    for n in stage.operator.input_shape[1:]:
        unknowns *= n
    said = statements(stage, code)
    if not isinstance(said, Intervals):
        return {"equations": code.values[0].numel(), "inequalities": 0, "unknowns": unknowns}
    equal, bounds = (int(part[0]) for part in said.count())
    return {"equations": equal, "inequalities": bounds, "unknowns": unknowns}


def _decode_layer(cell: Cell, method: str, stage: Stage, code: Code, x: Tensor) -> None:
    if method == "min-norm" and isinstance(code.pooling, AveragePool) and stage.activation.name != "none":
        return  # averages of an activation are no linear equations
    start = time.perf_counter()
    estimate = LAYER_METHODS[method](stage, code, x)
    cell.seconds += [(time.perf_counter() - start) / len(x)] * len(x)
    cell.errors += relative_norm(estimate - x, x).tolist()


def _decode_image(
    cell: Cell, method: str, side_info: Any, network: Network, features: Features, x: Tensor, max_steps: int | None
) -> None:
    known = features.record(x, side_info)
    target = features(x)
    curve: list[tuple[float, float]] = []
    options = {} if max_steps is None else {"max_steps": max_steps}
    start = time.perf_counter()

    def watch(estimate: Tensor) -> None:
        curve.append((time.perf_counter() - start, relative_norm(estimate - x, x).mean().item()))

    solution = IMAGE_METHODS[method](features, target, known, box=network.box, watch=watch, **options)
    cell.seconds += [(time.perf_counter() - start) / len(x)] * len(x)
    cell.errors += relative_norm(solution.value - x, x).tolist()
    cell.curves.append([(round(seconds, 2), round(error, 5)) for seconds, error in curve])
    psnr, _ = quality(network.preprocess.to_pixels(x), network.preprocess.to_pixels(solution.value))
    cell.psnrs += psnr.tolist()


def main() -> None:
    """Run the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model")
    parser.add_argument("--weights")
    parser.add_argument("--size", type=int)
    parser.add_argument("--mean")
    parser.add_argument("--std")
    parser.add_argument("--images", type=Path, required=True, help="folder of images")
    parser.add_argument("--limit", type=int, default=10, help="number of images")
    parser.add_argument("--batch", type=int, default=1, help="images at a time")
    parser.add_argument("--stages", nargs="*", default=[], help="module paths; all that the weights reach by default")
    parser.add_argument("--layer-methods", nargs="*", default=list(LAYER_METHODS))
    parser.add_argument("--image-methods", nargs="*", default=list(IMAGE_METHODS))
    parser.add_argument("--side-info", nargs="*", default=list(SIDE_INFO), choices=SIDE_INFO)
    parser.add_argument("--steps", nargs="*", default=[], metavar="METHOD=N", help="steps of decoders of the image")
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    chosen = parser.parse_args()
    loaded = load_model(
        chosen.model, weights=chosen.weights, size=chosen.size, mean=chosen.mean, std=chosen.std, download=False
    )
    images = ImageStream(find_images(chosen.images)[: chosen.limit], loaded.preprocess, chosen.batch)
    network = Network(loaded.module, loaded.preprocess)
    first = next(iter(images)).inputs
    names = [stage.name for stage in network.stages(first.shape[1:]) if _covered(loaded, stage.name)]
    result = run(
        network,
        images,
        chosen.stages or names,
        layer_methods=chosen.layer_methods,
        image_methods=chosen.image_methods,
        side_infos=chosen.side_info,
        max_steps={method: int(steps) for method, steps in (part.split("=") for part in chosen.steps)},
    )
    result["config"] = {key: str(value) if isinstance(value, Path) else value for key, value in vars(chosen).items()}
    result["weights"] = {"source": loaded.weights.source, "sha256": loaded.weights.sha256}
    result["environment"] = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
    }
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    chosen.out.write_text(json.dumps(result, indent=1) + "\n")


def _covered(loaded: Any, name: str) -> bool:
    try:
        check_covered(loaded, [name])
    except UnconvError:
        return False
    return True


if __name__ == "__main__":
    main()
