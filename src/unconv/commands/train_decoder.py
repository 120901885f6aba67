"""``unconv train-decoder``: a what-where decoder of a conv block, trained on a folder of images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unconv.api_blocks import train_decoder
from unconv.commands import format_table, print_skipped
from unconv.errors import UsageError
from unconv.options import TrainDecoder

LOSSES = ("step", "training_loss", "validation_loss", "validation_relative_error")


def run(options: TrainDecoder) -> tuple[dict[str, Any], str]:
    """Train, or go on training, and write the decoder; return the JSON document and its text."""
    if not options.layer:
        raise UsageError(f"--layer is missing; see unconv layers {options.model}")
    if not options.images:
        raise UsageError("--images is missing; give a folder of images to train on")
    document = train_decoder(options.model, options.layer, **options.keywords())
    print_skipped(document["skipped"])
    rows = [tuple(row[name] for name in LOSSES) for row in document["curve"]]
    file = Path(document["decoder"])
    lines = [f"resumed from step {document['resumed_from']}"] if document["resumed_from"] else []
    lines += [
        format_table(("step", "training loss", "validation loss", "relative error"), rows),
        "losses are mean squared errors as the network counts, the relative error is the mean over held-out images",
        f"decoder of {options.layer}: {file}",
        f"held-out images, decoded ones below: {file.parent / 'images' / 'held-out.png'}",
    ]
    return document, "\n".join(lines)
