"""Is this image the only one? ``python experiments/uniqueness.py`` for the bundled network and a packaged photograph.

The radius in which no gate changes and the smallest singular value of layers at 32 pixels, how far the first ReLU layer
keeps images apart in larger balls, and what all that ``unconv unseen`` says of one layer takes at 224 pixels
(``--large``). Writes ``experiments/results/uniqueness-cifar-vgg.json``; what was done before stays.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import unconv
from unconv.certify.relu import relu_bracket
from unconv.evaluate.run_directory import environment
from unconv.images import read_image, sample_photographs
from unconv.io import write_json

FILE = Path(__file__).with_name("results") / "uniqueness-cifar-vgg.json"
LAYERS = ("features.2", "features.6", "features.9", "features.13", "features.16", "features.20")
WHOLE = LAYERS[:2]  # all singular values, in minutes; of the others the smallest is searched
RADII = (0.0, 0.3, 1.0, 3.0)


def of_layers(found: dict[str, Any]) -> None:
    """Radius and smallest singular value, layer by layer."""
    for layer in LAYERS:
        if layer not in found["layers"]:
            start = time.process_time()
            result = unconv.uniqueness("cifar-vgg", layer, size=32, whole=3072 if layer in WHOLE else 0)
            print(result, flush=True)
            found["layers"][layer] = result.document() | {"seconds": round(time.process_time() - start, 1)}
            write_json(FILE, found)


def of_relu(found: dict[str, Any]) -> None:
    """How far the first ReLU layer keeps apart images whose middle is near the photograph."""
    loaded = unconv.load_model("cifar-vgg", size=32)
    x = loaded.preprocess(read_image(sample_photographs()[0]))[None]
    block = unconv.find_conv_blocks(loaded.module, x).blocks[0]
    if "relu" in found:
        return
    found["relu"] = [asdict(relu_bracket(block, x, radius=radius)) for radius in RADII]
    print(*found["relu"], sep="\n", flush=True)
    write_json(FILE, found)


def of_a_large_image(found: dict[str, Any], layer: str) -> None:
    """Seconds of everything for one layer and one image at 224 pixels, on two threads."""
    options: dict[str, Any] = {"size": 224, "limit": 1}
    steps = {
        "leakage": lambda: unconv.leakage("cifar-vgg", layer, relative_sigma=0.1, passes=20, **options),
        "metamers": lambda: unconv.metamers("cifar-vgg", layer, passes=60, directions=4, **options),
        "uniqueness": lambda: unconv.uniqueness("cifar-vgg", layer, **options),
    }
    found["large"] = {"layer": layer, "seconds": {}, "wall": {}}
    for name, step in steps.items():
        start, wall = time.process_time(), time.perf_counter()
        print(step(), flush=True)
        found["large"]["seconds"][name] = round(time.process_time() - start, 1)
        found["large"]["wall"][name] = round(time.perf_counter() - wall, 1)
        write_json(FILE, found)


def main() -> None:
    """Do what is missing."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--large", metavar="LAYER", help="a layer at 224 pixels in place of the rest")
    options = parser.parse_args()
    torch.set_num_threads(2 if options.large else 1)
    found = json.loads(FILE.read_text()) if FILE.exists() else {"layers": {}}
    found["environment"] = environment()
    if options.large:
        of_a_large_image(found, options.large)
        return
    of_relu(found)
    of_layers(found)


if __name__ == "__main__":
    main()
