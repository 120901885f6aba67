"""Images that a layer does not tell apart: ``python experiments/metamers.py``.

For packaged photographs at 32 pixels and layers of the bundled network, ``unconv.metamers`` searches an image at a PSNR
of less than 15 dB whose features agree to 1e-3. Writes ``experiments/results/metamers-cifar-vgg.json`` and
``docs/metamers.png``; pairs found before stay. With ``--vgg19`` instead the least visible direction of the last layers
of VGG-19's blocks 1 to 3 (``$UNCONV_DATA/vgg19-blocks1-3.safetensors``) at 112 pixels, in ``docs/hidden-vgg19.png``.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from PIL import Image

import unconv
from unconv.evaluate.run_directory import environment
from unconv.images import save_image
from unconv.io import write_json

ROOT = Path(__file__).parents[1]
FILE = ROOT / "experiments" / "results" / "metamers-cifar-vgg.json"
PSNR, TOLERANCE, PASSES, SIZE = 14.95, 1e-3, 3000, 32


def hidden_from_vgg19() -> None:
    """Draw, for three layers, the change of a photograph that the layer hardly sees."""
    file = FILE.with_name("hidden-vgg19.json")
    weights = os.path.join(os.environ["UNCONV_DATA"], "vgg19-blocks1-3.safetensors")
    config = {"size": 112, "mean": [123.68, 116.779, 103.939], "std": [1.0], "passes": 2, "directions": 4}
    layers = ("features.4", "features.9", "features.18")
    figure, axes = plt.subplots(1, len(layers) + 1, figsize=(2.6 * (len(layers) + 1), 3.1), layout="constrained")
    rows = []
    for axis, layer in zip(axes[1:], layers, strict=True):
        start = time.process_time()
        result = unconv.metamers("vgg19", layer, weights=weights, **config)  # pyright: ignore
        seen = result.visibility[0].item()
        rows.append({"layer": layer, "visibility": seen, "seconds": round(time.process_time() - start, 1)})
        print(rows[-1], flush=True)
        direction = result.directions[0]
        picture = 0.5 + 0.5 * direction / direction.abs().max()
        axes[0].imshow(result.image.clamp(0, 1).permute(1, 2, 0))
        axis.imshow(picture.permute(1, 2, 0), interpolation="nearest")
        axis.set_title(f"{layer}: seen {seen:.1e} times\nas well as others", fontsize=9)
    axes[0].set_title("the image", fontsize=9)
    for axis in axes:
        axis.set_xticks([])
        axis.set_yticks([])
    write_json(file, {"directions": rows, "config": config, "environment": environment()})
    figure.savefig(ROOT / "docs" / "hidden-vgg19.png", dpi=100)


def main() -> None:
    """Search layer by layer, then draw all pairs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--vgg19", action="store_true")
    parser.add_argument("--layers", nargs="+", default=["features.12", "features.17", "features.20"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.vgg19:
        hidden_from_vgg19()
        return
    folder = FILE.with_suffix("")
    folder.mkdir(exist_ok=True)
    found = json.loads(FILE.read_text())["metamers"] if FILE.exists() else []
    for layer in options.layers:
        if layer in {row["layer"] for row in found}:
            continue
        start = time.process_time()
        result = unconv.metamers("cifar-vgg", layer, psnr=PSNR, tolerance=TOLERANCE, passes=PASSES, size=SIZE)
        print(result, flush=True)
        for name, image in (("image", result.image), ("metamer", result.metamer)):
            save_image(image, folder / f"{layer}-{name}.png")
        found.append(result.document() | {"seconds": round(time.process_time() - start, 1)})
        config = {"model": "cifar-vgg", "psnr": PSNR, "tolerance": TOLERANCE, "passes": PASSES, "size": SIZE}
        write_json(FILE, {"metamers": found, "config": config, "environment": environment()})
    figure, axes = plt.subplots(2, len(found), figsize=(2.6 * len(found), 5.6), squeeze=False, layout="constrained")
    for column, row in zip(axes.T, found, strict=True):
        for axis, name in zip(column, ("image", "metamer"), strict=True):
            axis.imshow(Image.open(folder / f"{row['layer']}-{name}.png"), interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
        column[0].set_title(f"{row['layer']}: the image", fontsize=9)
        column[1].set_title(
            f"{row['psnr']:.1f} dB away, features\ndiffer by {row['relative_difference']:.1e}", fontsize=9
        )
    figure.savefig(ROOT / "docs" / "metamers.png", dpi=110)


if __name__ == "__main__":
    main()
