"""What verbs have in common: open the model, its stages and the images that the options name."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch

from unconv.commands.options import ImageOptions, ModelOptions
from unconv.conv_block import ConvBlocks
from unconv.errors import UnconvError, UsageError
from unconv.evaluate.network import Network
from unconv.evaluate.ranks import ALONE, Rank
from unconv.images import ImageStream, find_images, sample_photographs
from unconv.models import LoadedModel, check_covered, load_model
from unconv.reporting import text as words


def open_model(
    options: ModelOptions, *, otherwise: str | None = None, rank: Rank = ALONE
) -> tuple[LoadedModel, Network]:
    """The model that the options name, on their device.

    Args:
        options: The options.
        otherwise: Weights to take where the options name none; they are not downloaded.
        rank: Which process of its job this is; it gets a GPU of its own.

    Returns:
        The loaded model, and the network to study.

    Raises:
        UsageError: If the seed is out of range.
    """
    if not 0 <= options.seed < 2**63:
        raise UsageError(f"--seed is {options.seed}; expected a whole number, at least 0 and below 2^63")
    named = options.weights is not None
    open_device(options.device)  # a wrong name is said before the weights are read, which can take long
    loaded = load_model(
        options.model,
        weights=options.weights or otherwise,
        size=options.size,
        mean=options.mean,
        std=options.std,
        download=named and not getattr(options, "dry_run", False),
    )
    return loaded, network_of(loaded, own_device(options.device, rank), said=rank.leads)


def own_device(name: str, rank: Rank) -> str:
    """The device of a rank: with ``cuda`` each gets a GPU of its own, as far as there are enough.

    Args:
        name: As the user gave it.
        rank: The rank.

    Returns:
        A device as torch names it.
    """
    if name != "cuda" or rank.alone:
        return name
    # a launcher that shows each process its own GPU only leaves one to choose from
    return f"cuda:{rank.local % max(1, torch.cuda.device_count())}"


def network_of(loaded: LoadedModel, name: str, *, said: bool = True) -> Network:
    """The network of a loaded model, on a device. What was assumed about it is said on stderr.

    Args:
        loaded: The model.
        name: The device.
        said: Whether it is said.

    Returns:
        The network.
    """
    device = open_device(name)
    for note in loaded.notes if said else ():
        print(f"note: {note}", file=sys.stderr)
    return Network(loaded.module.to(device), loaded.preprocess, device)


def open_images(options: ImageOptions, loaded: LoadedModel) -> ImageStream:
    """The images that the options name, or the bundled photographs.

    Args:
        options: The options.
        loaded: The model whose preprocessing they get.

    Returns:
        The stream.

    Raises:
        UsageError: If a number is out of range.
    """
    if options.batch < 1:
        raise UsageError(f"--batch is {options.batch}; it counts images at a time, so it is at least 1")
    if options.limit is not None and options.limit < 1:
        raise UsageError(f"--limit is {options.limit}; it counts images, so it is at least 1")
    paths = find_images(list(options.images)) if options.images else sample_photographs()
    root = options.images[0] if len(options.images) == 1 and options.images[0].is_dir() else paths[0].parent
    return ImageStream(paths[: options.limit], loaded.preprocess, options.batch, root=root)


def given(options: ImageOptions, images: ImageStream) -> dict[str, Any]:
    """What ``config.json`` says of images that are files.

    Args:
        options: The options.
        images: The images.

    Returns:
        What the user named, how many there are, and a hash of their names and sizes.
    """
    listing = "\n".join(f"{path} {_size(path)}" for path in images.paths)
    return {
        "given": [str(path) for path in options.images] or "bundled photographs",
        "count": len(images.paths),
        "listing_sha256": hashlib.sha256(listing.encode(errors="surrogateescape")).hexdigest(),
    }


def _size(path: Path) -> int | str:
    try:
        return path.stat().st_size
    except OSError:
        return "-"


def check_named(stages: ConvBlocks, wanted: Sequence[str]) -> None:
    """Refuse names that are no stages.

    Args:
        stages: The stages of a network.
        wanted: Module paths.

    Raises:
        UsageError: If one is none.
    """
    for name in wanted:
        parts = name.replace(",", " ").split()
        if len(parts) > 1 and set(parts) <= set(stages.names):
            raise UsageError(f"{name!r} is no stage; put spaces between stages: {' '.join(parts)}")
        stages.get(name)


def choose_stages(
    loaded: LoadedModel, stages: ConvBlocks, wanted: Sequence[str]
) -> tuple[tuple[str, ...], list[dict[str, str]]]:
    """The stages to study: those asked for, or all that the weights reach.

    Args:
        loaded: The model.
        stages: Its stages.
        wanted: Module paths; all where empty.

    Returns:
        Names in execution order, and ``{"module", "reason"}`` of what is left out.

    Raises:
        UsageError: If a wanted stage does not exist.
        UnconvError: If the weights give nothing for a wanted stage, or for any.
    """
    skipped = [{"module": s.module, "reason": s.reason} for s in stages.skipped]
    check_named(stages, wanted)
    covered: list[str] = []
    gap: UnconvError | None = None
    for stage in stages.stages:
        try:
            check_covered(loaded, [stage.name])
        except UnconvError as error:
            gap = gap or error
        if gap is None:
            covered.append(stage.name)
        elif stage.name in wanted:
            raise gap
        elif not wanted:
            skipped.append({"module": stage.name, "reason": str(gap)})
    names = tuple(name for name in covered if not wanted or name in wanted)
    if not names and gap is not None:
        raise gap
    if not names:
        first = skipped[0] if skipped else {"module": "the model", "reason": "it has no convolution"}
        raise UnconvError(f"no stage to study: {first['module']}: {first['reason']}; give a model with one")
    return names, skipped


def rows_of_text(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table for a terminal, numbers to the right.

    Args:
        header: Column titles; several lines where they hold line breaks.
        rows: Cells; ``None`` is shown as a dash, floats with four significant digits.

    Returns:
        Lines of equal columns.
    """
    body = [[words.cell(value, "-") for value in row] for row in rows]
    heads = [list(line) for line in zip_longest(*(title.split("\n") for title in header), fillvalue="")]
    widths = [max(map(len, column)) for column in zip(*heads, *body, strict=True)]
    left = [all(not _is_number(row[i]) for row in body) for i in range(len(header))]
    lines = []
    for row in [*heads, *body]:
        cells = [c.ljust(w) if l else c.rjust(w) for c, w, l in zip(row, widths, left, strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def open_device(name: str) -> torch.device:
    """A device to compute on, set up for exact enough arithmetic.

    Args:
        name: As torch names it.

    Returns:
        The device.

    Raises:
        UsageError: If there is no such kind of device.
        UnconvError: If this machine has none.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"no device {name!r}; use cpu, cuda or cuda:N") from None
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise UnconvError(f"device {name!r} is not available on this machine; use --device cpu")
        # TensorFloat-32 keeps 10 bits of the mantissa, too few for adjoints and model-RIP
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    elif device.type != "cpu":
        raise UsageError(f"no support for device {name!r}; use cpu, cuda or cuda:N")
    return device


def _is_number(text: str) -> bool:
    return text == "-" or text.replace(".", "", 1).replace("-", "").replace("e", "").replace("+", "").isdigit()
