"""Conv blocks, the paper's layers, as functions: sparsity, coherence, the model-RIP, and a trained decoder."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Unpack

import torch

from unconv.api_options import (
    REGION,
    Model,
    ModelOptions,
    count_blocks,
    open_model,
    progress_bar,
    run_path,
)
from unconv.errors import UnconvError, UsageError, check_choice, check_whole
from unconv.evaluate.network import CapturedStream, Images
from unconv.evaluate.run_directory import RunDirectory
from unconv.evaluate.theory import (
    code_ratios,
    coherence_document,
    pooled_fraction,
    regions_and_k,
    rip_document,
    sparsity_document,
)
from unconv.model_sources import BUNDLED, CIFAR_SIZE


def sparsity(
    model: Model, images: Images | None = None, *, blocks: Sequence[str] | None = None, **options: Unpack[ModelOptions]
) -> dict[str, Any]:
    """Share of non-zeros of conv blocks over images, in percent (Table 2); arguments as for ``invert``.

    ``blocks`` are names of conv blocks, all where ``None``. Returns ``{"blocks": [{"layer", "activation", "pooled"}],
    "skipped": [{"file", "reason"}]}``.
    """
    opened, progress = open_model(model, images, options)
    names = [block.name for block in opened.blocks(opened.example(), blocks)]
    statistics, skipped = count_blocks(opened, names, None, progress)
    return {"blocks": [{"layer": n} | sparsity_document(statistics, n) for n in names], "skipped": skipped}


def coherence(model: Model, *, blocks: Sequence[str] | None = None, **options: Unpack[ModelOptions]) -> dict[str, Any]:
    """Coherence of the filters of conv blocks, learned beside Gaussian (Table 4); arguments as for ``sparsity``.

    Returns ``{"blocks": [{"layer", "learned": {"signed", "absolute", "shifted"}, "random": {...}}]}``.
    """
    opened, _ = open_model(model, None, options)
    seed = options.get("seed", 0)
    chosen = opened.blocks(opened.loaded.example(), blocks)
    return {"blocks": [{"layer": block.name} | coherence_document(block, seed) for block in chosen]}


def rip(
    model: Model,
    images: Images | None = None,
    *,
    blocks: Sequence[str] | None = None,
    k: int | None = None,
    region: int = REGION,
    samples: int = 1000,
    boundary: Literal["full", "cropped"] = "full",
    filters: Literal["learned", "normalised", "gaussian"] = "normalised",
    effort: float = 0.2,
    **options: Unpack[ModelOptions],
) -> dict[str, Any]:
    """Sample the model-RIP (restricted isometry property) of conv blocks (Figure 3), and bound ``delta_k``.

    Args:
        model: As for ``invert``.
        images: As for ``invert``, but the bundled network sees photographs at its own 32 pixels where ``None``; they
            give ``k``, where it is ``None``.
        blocks: Names of conv blocks; all where ``None``.
        k: Number of active regions; from the measured sparsity where ``None``.
        region: Side of the max pooling imposed on a block that has none.
        samples: Number of random codes.
        boundary: Whether ``W^T`` keeps its full output or is cropped to the unpadded input.
        filters: The filters as they are, at unit norm, or Gaussian.
        effort: Work of the search for the lower bound; 0 samples only.
        **options: As for ``invert``.

    Returns:
        A document ``{"blocks": [...]}``. A block has ``layer``, ``k``, ``ratio`` (``p01``, ``p50``, ``p99``), ``delta``
        (``lower``, ``upper``), ``delta_how``, ``typical`` (what most codes do, random ones and those of the images).

    Raises:
        UsageError: If an argument's value does not exist or is out of range.
    """
    check_whole(k=k, region=region, samples=samples)
    check_choice(("full", "cropped"), boundary=boundary)
    check_choice(("learned", "normalised", "gaussian"), filters=filters)
    if not 0 <= effort < float("inf"):
        raise UsageError(f"effort is {effort}; it multiplies work, so it is finite and at least 0")
    if model == BUNDLED and images is None and options.get("size") is None:
        options["size"] = CIFAR_SIZE
    opened, progress = open_model(model, images, options)
    chosen = opened.blocks(opened.example(), blocks)
    names, skipped, statistics, of_images = [block.name for block in chosen], [], None, {}
    how: dict[str, Any] = {"region": region, "boundary": boundary, "filters": filters, "seed": options.get("seed", 0)}
    if k is None:
        statistics, skipped = count_blocks(opened, names, region, progress)
        of_images = code_ratios(CapturedStream(opened.network, opened.images, names), names, **how)
    else:
        for block in chosen:
            _, most = regions_and_k(block, 1.0, region)
            if k > most:
                raise UnconvError(f"k is {k}, but conv block {block.name!r} has {most} regions; give at most that")
    found = []
    with progress_bar(len(chosen), progress) as bar:
        for block in chosen:
            fraction = 1.0 if statistics is None else pooled_fraction(statistics, block.name)
            ratios = of_images.get(block.name, torch.zeros(0))
            found.append(rip_document(block, k, fraction, of_images=ratios, samples=samples, effort=effort, **how))
            bar(f"bounding {block.name}", 1)
    return {"blocks": found, "skipped": skipped}


def train_decoder(
    model: Model,
    layer: str,
    images: Images,
    *,
    out: str | Path | None = None,
    steps: int = 2000,
    rate: float = 2e-3,
    held_out: float = 0.1,
    crop: int | None = None,
    every: int = 100,
    **options: Unpack[ModelOptions],
) -> dict[str, Any]:
    """Train a what-where decoder: the image from a conv block's code and its switches (Zhang et al. 2016).

    Args:
        model: As for ``invert``.
        layer: The conv block, at the end of a plain chain of them.
        images: Folders or files to train on.
        out: Run directory; the same call goes on from its last checkpoint. Named after the settings where ``None``.
        steps: Number of steps.
        rate: Learning rate at the start; it falls with a cosine.
        held_out: Share of the images that is kept for validation.
        crop: Side of the random squares trained on, in pixels after preprocessing; whole images where ``None``.
        every: Steps between validations, each with a checkpoint.
        **options: As for ``invert``; ``batch`` is that of a step, 32 where not given.

    Returns:
        What ``unconv train-decoder --json`` prints.
    """
    from unconv.evaluate.decoder_training import Recipe, train

    options["batch"] = batch = options.get("batch") or 32
    opened, progress = open_model(model, images, options)
    recipe = Recipe(steps, batch, rate, held_out, crop, every, options.get("seed", 0))
    recipe.check()
    config = opened.description | {"verb": "train-decoder", "layer": layer, **vars(recipe)}
    path = run_path(out, "decoder", config)
    with contextlib.closing(RunDirectory(path, config)) as run, progress_bar(steps, progress) as bar:
        return {"layer": layer, "run": str(path)} | train(opened, layer, recipe, run, bar)
