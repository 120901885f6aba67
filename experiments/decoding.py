"""Where does the information sit? Every stage, under every side information, by every decoder: error, PSNR, time.

``python -m unconv.paper.decoding MODEL --images FOLDER --out FILE`` writes the table as JSON, with the number
of equations, inequalities and unknowns of each stage and the error against time of each whole-network solver.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from unconv.conv_block import ConvBlock, ConvBlocks
from unconv.decode.constraints import count_statements
from unconv.decode.convex import convex
from unconv.decode.linear_system import equations
from unconv.decode.min_norm import min_norm
from unconv.decode.transpose import transpose
from unconv.errors import UnconvError, UsageError
from unconv.evaluate.network import Network
from unconv.evaluate.run_directory import environment
from unconv.images import Batch, ImageStream, find_images, quality, sample_photographs, save_image
from unconv.inversion.chain import chain_to_image
from unconv.inversion.frozen_network import SIDE_INFO, LayerFunction, SideInfo
from unconv.inversion.gauss_newton import OUTLINE_STEPS, gauss_newton
from unconv.inversion.gradient import gradient_inversion
from unconv.inversion.methods import InversionMethod, invert_batch
from unconv.io import write_json
from unconv.linalg import norms, relative_norm
from unconv.models import check_covered, load_model
from unconv.solvers.solution import Solution
from unconv.sparsity import AveragePool, Code
from unconv.tracing import capture_inputs as capture

LayerDecoder = Callable[[ConvBlock, Code, Tensor], Tensor]
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
    "gauss-newton, no prior": lambda *args, **options: gauss_newton(*args, prior=None, **options),
    "adam": lambda *args, **options: gradient_inversion(*args, optimizer="adam", **options),
    "lbfgs": lambda *args, **options: gradient_inversion(*args, optimizer="lbfgs", **options),
}
STRIDE = 1.05  # points of a curve are at least this factor of time apart
CHAINED = ("iht", "min-norm", "convex")


@dataclass
class Cell:
    """One row of the table, as it fills up.

    Attributes:
        errors: Relative error of each image.
        psnrs: PSNR of each image, in dB, for decoders of the image.
        seconds: Time of each image.
        curves: Per image, pairs of seconds and relative error, closer together at first.
    """

    errors: list[float] = field(default_factory=list)
    psnrs: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    curves: list[list[tuple[float, float]]] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """Means, and the lists they are of."""
        count = len(self.errors)
        result: dict[str, Any] = {
            "images": count,
            "relative_error": sum(self.errors) / count,
            "seconds": sum(self.seconds) / count,
        }
        if self.psnrs:
            result["psnr"] = sum(self.psnrs) / count
        lists = {"errors": self.errors, "psnrs": self.psnrs, "times": self.seconds, "curves": self.curves}
        return result | {key: value for key, value in lists.items() if value}

    @staticmethod
    def read(row: dict[str, Any]) -> Cell:
        """The cell that ``summary`` wrote."""
        return Cell(row["errors"], row.get("psnrs", []), row["times"], row.get("curves", []))


def run(
    network: Network,
    images: ImageStream,
    names: Sequence[str],
    *,
    layer_methods: Sequence[str] = tuple(LAYER_METHODS),
    image_methods: Sequence[str] = tuple(IMAGE_METHODS),
    side_infos: Sequence[SideInfo] = SIDE_INFO,
    max_steps: dict[str, int] | None = None,
    outline_steps: int = OUTLINE_STEPS,
    region: int = 2,
    done: dict[str, Any] | None = None,
    save: Callable[[dict[str, Any]], None] = lambda _: None,
    pictures: Path | None = None,
) -> dict[str, Any]:
    """Decode every image from every stage in every way."""
    for wanted, methods in ((layer_methods, LAYER_METHODS), (image_methods, (*IMAGE_METHODS, *CHAINED))):
        for method in wanted:
            if method not in methods:
                raise UsageError(f"there is no method {method!r} here; use one of {', '.join(methods)}")
    result = done or {"name": "decoding", "finished": 0, "stages": {}, "rows": []}
    cells = {(row["stage"], row["from"], row["side_info"], row["method"]): Cell.read(row) for row in result["rows"]}
    counted: dict[str, dict[str, int]] = result["stages"]
    ways: list[tuple[str, SideInfo]] = []
    for method in image_methods:
        kinds: Sequence[SideInfo] = ("switches",) if method in CHAINED else side_infos
        for known in kinds:
            ways.append((method, known))
    for batch in images:
        if batch.indices[-1] < result["finished"]:
            continue
        stages = network.stages(batch.inputs.shape[1:])
        inputs = capture(network.module, _needed(stages, names), batch.inputs)
        if pictures is not None:
            _save(network, batch, batch.inputs, pictures, "original")
        for name in names:
            stage = stages.get(name)
            pooled = stage.with_region(region) if stage.pooling is None and region > 1 else stage
            code = pooled.encode(inputs[name])
            counted.setdefault(name, count_statements(pooled, code))
            for method in layer_methods:
                known = "none" if "no switches" in method else "switches"
                _decode_layer(
                    cells.setdefault((name, "layer", known, method), Cell()), method, pooled, code, inputs[name]
                )
            for method, known in ways if stage.pooling is not None else ():
                cell = cells.setdefault((name, "image", known, method), Cell())
                if method in CHAINED and not _is_chained(stages, name):
                    continue
                if method in CHAINED:
                    estimate = _decode_chain(cell, method, network, stages, name, batch.inputs, inputs)
                else:
                    features = LayerFunction(network.module, stage.output or stage.name, batch.inputs.shape[1:])
                    steps = (max_steps or {}).get(method)
                    options = {} if steps is None else {"max_steps": steps}
                    if method.startswith("gauss-newton"):
                        options["start_steps"] = outline_steps
                    estimate = _decode_image(cell, method, known, network, features, batch.inputs, options)
                if pictures is not None:
                    _save(network, batch, estimate, pictures, f"{name}-{method}-{known}")
        result["rows"] = [
            {"stage": name, "from": what, "side_info": side_info, "method": method, **cell.summary()}
            for (name, what, side_info, method), cell in cells.items()
            if cell.errors
        ]
        result["finished"] = batch.indices[-1] + 1
        save(result)
    return result


def _needed(stages: ConvBlocks, names: Sequence[str]) -> list[str]:
    chains = [chain_to_image(stages, name) for name in names if _is_chained(stages, name)]
    return list(dict.fromkeys([*names, *(stage.name for chain in chains for stage in chain)]))


def _is_chained(stages: ConvBlocks, name: str) -> bool:
    try:
        chain_to_image(stages, name)
    except UnconvError:
        return False
    return True


def _decode_layer(cell: Cell, method: str, stage: ConvBlock, code: Code, x: Tensor) -> None:
    if method == "min-norm" and isinstance(code.pooling, AveragePool) and stage.activation.name != "none":
        return  # averages of an activation are no linear equations
    start = time.perf_counter()
    estimate = LAYER_METHODS[method](stage, code, x)
    _note(cell, time.perf_counter() - start, estimate, x)


def _decode_image(
    cell: Cell,
    method: str,
    side_info: SideInfo,
    network: Network,
    features: LayerFunction,
    x: Tensor,
    options: dict[str, int],
) -> Tensor:
    known = features.record(x, side_info)
    target = features(x)
    curve: list[tuple[float, float]] = []
    start = time.perf_counter()

    def watch(estimate: Tensor) -> None:
        seconds = time.perf_counter() - start
        if not curve or seconds > STRIDE * curve[-1][0]:
            curve.append((round(seconds, 2), round(relative_norm(estimate - x, x).mean().item(), 5)))

    solution = IMAGE_METHODS[method](features, target, known, box=network.box, watch=watch, **options)
    seconds = time.perf_counter() - start
    _note(cell, seconds, solution.value, x, network)
    curve.append((round(seconds, 2), round(relative_norm(solution.value - x, x).mean().item(), 5)))
    cell.curves.append(curve)
    return solution.value


def _decode_chain(
    cell: Cell, method: str, network: Network, stages: ConvBlocks, name: str, x: Tensor, inputs: dict[str, Tensor]
) -> Tensor:
    way = InversionMethod("image", "network", method, "switches")
    found = invert_batch(network.module, stages, name, x, inputs, way, box=network.box)
    _note(cell, found.seconds * len(x), found.estimate, x, network)
    return found.estimate


def _note(cell: Cell, seconds: float, estimate: Tensor, x: Tensor, network: Network | None = None) -> None:
    cell.seconds += [round(seconds / len(x), 3)] * len(x)
    cell.errors += relative_norm(estimate - x, x).tolist()
    if network is not None:
        shown = network.preprocess.to_pixels(estimate, x).clamp(0, 1)
        cell.psnrs += quality(network.preprocess.to_pixels(x, x), shown)[0].tolist()


def _save(network: Network, batch: Batch, x: Tensor, folder: Path, name: str) -> None:
    for index, pixels in zip(batch.indices, network.preprocess.to_pixels(x, batch.inputs).clamp(0, 1), strict=True):
        save_image(pixels, folder / f"{index:04d}-{name}.png")


def main() -> None:
    """Run the table and write it, image by image; the same command goes on where it was stopped."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model")
    parser.add_argument("--weights")
    parser.add_argument("--size", type=int)
    parser.add_argument("--mean")
    parser.add_argument("--std")
    parser.add_argument("--images", type=Path, help="folder of images; the bundled photographs by default")
    parser.add_argument("--limit", type=int, default=10, help="number of images")
    parser.add_argument("--every", type=int, default=1, help="take every N-th image of the folder")
    parser.add_argument("--batch", type=int, default=1, help="images at a time")
    parser.add_argument("--stages", nargs="*", default=[], help="module paths; all that the weights reach by default")
    parser.add_argument("--layer-methods", nargs="*", default=list(LAYER_METHODS))
    parser.add_argument("--image-methods", nargs="*", default=[*IMAGE_METHODS, *CHAINED])
    parser.add_argument("--side-info", nargs="*", default=list(SIDE_INFO), choices=SIDE_INFO)
    parser.add_argument("--steps", nargs="*", default=[], metavar="METHOD=N", help="steps of decoders of the image")
    parser.add_argument("--outline", type=int, default=OUTLINE_STEPS, help="steps of the outline of Gauss-Newton")
    parser.add_argument("--pictures", type=Path, help="folder for pictures")
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    chosen = parser.parse_args()
    loaded = load_model(
        chosen.model, weights=chosen.weights, size=chosen.size, mean=chosen.mean, std=chosen.std, download=False
    )
    paths = sample_photographs() if chosen.images is None else find_images(chosen.images)
    paths = paths[:: chosen.every][: chosen.limit]
    images = ImageStream(paths, loaded.preprocess, chosen.batch)
    network = Network(loaded.module, loaded.preprocess)
    first = next(iter(images)).inputs
    names = [stage.name for stage in network.stages(first.shape[1:]) if _covered(loaded, stage.name)]
    here = {"weights", "images", "out", "pictures"}
    about = {
        "config": {key: value for key, value in vars(chosen).items() if key not in here},
        "images": [path.name for path in paths],
        "weights": {"sha256": loaded.weights.sha256},
        "environment": environment(),
    }
    done = json.loads(chosen.out.read_text()) if chosen.out.exists() else None
    if done is not None and {key: done[key] for key in about} != about:
        raise SystemExit(f"{chosen.out} holds results of other settings; remove it or give another --out")
    for folder in (chosen.out.parent, chosen.pictures):
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
    run(
        network,
        images,
        chosen.stages or names,
        layer_methods=chosen.layer_methods,
        image_methods=chosen.image_methods,
        side_infos=chosen.side_info,
        max_steps={method: int(steps) for method, steps in (part.split("=") for part in chosen.steps)},
        outline_steps=chosen.outline,
        done=done,
        save=lambda result: write_json(chosen.out, result | about),
        pictures=chosen.pictures,
    )


def _covered(loaded: Any, name: str) -> bool:
    try:
        check_covered(loaded, [name])
    except UnconvError:
        return False
    return True


if __name__ == "__main__":
    main()
