"""``unconv train-decoder``: a what-where decoder of a stage, trained on a folder of images."""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from torchvision.utils import make_grid

from unconv.commands.command_line import command_line
from unconv.commands.loading import open_images, open_model, rows_of_text
from unconv.commands.options import TrainDecoder
from unconv.commands.progress import progress_bar, say_skipped
from unconv.conv_block import ConvBlock
from unconv.errors import UnconvError, UsageError
from unconv.evaluate.decoder_training import (
    FINAL,
    Photographs,
    Recipe,
    train,
    validation_pictures,
)
from unconv.evaluate.decoders import decoder_chain
from unconv.evaluate.network import Network
from unconv.evaluate.run_directory import RunDirectory, environment
from unconv.images import ImageStream, save_image
from unconv.io import write_json
from unconv.models import LoadedModel, check_covered
from unconv.reporting.reproduction import svg


@dataclass(frozen=True)
class Job:
    """A decoder that is to be trained: everything is decided, nothing is done.

    Attributes:
        network: The network.
        chain: The stages from the image to the one whose code is decoded.
        photographs: The images.
        recipe: How.
        config: Settings of the run, for its directory.
        path: The run directory.
        model: The model, with the source of its weights.
        shape: Shape of what is trained on, ``(C, H, W)``.
    """

    network: Network
    chain: tuple[ConvBlock, ...]
    photographs: Photographs
    recipe: Recipe
    config: dict[str, Any]
    path: Path
    model: str
    shape: tuple[int, ...]


def prepare(options: TrainDecoder) -> Job:
    """Decide what the training consists of. Nothing is written.

    Args:
        options: The options.

    Returns:
        The job.

    Raises:
        UsageError: If an option is missing or out of range.
        UnconvError: If no image can be used, or the stage has no mirrored decoder.
    """
    _check(options)
    loaded, network = open_model(options)
    if not options.stage:
        names = network.stages(loaded.example().shape[1:]).names
        raise UsageError(f"--stage is missing; use one of {', '.join(names)}")
    if not options.images:
        raise UsageError("--images is missing; give a folder of images to train on")
    stream = open_images(options, loaded)
    root = None if stream.root is None else Path(stream.root)
    photographs = Photographs(network, stream.paths, options.crop, root)
    recipe = Recipe(
        options.steps, options.batch, options.rate, options.held_out, options.crop, options.every, options.seed
    )
    example = next((x for i in range(len(stream.paths)) if (x := photographs.batch([i])) is not None), None)
    if example is None:
        first = next(iter(photographs.skipped.values()))
        raise UnconvError(f"none of the {len(stream.paths)} images could be used; {first.file}: {first.reason}")
    chain = decoder_chain(network.stages(example.shape[1:]), options.stage)
    check_covered(loaded, [stage.name for stage in chain])
    config = _config(options, loaded, stream)
    out = options.out or Path("runs") / f"decoder-{hashlib.sha256(json.dumps(config).encode()).hexdigest()[:8]}"
    model = f"{loaded.name} ({loaded.weights.source})"
    return Job(network, chain, photographs, recipe, config, out, model, tuple(example.shape[1:]))


def run(options: TrainDecoder) -> tuple[dict[str, Any], str]:
    """Train, or go on training, and write the decoder with its validation curve.

    Args:
        options: The options.

    Returns:
        The JSON document and its text.
    """
    job = prepare(options)
    network, chain, photographs, recipe, out = job.network, job.chain, job.photographs, job.recipe, job.path
    directory = RunDirectory(out, job.config)
    try:
        with progress_bar(options.steps) as progress:
            document = train(network, chain, photographs, recipe, directory, progress, _say)
        document = {"stage": options.stage, **document}
        with directory.writing():
            write_json(
                out / "decoder.json",
                document | {"command": command(options), "config": job.config, "environment": environment()},
            )
            (out / "curve.svg").write_text(svg(draw_curve(document["curve"])), encoding="utf-8")
        pictures = validation_pictures(network, chain, photographs, recipe, out / FINAL)
        if pictures is not None:
            true, decoded = pictures
            rows = [row.cpu().clamp(0, 1) for row in (true, decoded)]
            sheet = make_grid([image for row in rows for image in row], nrow=len(true), padding=1)
            save_image(sheet, out / "images" / "held-out.png")
    finally:
        directory.close()
    say_skipped(photographs.skipped.values())
    skipped = [{"file": s.file, "reason": s.reason} for s in photographs.skipped.values()]
    return document | {"skipped": skipped}, _text(options, document)


def command(options: TrainDecoder) -> str:
    """The command line that runs this again.

    Args:
        options: The options.

    Returns:
        One line for a shell.
    """
    words = ("unconv", "train-decoder", options.model)
    return command_line(words, options, TrainDecoder(model=options.model), said=("model",))


def draw_curve(curve: list[dict[str, Any]]) -> Figure:
    """The losses against the step.

    Args:
        curve: Rows of the validation curve.

    Returns:
        The figure.
    """
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    panel = figure.subplots()
    steps = [row["step"] for row in curve]
    for name in ("training_loss", "validation_loss"):
        panel.plot(steps, [row[name] for row in curve], label=name.replace("_", " "))
    panel.set(xlabel="step", ylabel="mean squared error", yscale="log")
    panel.legend()
    return figure


def _check(options: TrainDecoder) -> None:
    counts = {"steps": options.steps, "batch": options.batch, "every": options.every}
    for name, value in counts.items():
        if value < 1:
            raise UsageError(f"--{name} is {value}; it is at least 1")
    if options.crop is not None and options.crop < 1:
        raise UsageError(f"--crop is {options.crop}; it counts pixels, so it is at least 1")
    if not 0 < options.held_out < 1:
        raise UsageError(f"--held-out is {options.held_out}; it is a share between 0 and 1")
    if not options.rate > 0:
        raise UsageError(f"--rate is {options.rate}; it is above 0")


def _config(options: TrainDecoder, loaded: LoadedModel, images: ImageStream) -> dict[str, Any]:
    listing = "\n".join(f"{path} {path.stat().st_size if path.exists() else '-'}" for path in images.paths)
    return {
        "verb": "train-decoder",
        "model": options.model,
        "weights": {"source": loaded.weights.source, "sha256": loaded.weights.sha256},
        "preprocessing": loaded.preprocess.describe(),
        "images": {
            "given": [str(path) for path in options.images],
            "count": len(images.paths),
            "listing_sha256": hashlib.sha256(listing.encode(errors="surrogateescape")).hexdigest(),
        },
        **{
            name: getattr(options, name)
            for name in ("stage", "steps", "batch", "rate", "held_out", "crop", "every", "seed", "device")
        },
    }


def _say(row: dict[str, Any]) -> None:
    print(
        f"step {row['step']}: training loss {row['training_loss']:.4g}, validation loss {row['validation_loss']:.4g}, "
        f"relative error {row['validation_relative_error']:.4f}",
        file=sys.stderr,
    )


def _text(options: TrainDecoder, document: dict[str, Any]) -> str:
    header = ("step", "training loss", "validation loss", "relative error")
    rows = [
        (row["step"], row["training_loss"], row["validation_loss"], row["validation_relative_error"])
        for row in document["curve"]
    ]
    resumed = f"resumed from step {document['resumed_from']}\n" if document["resumed_from"] else ""
    file = Path(document["decoder"])
    lines = [
        "losses are mean squared errors as the network counts, the relative error is the mean over held-out images",
        f"decoder of {options.stage}: {file}",
        f"held-out images, decoded ones below: {file.parent / 'images' / 'held-out.png'}",
    ]
    return f"{resumed}{rows_of_text(header, rows)}\n" + "\n".join(lines)
