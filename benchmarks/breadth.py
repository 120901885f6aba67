"""Every classification network of torchvision, and a sample of timm's: three layers inverted at a small size.

``python benchmarks/breadth.py`` fills ``benchmarks/breadth.json`` model by model, with random weights, so that it shows
what the tool takes, not how well a trained network is inverted; run again, it goes on where it was stopped.
``python docs/fill_breadth.py`` makes the page from it.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torchvision.transforms.v2 import functional as TF

from unconv.errors import UnconvError
from unconv.evaluate.evaluation import Evaluation, Plan
from unconv.evaluate.linear_fit import fit_linear
from unconv.evaluate.network import open_network
from unconv.evaluate.reconstruction import Task
from unconv.evaluate.run_directory import InMemoryRun, environment
from unconv.inversion.reference_images import reference_images
from unconv.io import write_json
from unconv.model_sources import BUNDLED, TIMM, model_names
from unconv.tracing import Layers

Row = dict[str, Any]

SIZE = 64
# a forward pass needs more pixels here, or positions are learned for one size only
SIZES: dict[str, int | None] = {"inception_v3": 96, "maxvit_t": 224, "vit_h_14": 70}
SIZES |= {f"{TIMM}{name}": 224 for name in ("coat_lite_tiny", "coatnet_nano_rw_224", "convit_tiny")}
SIZES |= {f"{TIMM}{name}": 224 for name in ("visformer_tiny", "vit_tiny_patch16_224")}
SIZES |= {f"{TIMM}botnet26t_256": 256, f"{TIMM}inception_resnet_v2": 128, f"{TIMM}inception_v4": 128}
SIZES[f"{TIMM}dm_nfnet_f0"] = None  # squashes images to its own size
PASSES = 4  # of Gauss-Newton
REFERENCES = 8  # images that linear decoders are fitted to
SAMPLE = """
botnet26t_256 coat_lite_tiny coatnet_nano_rw_224 convformer_s18 convit_tiny convmixer_768_32 convnext_atto
convnextv2_atto cspresnet50 darknet53 densenet121 dla34 dm_nfnet_f0 dpn68 edgenext_xx_small efficientformer_l1
efficientnet_lite0 fastvit_t8 fbnetc_100 focalnet_tiny_srf gernet_s ghostnet_100 hardcorenas_a hgnet_tiny hgnetv2_b0
hrnet_w18_small inception_next_atto inception_resnet_v2 inception_v4 lambda_resnet26t lcnet_050 levit_128s mixnet_s
mobilenetv3_small_050 mobilenetv4_conv_small mobileone_s0 mobilevit_xxs nf_resnet50 poolformer_s12 pvt_v2_b0
regnetz_b16 repghostnet_050 repvgg_a0 repvit_m0_9 res2net50_26w_4s resnest14d resnetv2_50 rexnet_100 selecsls42
seresnet18 skresnet18 starnet_s1 tf_efficientnetv2_b0 tinynet_e tresnet_m vgg11_bn visformer_tiny vit_tiny_patch16_224
vovnet39a xception41
"""


def names() -> list[str]:
    """Return the models to try: torchvision's by name, timm's as ``timm/NAME`` where timm is installed."""
    timm = [TIMM + name for name in SAMPLE.split()] if find_spec("timm") else []
    return [name for name in model_names() if name != BUNDLED] + timm


def references(size: int, folder: Path) -> Path:
    """Return a folder of reference images of one size, drawn the first time."""
    path = folder / f"references-{size}"
    if not path.exists():
        path.mkdir(parents=True)
        drawn = reference_images((3, size, size), synthetic=REFERENCES // 2, photographs=REFERENCES // 2)
        for number, image in enumerate(drawn.images):
            TF.to_pil_image(image).save(path / f"{number:02d}.png")
    return path


def three_layers(layers: Layers) -> dict[str, str]:
    """Return the stem, the last feature map (the output of the last block), and the pooled embedding behind it."""
    vector = [n for n, layer in enumerate(layers) if layer.shape[1:] in {(), (1, 1)}]
    maps = [n for n, layer in enumerate(layers) if len(layer.shape) > 1 and n not in vector]
    # a squeeze-and-excitation holds vectors too, but maps follow
    behind = [n for n in vector if n > max(maps)] or [len(layers) - 1]
    chosen = {"first": 0, "last": max(maps), "embedding": behind[0]}
    return {role: layers.names[n] for role, n in chosen.items()}


def attempt(model: str, folder: Path) -> Row:
    """Invert three layers of one model for one packaged photograph, linearly; the last map by Gauss-Newton too.

    Returns:
        How many layers and conv blocks there are; convolutions that are none, counted by reason (``skipped``); the
        largest difference of a block from the network's own output; per role of ``three_layers`` the layer and its
        relative errors by method; how often there was none, by reason; CPU seconds. ``failed`` where it stopped.
    """
    start = time.process_time()
    size = SIZES.get(model, SIZE)
    row: Row = {"model": model, "size": size}
    try:
        opened = open_network(model, size=size, limit=1)
        network, x = opened.network, opened.example()
        row["size"] = x.shape[-1]
        layers, blocks = network.layers(x), network.conv_blocks(x)
        roles = three_layers(layers)
        chosen = list(dict.fromkeys(roles.values()))
        fit_linear(network, opened.images, x, chosen, reference_folder=references(x.shape[-1], folder))
        tasks = [Task(layer, method="linear") for layer in chosen]
        if layers.get(roles["last"]).gradient:
            tasks.append(Task(roles["last"], method="gauss-newton"))
        evaluation = Evaluation(network, opened.images, Plan(tuple(tasks), PASSES), InMemoryRun())
        evaluation.go()
        found = list(evaluation.rows())
    except UnconvError as refused:
        return row | {"failed": str(refused)}
    except Exception as broken:  # what a table of failures is for
        traceback.print_exc()
        return row | {"failed": f"unexpected {type(broken).__name__}: {broken}"}
    inverted = {
        role: {"layer": name} | {r["method"]: r["relative_error"] for r in found if r["layer"] == name}
        for role, name in roles.items()
    }
    furthest = max(blocks, key=lambda block: block.difference or 0.0, default=None)
    return row | {
        "layers": len(layers),
        "blocks": len(blocks),
        "skipped": dict(Counter(skipped.reason for skipped in blocks.skipped)),
        "difference": None if furthest is None else {"block": furthest.name, "relative": furthest.difference},
        "inverted": inverted,
        "without_result": dict(Counter(r["status"] for r in found if r["relative_error"] is None)),
        "seconds": round(time.process_time() - start, 1),
    }


def run(models: Iterable[str], file: Path, attempt: Callable[[str], Row], about: Callable[[list[Row]], Row]) -> None:
    """Try models, and keep each row as soon as it is there; models that stand in the file are not tried again."""
    rows = json.loads(file.read_text())["rows"] if file.exists() else []
    done = {row["model"] for row in rows}
    for model in models:
        if model not in done:
            rows.append(attempt(model))
            write_json(file, about(rows) | {"rows": rows, "environment": environment()})
            print(rows[-1], flush=True)
            gc.collect()


def chosen(title: str, results: Path) -> tuple[list[str], Path]:
    """Return what the command line names: models, by default all, and a file."""
    parser = argparse.ArgumentParser(description=title)
    parser.add_argument("models", nargs="*", help="names as unconv report takes them; all by default")
    parser.add_argument("--out", type=Path, default=results)
    options = parser.parse_args()
    return options.models or names(), options.out


def main() -> None:
    """Run what the command line names."""
    models, file = chosen((__doc__ or "").splitlines()[0], Path(__file__).with_suffix(".json"))
    folder = file.parent / f"{file.stem}-references"
    run(models, file, lambda model: attempt(model, folder), lambda rows: {"command": "python benchmarks/breadth.py"})


if __name__ == "__main__":
    main()
