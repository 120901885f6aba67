"""What layers cannot see, and what no attacker can do: ``python experiments/unseen.py --images DIR``.

For the bundled network, ``DIR`` is CIFAR-10 as folders ``train/CLASS`` and ``test/CLASS``: the images are one of each
of eight classes, the reference images ten of each class of the training set. ``--model vgg19`` is VGG-19's blocks 1 to
3 with ImageNet weights (``$UNCONV_DATA/vgg19-blocks1-3.safetensors``) at 112 pixels, ``DIR`` a folder of photographs
and ``--references`` another one, of which the first 64 count. Noise is a tenth of the features' root mean square.
Writes ``experiments/results/unseen-MODEL.json``; layers done before stay.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch

import unconv
from unconv.images import find_images
from unconv.io import write_json

RESULTS = Path(__file__).with_name("results")
NOISE = 0.1
LAYERS = {
    "cifar-vgg": [f"features.{n}" for n in range(21)] + ["classifier"],
    "vgg19": [f"features.{n}" for n in (0, 1, 3, 4, 6, 8, 9, 11, 13, 15, 17, 18)],
}
SETTINGS: dict[str, dict[str, Any]] = {
    "cifar-vgg": {"limit": 8, "passes": 20, "size": 32},
    "vgg19": {"limit": 4, "passes": 20, "size": 112, "mean": [123.68, 116.779, 103.939], "std": [1.0]},
}
REFERENCES = 64  # photographs


def of_classes(folder: Path, count: int, classes: int) -> list[Path]:
    """The first images of each of the first classes of a folder."""
    return [path for one in sorted(folder.iterdir())[:classes] for path in sorted(one.iterdir())[:count]]


def linked(paths: list[Path], folder: Path) -> Path:
    """A folder of links to images."""
    for number, path in enumerate(paths):
        (folder / f"{number:05d}{path.suffix}").symlink_to(path.resolve())
    return folder


def main() -> None:
    """Bound the leakage of every layer, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=LAYERS, default="cifar-vgg")
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--references", type=Path)
    parser.add_argument("--layers", nargs="+")
    parser.add_argument("--limit", type=int, help="images of the named layers, where not those of the others")
    options = parser.parse_args()
    torch.set_num_threads(1)
    layers = LAYERS[options.model]
    config: dict[str, Any] = {**SETTINGS[options.model], "relative_sigma": NOISE}
    keywords: dict[str, Any] = config | ({} if options.limit is None else {"limit": options.limit})
    if options.model == "vgg19":
        keywords["weights"] = os.path.join(os.environ["UNCONV_DATA"], "vgg19-blocks1-3.safetensors")
        images = find_images([options.images])[: keywords["limit"]]
        pool = find_images([options.references])[:REFERENCES]
    else:
        images = of_classes(options.images / "test", keywords["limit"] // 8, 8)
        pool = of_classes(options.images / "train", 10, 10)
    with tempfile.TemporaryDirectory() as folder:
        references = linked(pool, Path(folder))
        file = RESULTS / f"unseen-{options.model}.json"
        # layers done before stay, those named are done again
        found = json.loads(file.read_text())["leakage"] if file.exists() else []
        for layer in options.layers or [name for name in layers if name not in {row["layer"] for row in found}]:
            found = [row for row in found if row["layer"] != layer]
            result = unconv.leakage(
                options.model, layer, list(map(str, images)), reference_images=references, **keywords
            )
            print(result, f"gap {result.gap_db} dB", flush=True)
            found = sorted([*found, result.document()], key=lambda row: layers.index(row["layer"]))
            environment = {"torch": torch.__version__, "threads": 1}
            write_json(file, {"leakage": found, "config": config, "environment": environment})


if __name__ == "__main__":
    main()
