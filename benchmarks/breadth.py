"""Every classification network of torchvision, and a sample of timm's, through ``unconv report`` at a small size.

``python benchmarks/breadth.py`` fills ``benchmarks/breadth.json`` model by model, with random weights, so that it shows
what the tool takes, not how well a trained network is inverted; run again, it goes on where it was stopped.
``python docs/fill_breadth.py`` makes the page from it.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import unconv
from unconv.errors import UnconvError
from unconv.evaluate.run_directory import environment
from unconv.io import write_json
from unconv.model_sources import BUNDLED, model_names

RESULTS = Path(__file__).with_suffix(".json")
SIZE = 64
# a forward pass needs more pixels here, or positions are learned for one size only
SIZES = {"inception_v3": 96, "maxvit_t": 224, "vit_h_14": 70}
SIZES |= {f"timm.models:{name}": 224 for name in ("coat_lite_tiny", "coatnet_nano_rw_224", "convit_tiny")}
SIZES |= {f"timm.models:{name}": 224 for name in ("visformer_tiny", "vit_tiny_patch16_224")}
SIZES |= {"timm.models:botnet26t_256": 256, "timm.models:inception_resnet_v2": 128, "timm.models:inception_v4": 128}
PASSES = 4
PREFIX = "timm.models:"
TIMM = (
    "botnet26t_256",
    "coat_lite_tiny",
    "coatnet_nano_rw_224",
    "convformer_s18",
    "convit_tiny",
    "convmixer_768_32",
    "convnext_atto",
    "convnextv2_atto",
    "cspresnet50",
    "darknet53",
    "densenet121",
    "dla34",
    "dm_nfnet_f0",
    "dpn68",
    "edgenext_xx_small",
    "efficientformer_l1",
    "efficientnet_lite0",
    "fastvit_t8",
    "fbnetc_100",
    "focalnet_tiny_srf",
    "gernet_s",
    "ghostnet_100",
    "hardcorenas_a",
    "hgnet_tiny",
    "hgnetv2_b0",
    "hrnet_w18_small",
    "inception_next_atto",
    "inception_resnet_v2",
    "inception_v4",
    "lambda_resnet26t",
    "lcnet_050",
    "levit_128s",
    "mixnet_s",
    "mobilenetv3_small_050",
    "mobilenetv4_conv_small",
    "mobileone_s0",
    "mobilevit_xxs",
    "nf_resnet50",
    "poolformer_s12",
    "pvt_v2_b0",
    "regnetz_b16",
    "repghostnet_050",
    "repvgg_a0",
    "repvit_m0_9",
    "res2net50_26w_4s",
    "resnest14d",
    "resnetv2_50",
    "rexnet_100",
    "selecsls42",
    "seresnet18",
    "skresnet18",
    "starnet_s1",
    "tf_efficientnetv2_b0",
    "tinynet_e",
    "tresnet_m",
    "vgg11_bn",
    "visformer_tiny",
    "vit_tiny_patch16_224",
    "vovnet39a",
    "xception41",
)


def names() -> list[str]:
    """The models to try.

    Returns:
        torchvision's by name, timm's as ``timm.models:NAME`` where timm is installed.
    """
    timm = [PREFIX + name for name in TIMM] if find_spec("timm") else []
    return [name for name in model_names() if name != BUNDLED] + timm


def attempt(model: str, folder: Path) -> dict[str, Any]:
    """One model on a bundled photograph: its layers listed, a small report of two, and three layers inverted.

    Solvers stop after a few passes, for this is to show that every layer is inverted or says why it is not.

    Args:
        model: As the command line takes it.
        folder: Where the run may be written.

    Returns:
        What came of it: ``{"model", "size", "stages", "skipped", "first", "error", "without_result", "seconds"}``: the
        number of conv blocks, what was left out counted by reason, the last conv block's output and the relative error
        of the image from the first layer, how often a layer gave no result, by reason, and seconds of CPU time;
        ``{"model", "size", "failed"}`` where it stopped.
    """
    start = time.process_time()
    size = SIZES.get(model, SIZE)
    row: dict[str, Any] = {"model": model, "size": size}
    try:
        layers = unconv.layers(model, size=size)
        names = [layer.name for layer in layers.layers]
        blocks = [layer.name for layer in layers.layers if layer.block]
        last = blocks[-1] if blocks else names[-1]
        # the pooled embedding: the last layer that has no spatial axes left but is not the output
        embedding = next((x.name for x in reversed(layers.layers[:-1]) if x.shape[1:] in {(), (1, 1)}), names[-1])
        chosen = list(dict.fromkeys((names[0], last, embedding)))
        unconv.report(model, out=folder, layers=chosen[:2], size=size, limit=1, samples=2, passes=PASSES)
        results = {name: unconv.invert(model, name, size=size, limit=1, passes=PASSES) for name in chosen}
    except UnconvError as refused:
        return row | {"failed": str(refused)}
    except Exception as broken:  # what a table of failures is for
        traceback.print_exc()
        return row | {"failed": f"unexpected {type(broken).__name__}: {broken}"}
    errors = {name: result.relative_error[0].item() for name, result in results.items()}
    failed = [result.status[0] for name, result in results.items() if not math.isfinite(errors[name])]
    return row | {
        "stages": len(blocks),
        "skipped": dict(Counter(skipped.reason for skipped in layers.skipped)),
        "first": last,
        "error": errors[names[0]],
        "errors": errors,
        "without_result": dict(Counter(failed)),
        "seconds": round(time.process_time() - start, 1),
    }


def run(models: Iterable[str], file: Path) -> None:
    """Try models, and keep each row as soon as it is there.

    Args:
        models: Which.
        file: Where the rows go; models that stand there already are not tried again.
    """
    document = json.loads(file.read_text()) if file.exists() else {"rows": []}
    done = {row["model"] for row in document["rows"]}
    for model in models:
        if model in done:
            continue
        with tempfile.TemporaryDirectory() as folder:
            row = attempt(model, Path(folder) / "run")
        document["rows"].append(row)
        write_json(file, document | {"command": "python benchmarks/breadth.py", "environment": environment()})
        print(row, flush=True)


def main() -> None:
    """Run what the command line names; every model by default."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("models", nargs="*", help="names as unconv report takes them; all by default")
    parser.add_argument("--out", type=Path, default=RESULTS)
    chosen = parser.parse_args()
    run(chosen.models or names(), chosen.out)


if __name__ == "__main__":
    main()
