"""What the functions of the API take: a model and images, where results go, and how progress shows."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, TypedDict

from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from unconv.errors import UsageError
from unconv.evaluate.network import CapturedStream, Images, Opened, open_network
from unconv.evaluate.reconstruction import DECODER, Task
from unconv.preprocessing import Numbers

Model = str | nn.Module
Files = str | Path | Sequence[str | Path]
REGION = 2  # side of the max pooling imposed where the paper's code meets a block without pooling
BAR = "{percentage:3.0f}% |{bar:20}| {elapsed} so far, {remaining} left; {desc}"


class ModelOptions(TypedDict, total=False):
    """Keyword arguments of every function: how the model, and its images, are opened."""

    weights: str | None  #: Those of a named model, a file or the name of torchvision weights (downloaded then).
    size: int | None  #: Side of the square that images are resized and cropped to, in pixels.
    mean: Numbers | None  #: Subtracted from each channel; with ``std``. Above 1 means pixels in 0..255.
    std: Numbers | None  #: Divides each channel.
    #: From an RGB PIL image to a tensor ``(C, H, W)``, for a network of your own.
    preprocess: Callable[[Image.Image], Tensor] | None
    batch: int | None  #: Images at a time.
    limit: int | None  #: Use only the first so many images.
    device: str | None  #: Where to compute; if ``None`` where the network is, on the CPU for a named one.
    seed: int  #: Seed of everything random.
    progress: bool  #: Whether to show progress on stderr.


class RunOptions(ModelOptions, total=False):
    """Keyword arguments of functions that reconstruct images."""

    #: Run directory for results and pictures; the same call again completes what is missing there, and one with a
    #: larger budget goes on.
    out: str | Path | None
    decoders: Files | None  #: Files from ``train_decoder``, for ``method="decoder"``; or a folder with linear decoders.
    #: Folder of images to fit linear decoders to; synthetic ones and packaged photographs where ``None``.
    reference_images: str | Path | None
    ray: str | None  #: Address of a Ray cluster that is handed blocks of images; ``"local"`` starts one here.


class ReportOptions(RunOptions, total=False):
    """Keyword arguments of ``report`` and ``audit``; ``out``, if ``None``, is named after the settings in ``runs/``."""

    #: Names of layers, or ``"all"``; 6 to 8 spread over the depth where ``None``.
    layers: Sequence[str] | Literal["all"] | None
    passes: int | None  #: Most passes per image, layer and method, in place of a budget.
    budget: float | None  #: Seconds of wall-clock time in which to end, 600 where not given; no limit where ``None``.
    pictures: int  #: Number of images whose reconstructions are kept as pictures; 10 where not given.
    command: str | None  #: What the page says that makes it again; the call where ``None``.
    #: Second of ``time.monotonic`` from which the budget counts, as where a process began; the call where not given.
    started: float


def open_model(
    model: Model, images: Images | None, options: ModelOptions, known: type[ModelOptions] = ModelOptions
) -> tuple[Opened, bool]:
    """Open a model and images as the options say; return them, and whether progress is to be shown."""
    for name in options:
        if name not in known.__annotations__:
            raise UsageError(f"there is no argument {name!r}; use some of {', '.join(known.__annotations__)}")
    arguments: dict[str, Any] = {n: v for n, v in options.items() if n in ModelOptions.__annotations__}
    progress = bool(arguments.pop("progress", False))
    return open_network(model, images, **arguments), progress


def use_decoders(opened: Opened, x: Tensor, tasks: Sequence[Task], decoders: Files | None) -> None:
    """Give the network the trained decoders that tasks ask for."""
    if any(task.method == DECODER for task in tasks):
        from unconv.evaluate.decoders import open_decoders

        found = open_decoders(opened.network, opened.network.conv_blocks(x), _paths(decoders))
        opened.network.decoders = {name: decoder.decoder for name, decoder in found.items()}


def linear_folder(decoders: Files | None) -> Path | None:
    """Return the folder with linear decoders, where one is given; UsageError for what is not there."""
    paths = _paths(decoders)
    if missing := [path for path in paths if not path.exists()]:
        raise UsageError(f"no decoders {missing[0]}; give a folder of linear decoders, or unconv train-decoder's files")
    return next((path for path in paths if path.is_dir()), None)


def _paths(files: Files | None) -> list[Path]:
    return [] if files is None else [Path(f) for f in ([files] if isinstance(files, str | Path) else files)]


def count_blocks(
    opened: Opened, names: Sequence[str], region: int | None, progress: bool
) -> tuple[Any, list[dict[str, str]]]:
    """Count the non-zeros of conv blocks over the images; return statistics and the images that were left out."""
    from unconv.evaluate.theory import count_nonzeros

    with progress_bar(len(opened.images) * len(names), progress) as bar:
        statistics, skipped = count_nonzeros(CapturedStream(opened.network, opened.images, names), names, region, bar)
    return statistics, [asdict(image) for image in skipped]


def run_path(out: str | Path | None, name: str, config: dict[str, Any]) -> Path:
    """Return a run directory: as given, or named after its settings, so that a larger budget goes on there."""
    if out is not None:
        return Path(out)
    kept = {key: value for key, value in config.items() if key not in {"budget", "passes"}}
    digest = hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()[:8]
    return Path("runs") / f"{''.join(c if c.isalnum() or c in '-_' else '-' for c in name)}-{digest}"


@contextmanager
def progress_bar(total: int, shown: bool) -> Iterator[Callable[..., None]]:
    """Show a bar on stderr with the time left; in a log that is no terminal it prints seldom."""
    looks: dict[str, Any] = {"dynamic_ncols": True, "leave": False, "bar_format": BAR, "miniters": 0}
    quiet = 0.2 if sys.stderr.isatty() else 30.0
    with tqdm(total=total, file=sys.stderr, mininterval=quiet, disable=not shown, **looks) as bar:

        def done(message: str, units: int, seconds_left: float | None = None) -> None:
            bar.set_description_str(message, refresh=False)
            if seconds_left is not None:  # foretold: the bar then counts seconds
                elapsed = bar.format_dict["elapsed"]
                units, bar.total = elapsed - bar.n, elapsed + seconds_left
            bar.update(units)

        yield done


@contextmanager
def ray_cluster(address: str | None) -> Iterator[Any]:
    """Open the Ray cluster at an address, ``"local"`` for one of this machine; nothing where ``None``."""
    if address is None:
        yield None
        return
    from unconv.evaluate.ray import RayCluster

    cluster = RayCluster(address)
    try:
        yield cluster
    finally:
        cluster.close()
