"""Linear decoders and their refinement on VGG-19: ``python experiments/linear_inversion.py --images DIR --out FILE``.

Blocks 1 to 3 with ImageNet weights (``$UNCONV_DATA/vgg19-blocks1-3.safetensors``), 224x224 pixels, nothing but the
features of a pooling known. Linear decoders are fitted to synthetic images and packaged photographs; refinement starts
from their estimates. Relative errors are on the mean-subtracted image, against passes (one forward and one backward
pass of one image).
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import vgg19

from unconv.images import find_images, read_image
from unconv.inversion.calibration import calibrate
from unconv.inversion.frozen_network import LayerFunction
from unconv.inversion.gauss_newton import GaussNewtonConfig
from unconv.inversion.invert import invert_features
from unconv.inversion.linear import LinearDecoder, fit_linear_decoders
from unconv.inversion.reference_images import PHOTOGRAPHS, SYNTHETIC, reference_images
from unconv.inversion.residuals import explained_variance
from unconv.io import write_json
from unconv.linalg import relative_norm
from unconv.stationary import StationaryPreconditioner

SHAPE = (3, 224, 224)
STRIDES = {"pool1": 2, "pool2": 4, "pool3": 8}
DEPTHS = {"pool1": 5, "pool2": 10, "pool3": 19}
MEAN = torch.tensor([123.68, 116.779, 103.939]).reshape(1, 3, 1, 1)
MARKS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 30, 40, 60, 80, 100, 120, 150)


def network() -> nn.Sequential:
    """The first three blocks with their weights."""
    net = vgg19().features[:19]
    weights = load_file(Path(os.environ["UNCONV_DATA"]) / "vgg19-blocks1-3.safetensors")
    net.load_state_dict({name.removeprefix("features."): value for name, value in weights.items()})
    for module in net:
        if isinstance(module, nn.ReLU):
            module.inplace = False
    return net.eval().requires_grad_(False).to(memory_format=torch.channels_last)


def test_images(folder: Path, count: int) -> Tensor:
    """The first images of a folder, their middle 224x224 pixels."""
    images = []
    for path in find_images([folder])[:count]:
        pixels = torch.from_numpy(np.asarray(read_image(path), dtype="float32").copy())
        top, left = ((n - 224) // 2 for n in pixels.shape[:2])
        images.append(pixels.permute(2, 0, 1)[:, top : top + 224, left : left + 224])
    return torch.stack(images) - MEAN


def refined_errors(
    function: LayerFunction, decoder: LinearDecoder, x: Tensor, side_info: Any, passes: int, fitted: Any
) -> dict[str, Any]:
    """Relative errors of one image after each number of passes in ``MARKS``, and the seconds that had passed."""
    assert decoder.refinement is not None
    errors, begun = [relative_norm(decoder(function(x), SHAPE) - x, x).item()], time.process_time()
    seconds = [0.0]

    def seen(estimate: Tensor) -> None:
        errors.append(relative_norm(estimate - x, x).item())
        seconds.append(time.process_time() - begun)

    found = invert_features(
        function,
        function(x),
        function.record(x, side_info),
        passes=passes,
        decoder=decoder,
        preconditioner=fitted,
        config=decoder.refinement.applied(GaussNewtonConfig(), side_info),
        progress=seen,
    )
    marks = [n for n in MARKS if n <= passes]
    ends = [min(n, len(errors)) - 1 for n in marks]  # a solver that stopped early stays where it is
    reached = {"errors": [errors[end] for end in ends], "seconds": [seconds[end] for end in ends]}
    return reached | {"marks": marks, "passes": found.passes[0], "status": found.status[0]}


def main() -> None:
    """Fit, refine, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=10)
    parser.add_argument("--layers", nargs="+", default=list(STRIDES), choices=list(STRIDES))
    parser.add_argument("--passes", type=int, default=12, help="passes per image; 0 for the linear decoders alone")
    parser.add_argument("--side-info", nargs="+", default=["none"], choices=["none", "switches", "gates"])
    parser.add_argument("--synthetic", type=int, default=SYNTHETIC)
    parser.add_argument("--photographs", type=int, default=PHOTOGRAPHS)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    net, x = network(), test_images(options.images, options.count)

    def capture(batch: Tensor) -> dict[str, Tensor]:
        found, y = {}, batch.contiguous(memory_format=torch.channels_last)
        for depth, module in enumerate(net, 1):
            y = module(y)
            found |= {name: y for name, at in DEPTHS.items() if at == depth}
        return found

    clock = time.process_time()
    references = reference_images(
        SHAPE, synthetic=options.synthetic, photographs=options.photographs, exclude=x.clone()
    )
    inputs = references.images * 255 - MEAN
    drawn = time.process_time() - clock
    decoders = fit_linear_decoders(capture, inputs.split(4), options.layers)
    fitted = time.process_time() - clock - drawn
    print(f"references {drawn:.1f} s, fit {fitted:.1f} s, {references.dropped} photographs dropped")
    result: dict[str, Any] = {"references_s": drawn, "fit_s": fitted, "count": len(x), "layers": {}}
    result["options"] = {name: str(value) for name, value in vars(options).items() if name not in {"images", "out"}}
    result["options"]["images"] = options.images.name
    result["environment"] = {"torch": torch.__version__, "load": os.getloadavg()}
    for layer in options.layers:
        decoder = decoders[layer]
        estimates = torch.cat([decoder(capture(batch)[layer], SHAPE) for batch in x.split(1)])
        linear = relative_norm(estimates - x, x)
        explained = explained_variance(x, estimates)
        assert decoder.error_model is not None
        calibration = decoder.error_model.calibration(x, estimates)
        row: dict[str, Any] = {
            "linear": linear.tolist(),
            "ridge": decoder.weights.ridge,
            "luminance": explained.luminance.tolist(),
            "colour": explained.colour.tolist(),
            "expected_squared_error": calibration[0].tolist(),
            "squared_error": calibration[1].tolist(),
        }
        print(f"{layer}: linear {linear.mean():.4f}, ridge {decoder.weights.ridge:.0e}")
        if options.passes:
            clock = time.process_time()
            function = LayerFunction(net, str(DEPTHS[layer] - 1), SHAPE)
            unseen = decoder.unseen()
            assert unseen is not None
            examples, starts, residuals = unseen
            fitted = StationaryPreconditioner.of(function, inputs, residuals, (STRIDES[layer],) * 2)
            row |= {"setup_s": time.process_time() - clock, "refined": {}}
            clock = time.process_time()
            found = calibrate(function, fitted, examples, starts, options.side_info, most=options.passes)
            decoder = replace(decoder, refinement=found)
            row |= {"calibration_s": time.process_time() - clock, "calibration": asdict(found), "chosen": {}}
            print(f"{layer}: calibrated in {row['calibration_s']:.1f} s, noise {found.noise:g}", flush=True)
            for kind in options.side_info:
                clock = time.process_time()
                tried = [refined_errors(function, decoder, v[None], kind, options.passes, fitted) for v in x]
                row["refined"][kind], row["chosen"][kind] = tried, found.best(kind, options.passes)
                row[f"refine_s_per_image, {kind}"] = seconds = (time.process_time() - clock) / len(x)
                mean = torch.tensor([one["errors"] for one in tried]).mean(0).tolist()
                shown = " ".join(f"{n}:{error:.4f}" for n, error in zip(tried[0]["marks"], mean, strict=True))
                print(f"{layer}: setup {row['setup_s']:.1f} s, {seconds:.1f} s per image, {kind} {shown}", flush=True)
                print(f"{layer}: {row['chosen'][kind]} passes chosen", flush=True)
        result["layers"][layer] = row
        write_json(options.out, result)


if __name__ == "__main__":
    main()
