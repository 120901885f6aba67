"""A conv block's own input from its code, by every solver: error and time.

``python experiments/decoding.py MODEL --images FOLDER --out FILE`` writes rows as JSON after every image; the same
command goes on where it was stopped. Images are inverted by ``unconv report`` and ``linear_inversion.py``.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from unconv.conv_block import ConvBlock
from unconv.decode.constraints import Intervals, constraints
from unconv.decode.convex import convex
from unconv.decode.linear_system import equations, min_norm
from unconv.decode.transpose import transpose
from unconv.evaluate.block_reconstruction import coded_block
from unconv.evaluate.network import CapturedStream, Opened, open_network
from unconv.evaluate.run_directory import environment
from unconv.images import find_images, sample_photographs
from unconv.io import write_json
from unconv.linalg import norms, relative_norm
from unconv.sparsity import Code

REGION = 2  # side of the pooling imposed on a block without one
# a block's own input, from its code, with the switches known
BLOCK_METHODS: dict[str, Callable[[ConvBlock, Code, Tensor], Tensor]] = {
    "iht": lambda block, code, x: transpose(block.operator, code, norm=norms(x)),
    "min-norm": lambda block, code, _: min_norm(equations(block, code)).value,
    "convex": lambda block, code, _: convex(block, code, prior=None).value,
    "convex, smooth": lambda block, code, _: convex(block, code, prior="smooth").value,
    "convex, gaussian": lambda block, code, _: convex(block, code, prior="gaussian", max_steps=400).value,
}


def run(opened: Opened, chosen: argparse.Namespace, result: dict[str, Any], save: Callable[[], None]) -> None:
    """Decode every image from every block in every way, and add to ``result["rows"]``."""
    blocks = opened.blocks(next(iter(opened.images)).inputs, chosen.blocks or None)
    names = [block.name for block in blocks]
    rows = {(row["block"], row["method"]): row for row in result["rows"]}
    for captured in CapturedStream(opened.network, opened.images, inputs=names):
        (index,) = captured.batch.indices
        if index < result["finished"]:
            continue
        for name in names:
            block, x = coded_block(captured.blocks.get(name), "network", REGION), captured.inputs[name]
            code = block.encode(x)
            if index == 0:
                said = constraints(block, code)
                assert isinstance(said, Intervals)  # an average is none
                told = int((said.lower == said.upper).sum())
                bounded = int(said.lower.isfinite().sum() + said.upper.isfinite().sum()) - 2 * told
                counts = {"unknowns": x[0].numel(), "equations": told, "inequalities": bounded}
                result["blocks"] = result.get("blocks", {}) | {name: counts}
            for method in chosen.block_methods:
                start = time.perf_counter()
                estimate = BLOCK_METHODS[method](block, code, x)
                seconds = time.perf_counter() - start
                row = rows.setdefault((name, method), {"block": name, "method": method, "errors": [], "times": []})
                row["errors"].append(round(relative_norm(estimate - x, x).item(), 6))
                row["times"].append(round(seconds, 3))
                row["relative_error"] = sum(row["errors"]) / len(row["errors"])
                row["seconds"] = sum(row["times"]) / len(row["times"])
        result |= {"rows": list(rows.values()), "finished": index + 1}
        save()


def main() -> None:
    """Run the study and write it, image by image."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--weights")
    parser.add_argument("--size", type=int)
    parser.add_argument("--mean")
    parser.add_argument("--std")
    parser.add_argument("--images", type=Path, help="folder of images; scikit-image's photographs by default")
    parser.add_argument("--limit", type=int, default=10, help="number of images")
    parser.add_argument("--every", type=int, default=1, help="take every N-th image of the folder")
    parser.add_argument("--blocks", nargs="*", default=[], help="module paths; all that the weights reach by default")
    parser.add_argument("--block-methods", nargs="*", default=list(BLOCK_METHODS), choices=BLOCK_METHODS)
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    chosen = parser.parse_args()
    paths = sample_photographs() if chosen.images is None else find_images(chosen.images)
    paths = paths[:: chosen.every][: chosen.limit]
    options = {name: getattr(chosen, name) for name in ("weights", "size", "mean", "std")}
    opened = open_network(chosen.model, paths, batch=1, **options)
    files = {"weights", "images", "out"}
    about = {
        "config": {key: value for key, value in vars(chosen).items() if key not in files},
        "images": [path.name for path in paths],
        "weights": opened.loaded.weights.sha256,
        "command": shlex.join(["python", *sys.argv]),
        "environment": environment(),
    }
    result = {"name": "decoding", "finished": 0, "rows": []}
    if chosen.out.exists():
        result = json.loads(chosen.out.read_text())
        if {key: result[key] for key in about} != about:
            raise SystemExit(f"{chosen.out} holds results of other settings; remove it or give another --out")
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    run(opened, chosen, result, lambda: write_json(chosen.out, result | about))


if __name__ == "__main__":
    main()
