"""``unconv invert``: the image, or a conv block's own input, back from what layers give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from unconv.api_invert import checked_task, invert, linear
from unconv.api_options import ModelOptions
from unconv.commands import format_table, print_skipped
from unconv.errors import UnconvError, UsageError
from unconv.evaluate.linear_fit import REMEMBERED, find_fitted
from unconv.evaluate.reconstruction import FROM_LINEAR
from unconv.options import Invert
from unconv.results import COLUMNS

OF_IMAGES = "relative_error is ||x^ - x|| / ||x||; psnr (dB) and ssim of pixels in [0, 1]"
OF_FEATURES = "feature_error is ||f(x^) - y|| / ||y||, y being the features given"


def run(options: Invert) -> tuple[dict[str, Any], str]:
    """Invert one layer over the images, or several; return the JSON document and its text."""
    if not options.layer:
        raise UsageError(f"--layer is missing; see unconv layers {options.model}")
    several = len(options.layer) > 1
    if several and options.features is None:
        _fit_together(options)
    documents = [_invert(options, layer, several) for layer in options.layer]
    text = "\n\n".join(_text(document, options) for document in documents)
    return {"layers": documents} if several else documents[0], text


def _fit_together(options: Invert) -> None:
    """Fit the linear decoders of all layers in one pass over the reference images; ``invert`` then finds them."""
    arguments = options.keywords()
    limits = {name: arguments.get(name) for name in ("region", "k", "passes", "budget")}
    asked = (options.recover, options.code, options.method, options.side_info)
    if checked_task(options.layer[0], *asked, **limits).method not in FROM_LINEAR:
        return
    missing = [
        layer
        for layer in options.layer[:REMEMBERED]
        if options.out is None or find_fitted(layer, options.out / layer / "decoders") is None
    ]
    known = {"images", "decoders", "reference_images", *ModelOptions.__annotations__}
    if len(missing) > 1:
        linear(options.model, missing, **{name: arguments[name] for name in arguments.keys() & known})


def _invert(options: Invert, layer: str, several: bool) -> dict[str, Any]:
    arguments = options.keywords()
    if options.features is not None:
        arguments["features"] = read_features(options.features, layer)
    if options.out is not None and several:
        arguments["out"] = options.out / layer
    document = invert(options.model, layer, **arguments).document()
    print_skipped(document["skipped"])
    return document


def read_features(file: Path, layer: str) -> Tensor:
    """Return the features of a layer from a safetensors file: the tensor of its name, or the only one."""
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"features {file} cannot be read: {reason}; give a .safetensors file") from error
    if layer in tensors:
        return tensors[layer]
    if len(tensors) != 1:
        raise UnconvError(f"{file} holds {', '.join(tensors) or 'nothing'}; give one tensor, or one named {layer!r}")
    return next(iter(tensors.values()))


def _text(document: dict[str, Any], options: Invert) -> str:
    rows = [*document["images"], document["summary"] | {"file": "mean", "status": ""}]
    lines = [
        f"{document['layer']} by {document['method']}, side information: {document['side_info']}",
        format_table(("file", *COLUMNS), [[row[name] for name in ("file", *COLUMNS)] for row in rows]),
        f"{OF_FEATURES if rows[-1]['relative_error'] is None else OF_IMAGES}; seconds per image",
    ]
    if any(row["status"] == "max_steps" for row in rows):
        lines.append("max_steps: the solver ran out of passes before it converged; more of them take it further")
    if any(row["status"] == "no_gain" for row in rows):
        lines.append("no_gain: on reference images more passes made estimates worse, so refinement ended there")
    if options.out is not None:
        lines.append(f"in {options.out}: pictures, and results.parquet")
    elif document["recover"] == "image":
        lines.append("nothing is kept; --out FOLDER keeps the pictures and results.parquet")
    return "\n".join(lines)
