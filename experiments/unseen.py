"""What layers cannot see, and what no attacker can do: ``python experiments/unseen.py --images DIR``.

Writes ``experiments/results/unseen-cifar-vgg.json``; layers done before stay. ``DIR`` is CIFAR-10 as folders
``train/CLASS`` and ``test/CLASS``: the images are one of each of eight classes, the reference images ten of each class
of the training set. Noise is a tenth of the features' root mean square.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch

import unconv
from unconv.io import write_json

RESULTS = Path(__file__).with_name("results")
NOISE = 0.1
LAYERS = [f"features.{n}" for n in range(21)] + ["classifier"]


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
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--layers", nargs="+")
    parser.add_argument("--limit", type=int, default=8)
    parser.add_argument("--passes", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(1)
    keywords: dict[str, Any] = {"limit": options.limit, "passes": options.passes, "relative_sigma": NOISE, "size": 32}
    with tempfile.TemporaryDirectory() as folder:
        images = of_classes(options.images / "test", 1, 8)
        references = linked(of_classes(options.images / "train", 10, 10), Path(folder))
        file = RESULTS / "unseen-cifar-vgg.json"
        # layers done before stay, those named are done again
        found = json.loads(file.read_text())["leakage"] if file.exists() else []
        for layer in options.layers or [name for name in LAYERS if name not in {row["layer"] for row in found}]:
            found = [row for row in found if row["layer"] != layer]
            result = unconv.leakage("cifar-vgg", layer, list(map(str, images)), reference_images=references, **keywords)
            print(result, f"gap {result.gap_db:.2f} dB", flush=True)
            found = sorted([*found, result.document()], key=lambda row: LAYERS.index(row["layer"]))
            environment = {"torch": torch.__version__, "threads": 1}
            write_json(
                file,
                {"leakage": found, "config": keywords, "images": [p.name for p in images], "environment": environment},
            )


if __name__ == "__main__":
    main()
