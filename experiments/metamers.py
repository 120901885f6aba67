"""Images that a layer does not tell apart: ``python experiments/metamers.py``.

For packaged photographs at 32 pixels and layers of the bundled network, ``unconv.metamers`` searches an image at a PSNR
of less than 15 dB whose features agree to 1e-3. Writes ``experiments/results/metamers-cifar-vgg.json`` and
``docs/metamers.png``; pairs found before stay.
"""

from __future__ import annotations

import argparse
import json
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


def main() -> None:
    """Search layer by layer, then draw all pairs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--layers", nargs="+", default=["features.12", "features.17", "features.20"])
    options = parser.parse_args()
    torch.set_num_threads(1)
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
