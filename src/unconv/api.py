"""What ``import unconv`` offers: the verbs of the command line as plain functions."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack

import torch
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from unconv.conv_block import SideInfo
from unconv.errors import UnconvError, UsageError
from unconv.evaluate.network import Images, Network, Opened, open_network
from unconv.evaluate.reconstruction import (
    BLOCK_METHODS,
    DECODER,
    FEATURES_METHODS,
    IN_PASSES,
    Recover,
    Settings,
    Task,
    reconstruct_features,
)
from unconv.evaluate.run_directory import InMemoryRun, RunDirectory
from unconv.images import SkippedImage, picture_note
from unconv.models import LoadedModel
from unconv.preprocessing import Numbers
from unconv.results import InvertResult, ReportResult
from unconv.tracing import Layers

Model = str | nn.Module
Code = Literal["network", "paper"]
Files = str | Path | Sequence[str | Path]
BUDGET = 600.0
REGION = 2  # side of the max pooling imposed where the paper's code meets a block without pooling
SIDE_INFO: tuple[SideInfo, ...] = ("none", "switches", "gates")
BAR = "{percentage:3.0f}% |{bar:20}| {elapsed} so far, {remaining} left; {desc}"


class ModelOptions(TypedDict, total=False):
    """Keyword arguments of every function: how the model, and its images, are opened.

    Attributes:
        weights: Of a named model: a file, or the name of torchvision weights (downloaded then).
        size: Side of the square that images are resized and cropped to, in pixels.
        mean: Subtracted from each channel; with ``std``. Above 1 means pixels in 0..255.
        std: Divides each channel.
        preprocess: Of a network of your own: from an RGB PIL image to a tensor ``(C, H, W)``.
        batch: Images at a time.
        limit: Use only the first so many images.
        device: Where to compute. Where ``None``: where the network is, the CPU for a named one.
        seed: Seed of everything random.
        progress: Whether to show progress on stderr.
    """

    weights: str | None
    size: int | None
    mean: Numbers | None
    std: Numbers | None
    preprocess: Callable[[Image.Image], Tensor] | None
    batch: int | None
    limit: int | None
    device: str | None
    seed: int
    progress: bool


def invert(
    model: Model,
    layer: str,
    images: Images | None = None,
    *,
    features: Tensor | None = None,
    method: str | None = None,
    side_info: SideInfo = "none",
    recover: Recover = "image",
    code: Code = "network",
    region: int | None = None,
    k: int | None = None,
    passes: int | None = None,
    budget: float | None = None,
    decoders: Files | None = None,
    reference_images: str | Path | None = None,
    config: Any = None,
    out: str | Path | None = None,
    ray: str | None = None,
    **options: Unpack[ModelOptions],
) -> InvertResult:
    """Reconstruct images from the output of a layer, or a conv block's input from its code.

    Args:
        model: A network (copied, and left as it is), or a name as on the command line: ``"cifar-vgg"``,
            ``"resnet18"``, ``"module:callable"``.
        layer: Any module whose output can be inverted, such as ``"layer1"``; see ``layers``.
        images: A folder, a file, or several; PIL images; a batch of shape ``(N, C, H, W)``, or tensors of shape
            ``(C, H, W)``, as the network receives them. Photographs that ship with scikit-image where ``None``.
        features: Output of the layer in place of images, shape ``(N, *shape)``; errors are then those of the features.
            Give ``size`` where the network does not say the size of its images.
        method: ``"linear"``, ``"gauss-newton"`` or ``"gradient"`` for the image from any layer; ``"decoder"``, a
            trained one; ``"iht"``, ``"transpose"``, ``"min-norm"`` or ``"convex"`` for conv blocks. Where ``None``:
            Gauss-Newton for the image, ``"convex"`` for a block's input, ``"iht"`` for the paper's code.
        side_info: What is given besides: ``"none"``, ``"switches"`` (where each max pooling found its maximum) or
            ``"gates"`` (also which branch each ReLU is on). One that the network does not have is the one below it.
        recover: ``"image"``, or ``"input"``: a conv block's own input from its code.
        code: What the network computes, or the paper's code (Table 3): unit filters, no bias, magnitude pooling.
        region: Side of the max pooling imposed on a block that has none.
        k: Regions that the paper's code keeps; from the measured sparsity where ``None``.
        passes: Most forward and backward passes per image; the method's own where ``None``.
        budget: Seconds, turned into whole passes before work starts.
        decoders: Files from ``train_decoder``, for ``method="decoder"``; or a folder with linear decoders.
        reference_images: Folder of images to fit linear decoders to; synthetic ones and packaged photographs where
            ``None``.
        config: Of the solver, such as a ``GaussNewtonConfig``.
        out: Run directory for results and pictures; the same call again completes what is missing there.
        ray: Hand blocks of images to a Ray cluster: ``"local"``, or the address of one.
        **options: How the model and the images are opened, see ``ModelOptions``.

    Returns:
        Estimates, what they should be, and how far they are from it; ``||estimate - x|| / ||x||`` is on the tensor
        that the network (or block) receives, PSNR and SSIM on pixels in ``[0, 1]``.

    Raises:
        UsageError: If a name or an argument's value does not exist.
        UnconvError: If no image could be inverted; says why for the first.
    """
    if method is None:
        of_block = recover == "input" or code == "paper"
        method = ("iht" if code == "paper" else "convex") if of_block else "gauss-newton"
    task = Task(layer, recover, code, method, side_info)
    task.check()
    _check_numbers(region=region, k=k, passes=passes)
    if (region, k) != (None, None) and (task.of_features or method == DECODER):
        raise UsageError(
            f"region and k have no effect on {method}; they belong to a block's input and the paper's code"
        )
    if (passes, budget) != (None, None) and method not in IN_PASSES:
        raise UsageError(f"passes and budget have no effect on {method}; leave them out, or use gauss-newton")
    if features is not None:
        if images is not None or out is not None or ray is not None:
            raise UsageError("features come without images, out and ray; leave those out")
        return _invert_features(model, features, task, passes, budget, decoders, reference_images, config, options)
    opened, progress = open_model(model, images, options)
    x = opened.example()
    network, stream = opened.network, opened.images
    task, notes = _existing(network, x, task)
    opened.covered([layer], [layer])
    _equip(opened, x, (task,), decoders)
    settings = Settings(region, k, config=config)
    from unconv.evaluate.evaluation import Evaluation, Plan

    config_document = opened.description | {
        "verb": "invert",
        "tasks": [task.fields()],
        "region": region,
        "k": k,
        "passes": passes,
        "budget": budget,
        "config": None if config is None else repr(config),
    }
    with _run(out, config_document) as run, _cluster(ray) as cluster:
        fractions = _fractions(opened, run, (task,), settings, progress)
        notes += _fit_linear(opened, x, (task,), run, decoders, reference_images, options.get("seed", 0))
        if budget is not None and passes is None:
            passes = _planned(network, x, (task,), len(stream), budget, run)[layer]
        pictures = len(stream) if out is not None else 0
        plan = Plan((task,), passes, replace(settings, fractions=fractions), pictures=pictures, keep=True)
        evaluation = Evaluation(network, stream, plan, run)
        with _bar(evaluation.units(), progress) as bar:
            evaluation.go(progress=bar, ray=cluster)
        rows = list(evaluation.rows())
        if all(row["relative_error"] is None for row in rows):
            raise UnconvError(rows[0]["status"])
        tensors = {index: pair for index, *pair in evaluation.tensors(0)}
        if out is not None:
            run.write_results(rows)
        return _result(task, rows, tensors, evaluation.skipped(), network, tuple(notes), opened)


def report(
    model: Model,
    images: Images | None = None,
    *,
    out: str | Path | None = None,
    layers: Sequence[str] | Literal["all"] | None = None,
    methods: Sequence[str] | None = None,
    side_info: Sequence[SideInfo] | None = None,
    passes: int | None = None,
    budget: float | None = BUDGET,
    region: int = REGION,
    samples: int = 50,
    pictures: int = 10,
    control: Literal["random"] | None = None,
    decoders: Files | None = None,
    reference_images: str | Path | None = None,
    command: str | None = None,
    ray: str | None = None,
    **options: Unpack[ModelOptions],
) -> ReportResult:
    """Invert the layers of a network over images, measure its conv blocks, and write a page.

    Args:
        model: As for ``invert``.
        images: As for ``invert``.
        out: Run directory; the same call again completes what is missing there, one with a larger budget goes on.
            Named after the settings, below ``runs/`` in the current folder, where ``None``.
        layers: Names of layers, or ``"all"``; 6 to 8 spread over the depth where ``None``.
        methods: Some of ``invert``'s; linear and Gauss-Newton where ``None``.
        side_info: Some of none, switches and gates; all that exist where ``None``.
        passes: Most passes per image, layer and method, in place of a budget.
        budget: Seconds of wall-clock time in which to end; no limit where ``None``.
        region: Side of the max pooling imposed where the theory meets a block without pooling.
        samples: Random codes of the sampled model-RIP.
        pictures: Number of images whose reconstructions are kept as pictures.
        control: ``"random"``: what a linear decoder explains of the same network with random weights, beside.
        decoders: As for ``invert``.
        reference_images: As for ``invert``.
        command: What the page says that makes it again; the call where ``None``.
        ray: As for ``invert``.
        **options: As for ``invert``.

    Returns:
        The report: the path of its page, and what it says of each layer.

    Raises:
        UsageError: If a name or an argument's value does not exist.
        UnconvError: If nothing could be measured, the budget is too small for the linear decoders, or the run
            directory is another run's.
    """
    _check_numbers(region=region, samples=samples, passes=passes)
    return _report(
        model,
        images,
        options,
        layers=layers,
        methods=methods,
        side_info=side_info,
        region=region,
        samples=samples,
        control=control,
        out=out,
        passes=passes,
        budget=budget,
        pictures=pictures,
        decoders=decoders,
        reference_images=reference_images,
        command=command,
        ray=ray,
    )


def audit(
    model: Model,
    images: Images | None = None,
    *,
    layers: Sequence[str] | Literal["all"] | None = None,
    noise: Sequence[float] = (),
    judge: Model | LoadedModel | None = None,
    out: str | Path | None = None,
    passes: int | None = None,
    budget: float | None = BUDGET,
    pictures: int = 10,
    decoders: Files | None = None,
    reference_images: str | Path | None = None,
    command: str | None = None,
    ray: str | None = None,
    **options: Unpack[ModelOptions],
) -> ReportResult:
    """Audit layers as split points: what attackers get of the images out of features that leave the device.

    The attackers know the weights: a linear decoder, its refinement, the refinement with the switches of the poolings,
    and a trained decoder where one is given; those that a network has no use for are left out.

    Args:
        model: As for ``invert``.
        images: As for ``invert``.
        layers: As for ``report``: the split points.
        noise: Levels of Gaussian noise on the features as a defence, relative to their root mean square, such as
            ``(0.1, 0.3)``; attackers know the level.
        judge: A classifier that is asked whether a reconstruction still has the image's top-1 class; the network
            itself, where it is one, if ``None``.
        out: As for ``report``.
        passes: As for ``report``.
        budget: As for ``report``.
        pictures: As for ``report``.
        decoders: Files from ``train_decoder``; or a folder with linear decoders.
        reference_images: As for ``invert``: what the linear attacker has seen.
        command: As for ``report``.
        ray: As for ``invert``.
        **options: As for ``invert``.

    Returns:
        The report; ``document["audit"]`` has ``"table"`` (an entry per layer, attacker and level of noise with mean,
        95 % interval over images and the most exposed image of each metric), ``"mean_colour"``, ``"can_conclude"``
        and ``"cannot_conclude"``.

    Raises:
        UsageError: If a name or an argument's value does not exist.
        UnconvError: As for ``report``.
    """
    _check_numbers(passes=passes)
    return _report(
        model,
        images,
        options,
        layers=layers,
        methods=("linear", "gauss-newton", DECODER) if decoders is not None else None,
        side_info=("none", "switches"),
        noise=tuple(noise),
        judge=judge,
        audit=True,
        out=out,
        passes=passes,
        budget=budget,
        pictures=pictures,
        decoders=decoders,
        reference_images=reference_images,
        command=command,
        ray=ray,
    )


def _report(
    model: Model,
    images: Images | None,
    options: ModelOptions,
    *,
    layers: Sequence[str] | Literal["all"] | None,
    methods: Sequence[str] | None,
    side_info: Sequence[SideInfo] | None,
    out: str | Path | None,
    passes: int | None,
    budget: float | None,
    pictures: int,
    decoders: Files | None,
    reference_images: str | Path | None,
    command: str | None,
    ray: str | None,
    region: int = REGION,
    samples: int = 50,
    noise: tuple[float, ...] = (),
    judge: Model | LoadedModel | None = None,
    audit: bool = False,
    control: str | None = None,
) -> ReportResult:
    """Do what ``report`` and ``audit`` share."""
    from unconv.evaluate.audit import audit_tasks
    from unconv.evaluate.metrics import choose_judge, perceptual_distance
    from unconv.evaluate.report_run import ReportJob, ReportRun
    from unconv.evaluate.run_directory import environment
    from unconv.reporting.page import write_report

    verb = "audit" if audit else "report"
    if pictures < 0 or (budget is not None and not budget > 0):
        raise UsageError("pictures is at least 0, and budget a number of seconds above 0")
    if control not in {None, "random"}:
        raise UsageError(f"control is {control!r}; use 'random', or leave it out")
    for name, given in (("layers", layers), ("methods", methods), ("side_info", side_info)):
        if isinstance(given, str) and (name, given) != ("layers", "all"):
            raise UsageError(f"{name} is the text {given!r}; give a list of names, such as [{given!r}]")
    opened, progress = open_model(model, images, options)
    x = opened.example()
    found = opened.network.layers(x)
    if not found.layers:
        first = "".join(f"; {s.module}: {s.reason}" for s in found.skipped[:1])
        raise UnconvError(f"the network has no layer that can be inverted{first}")
    chosen = found.ends() if layers is None else found.names if layers == "all" else layers
    names = [layer.name for layer in found if layer.name in {found.get(name).name for name in chosen}]
    names, uncovered = opened.covered(names, None if layers is None or layers == "all" else chosen)
    tasks, notes = _report_tasks(opened, x, names, methods, side_info)
    notes += [note] if (note := picture_note(x.shape[1])) else []
    _equip(opened, x, tasks, decoders)
    network = opened.network
    if audit:
        trained = [t.layer for t in tasks if t.method == DECODER]
        trained = [name for name in trained if network.conv_blocks(x).get(name).name in network.decoders]
        tasks = list(audit_tasks(tasks, noise, trained))
    network.judge, more = choose_judge(opened.loaded, network.module, x.to(network.device), judge)
    distance = perceptual_distance()
    notes += more + ([distance] if isinstance(distance, str) and audit else [])
    config = opened.description | {
        "verb": verb,
        "layers": list(names),
        "tasks": [list(task.fields().values()) for task in tasks],
        "region": region,
        "samples": samples,
        "pictures": pictures,
        "budget": None if passes is not None else budget,
        "reference_images": None if reference_images is None else str(reference_images),
        "control": control,
        "judge": None if network.judge is None else network.judge.name,
    }
    if passes is not None:
        config["passes"] = dict.fromkeys(names, passes)
    path = Path(out) if out is not None else Path("runs") / f"{_safe(opened.loaded.name)}-{_digest(config)}"
    job = ReportJob(
        opened=opened,
        x=x,
        layers=tuple(names),
        tasks=tuple(tasks),
        settings=Settings(region),
        samples=samples,
        pictures=pictures,
        budget=None if passes is not None else budget,
        decoders=None if decoders is None or not Path(str(decoders)).is_dir() else Path(str(decoders)),
        reference_images=reference_images,
        seed=options.get("seed", 0),
        skipped_modules=[{"module": s.module, "reason": s.reason} for s in found.skipped] + uncovered,
        notes=notes,
        command=command or f"unconv.{verb}({opened.loaded.name!r}, ...)  # Python",
        audit=audit,
        control=control is not None,
    )
    run = RunDirectory(path, config)
    try:
        made = ReportRun(job, run, lambda doc, rows: write_report(path, doc, rows, run.config, environment()))
        with _cluster(ray) as cluster, _bar(len(opened.images) * len(tasks), progress) as bar:
            document, rows, page = made.go(bar, cluster)
    finally:
        run.close()
    return ReportResult(
        page=page,
        run=path,
        layers=document["layers"],
        rows=rows,
        skipped_modules=document["skipped_modules"],
        skipped_images=document["skipped_images"],
        document=document,
    )


def layers(model: Model, image: Images | None = None, **options: Unpack[ModelOptions]) -> Layers:
    """List every module whose output can be inverted, in execution order, and what is left out and why.

    Args:
        model: As for ``invert``.
        image: What the network is run on, as for ``invert``; seeded noise where ``None``.
        **options: As for ``invert``.

    Returns:
        The layers, with their shapes; ``block`` says which are conv blocks.
    """
    opened, _ = open_model(model, image, options)
    return opened.network.layers(opened.loaded.example() if image is None else opened.example())


def sparsity(
    model: Model, images: Images | None = None, *, blocks: Sequence[str] | None = None, **options: Unpack[ModelOptions]
) -> dict[str, Any]:
    """Share of non-zeros of conv blocks over images, in percent (Table 2).

    Args:
        model: As for ``invert``.
        images: As for ``invert``.
        blocks: Names of conv blocks; all where ``None``.
        **options: As for ``invert``.

    Returns:
        ``{"blocks": [{"layer", "activation", "pooled"}], "skipped": [{"file", "reason"}]}``.
    """
    from unconv.evaluate.theory import sparsity_document

    opened, progress = open_model(model, images, options)
    chosen = opened.blocks(opened.example(), blocks)
    statistics, skipped = _counted(opened, [b.name for b in chosen], None, progress)
    found = [{"layer": block.name} | sparsity_document(statistics, block.name) for block in chosen]
    return {"blocks": found, "skipped": skipped}


def coherence(model: Model, *, blocks: Sequence[str] | None = None, **options: Unpack[ModelOptions]) -> dict[str, Any]:
    """Coherence of the filters of conv blocks, learned beside Gaussian (Table 4).

    Args:
        model: As for ``invert``.
        blocks: Names of conv blocks; all where ``None``.
        **options: As for ``invert``.

    Returns:
        ``{"blocks": [{"layer", "learned": {"signed", "absolute", "shifted"}, "random": {...}}]}``.
    """
    from unconv.evaluate.theory import coherence_document

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
        images: As for ``invert``; they give ``k``, where it is ``None``.
        blocks: Names of conv blocks; all where ``None``.
        k: Number of active regions; from the measured sparsity where ``None``.
        region: Side of the max pooling imposed on a block that has none.
        samples: Number of random codes.
        boundary: Whether ``W^T`` keeps its full output or is cropped to the unpadded input.
        filters: The filters as they are, at unit norm, or Gaussian.
        effort: Work of the search for the lower bound; 0 samples only.
        **options: As for ``invert``.

    Returns:
        ``{"blocks": [{"layer", "k", "ratio": {"p01", "p50", "p99"}, "delta": {"lower", "upper"}, "delta_how",
        "typical": [{"codes", "samples", "share", "confidence", "within", "low", "high", "text"}], "worst"}]}``:
        ``typical`` is what most codes do, random ones and those of the images, ``worst`` the bracket in words.

    Raises:
        UsageError: If an argument's value does not exist or is out of range.
    """
    from unconv.evaluate.network import CapturedStream
    from unconv.evaluate.theory import check_regions, code_ratios, pooled_fraction, rip_document

    _check_numbers(k=k, region=region, samples=samples)
    for name, value, choices in (
        ("boundary", boundary, ("full", "cropped")),
        ("filters", filters, ("learned", "normalised", "gaussian")),
    ):
        if value not in choices:
            raise UsageError(f"{name} is {value!r}; use one of {', '.join(choices)}")
    if not 0 <= effort < float("inf"):
        raise UsageError(f"effort is {effort}; it multiplies work, so it is finite and at least 0")
    opened, progress = open_model(model, images, options)
    chosen = opened.blocks(opened.example(), blocks)
    seed, skipped, statistics, of_images = options.get("seed", 0), [], None, {}
    if k is None:
        names = [block.name for block in chosen]
        statistics, skipped = _counted(opened, names, region, progress)
        stream = CapturedStream(opened.network, opened.images, names)
        of_images = code_ratios(stream, names, region=region, boundary=boundary, filters=filters, seed=seed)
    else:
        for block in chosen:
            check_regions(block, k, region)
    found = []
    with _bar(len(chosen), progress) as bar:
        for block in chosen:
            fraction = 1.0 if statistics is None else pooled_fraction(statistics, block.name)
            found.append(
                rip_document(
                    block,
                    k,
                    fraction,
                    of_images=of_images.get(block.name, torch.zeros(0)),
                    region=region,
                    samples=samples,
                    boundary=boundary,
                    filters=filters,
                    effort=effort,
                    seed=seed,
                )
            )
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
        ``{"layer", "run", "decoder", "encoder_sha256", "images", "resumed_from", "curve", "validation", "skipped"}``.
    """
    from unconv.evaluate.decoder_training import Recipe, train

    options = {"batch": 32, **options}  # pyright: ignore
    opened, progress = open_model(model, images, options)
    batch, seed = options["batch"] or 32, options.get("seed", 0)
    recipe = Recipe(steps, batch, rate, held_out, crop, every, seed)
    recipe.check()
    config = opened.description | {"verb": "train-decoder", "layer": layer, **vars(recipe)}
    path = Path(out) if out is not None else Path("runs") / f"decoder-{_digest(config)}"
    run = RunDirectory(path, config)
    try:
        with _bar(steps, progress) as bar:
            return {"layer": layer, "run": str(path)} | train(opened, layer, recipe, run, bar)
    finally:
        run.close()


def open_model(model: Model, images: Images | None, options: ModelOptions) -> tuple[Opened, bool]:
    """Open a model and images as the options say, for what is built on these functions.

    Args:
        model: As for ``invert``.
        images: As for ``invert``.
        options: The options of every function here.

    Returns:
        The model and the images, and whether progress is to be shown.

    Raises:
        UsageError: If there is no such option, or one has no effect here.
        UnconvError: If the model or the images cannot be opened.
    """
    arguments = dict(options)
    progress = bool(arguments.pop("progress", False))
    known = ModelOptions.__annotations__
    for name in arguments:
        if name not in known:
            raise UsageError(f"there is no argument {name!r}; use some of {', '.join(known)}")
    return open_network(model, images, **arguments), progress  # pyright: ignore[reportArgumentType]


def _check_numbers(**numbers: int | None) -> None:
    for name, value in numbers.items():
        if value is not None and value < 1:
            raise UsageError(f"{name} is {value}; it is at least 1")


@contextmanager
def _bar(total: int, shown: bool) -> Iterator[Callable[[str, int], None]]:
    """Show a bar on stderr with the time left; in a log that is no terminal it prints seldom."""
    quiet = 0.2 if sys.stderr.isatty() else 30.0
    with tqdm(
        total=total,
        file=sys.stderr,
        mininterval=quiet,
        dynamic_ncols=True,
        leave=False,
        disable=not shown,
        bar_format=BAR,
    ) as bar:

        def done(message: str, units: int) -> None:
            bar.set_description_str(message, refresh=False)
            bar.update(units)

        yield done


@contextmanager
def _run(out: str | Path | None, config: dict[str, Any]) -> Iterator[RunDirectory]:
    run = InMemoryRun() if out is None else RunDirectory(out, config)
    try:
        yield run
    finally:
        run.close()


@contextmanager
def _cluster(address: str | None) -> Iterator[Any]:
    if address is None:
        yield None
        return
    from unconv.evaluate.ray import RayCluster

    cluster = RayCluster(address)
    try:
        yield cluster
    finally:
        cluster.close()


def _existing(network: Network, x: Tensor, task: Task) -> tuple[Task, list[str]]:
    """Return the task with side information that exists for its layer, and a remark where that is another one."""
    if not task.of_features:
        network.conv_blocks(x).get(task.layer)
        return task, []
    layer = network.layers(x).get(task.layer)
    if task.side_info == "none":
        return task, []
    kinds = network.function(layer.name, x.shape[1:]).side_info_kinds
    wanted = SIDE_INFO[: SIDE_INFO.index(task.side_info) + 1]
    below = next(kind for kind in reversed(wanted) if kind in kinds)
    if below == task.side_info:
        return task, []
    note = f"there are no {task.side_info} up to {layer.name}, so side_info={task.side_info!r} is {below!r}"
    return replace(task, side_info=below), [note]


def _report_tasks(
    opened: Opened,
    x: Tensor,
    names: Sequence[str],
    methods: Sequence[str] | None,
    side_info: Sequence[SideInfo] | None,
) -> tuple[list[Task], list[str]]:
    network, found = opened.network, opened.network.layers(x)
    blocks: set[str] = set()
    if methods is not None:
        blocks = {end for block in network.conv_blocks(x) for end in (block.name, block.output) if end is not None}
    tasks: list[Task] = []
    notes: dict[str, list[str]] = {}
    for name in names:
        kinds = network.function(name, x.shape[1:]).side_info_kinds
        missing = [kind for kind in side_info or SIDE_INFO if kind not in kinds]
        for kind in missing:
            notes.setdefault(kind, []).append(name)
        wanted = [kind for kind in side_info or SIDE_INFO if kind in kinds] or ["none"]
        for method in methods or ("linear", "gauss-newton"):
            if method == "linear":
                tasks.append(Task(name, method="linear"))
            elif method in FEATURES_METHODS:
                if found.get(name).gradient:
                    tasks += [Task(name, method=method, side_info=kind) for kind in wanted]  # pyright: ignore
                else:
                    notes.setdefault("gradient", []).append(name)
            elif name in blocks and method == DECODER:
                tasks.append(Task(name, method=method, side_info="switches"))
            elif name in blocks and method in BLOCK_METHODS:
                code: Code = "paper" if method == "iht" else "network"
                tasks.append(Task(name, "input", code, method, "switches"))
    for task in tasks:
        task.check()
    if not tasks:
        raise UsageError(f"no layer of the report can be inverted by {', '.join(methods or ())}; use linear")
    texts = {"gradient": "no gradient passes from {} to the image, so these are inverted linearly only"}
    text = "there are no {kind} up to {}: computed once, with the side information below"
    remarks = [texts.get(kind, text).format(", ".join(ns), kind=kind) for kind, ns in notes.items()]
    return tasks, remarks


def _equip(opened: Opened, x: Tensor, tasks: Sequence[Task], decoders: Files | None) -> None:
    """Give the network the trained decoders that tasks ask for."""
    if any(task.method == DECODER for task in tasks):
        from unconv.evaluate.decoders import open_decoders

        files = [] if decoders is None else [decoders] if isinstance(decoders, str | Path) else decoders
        blocks = opened.network.conv_blocks(x)
        found = open_decoders(opened.network, blocks, [Path(file) for file in files])
        opened.network.decoders = {name: decoder.decoder for name, decoder in found.items()}


def _fractions(
    opened: Opened, run: RunDirectory, tasks: Sequence[Task], settings: Settings, progress: bool
) -> dict[str, float]:
    """Return the share of regions in use of the blocks whose paper's code is made; read once over the images."""
    if settings.k is not None or all(task.code != "paper" for task in tasks):
        return {}
    from unconv.evaluate.theory import pooled_fraction

    blocks = opened.network.conv_blocks(opened.example())
    names = [blocks.get(task.layer).name for task in tasks if task.code == "paper"]

    def count() -> dict[str, float]:
        statistics, _ = _counted(opened, names, settings.region, progress)
        return {name: pooled_fraction(statistics, name) for name in names}

    return run.part("fractions", count)


def _counted(
    opened: Opened, names: Sequence[str], region: int | None, progress: bool
) -> tuple[Any, list[dict[str, str]]]:
    from unconv.evaluate.network import CapturedStream
    from unconv.evaluate.theory import count_nonzeros

    with _bar(len(opened.images) * len(names), progress) as bar:
        stream = CapturedStream(opened.network, opened.images, names)
        statistics, skipped = count_nonzeros(stream, names, region, bar)
    return statistics, [{"file": s.file, "reason": s.reason} for s in skipped]


def _fit_linear(
    opened: Opened,
    x: Tensor,
    tasks: Sequence[Task],
    run: RunDirectory,
    decoders: Files | None,
    reference_images: str | Path | None,
    seed: int,
) -> list[str]:
    """Fit the linear decoders that tasks read; a ``linear`` task and Gauss-Newton start from them."""
    layers = list(dict.fromkeys(task.layer for task in tasks if task.method in {"linear", "gauss-newton"}))
    if not layers:
        return []
    from unconv.evaluate.linear_fit import fit_linear

    given = Path(str(decoders)) if decoders is not None and Path(str(decoders)).is_dir() else None
    folder = None if isinstance(run, InMemoryRun) else run.path / "decoders"
    return fit_linear(
        opened.network,
        opened.images,
        x,
        layers,
        folder=folder,
        given=given,
        reference_folder=reference_images,
        seed=seed,
    )


def _planned(
    network: Network, x: Tensor, tasks: Sequence[Task], images: int, budget: float, run: RunDirectory
) -> dict[str, int]:
    from unconv.evaluate.budget import plan_passes, seconds_per_pass

    per_pass = run.part("seconds", lambda: seconds_per_pass(network, x, [task.layer for task in tasks]))
    passes = {layer: max(1, n) for layer, n in plan_passes(tasks, per_pass, images, budget).items()}
    run.write_config(passes=passes)
    return passes


def _invert_features(
    model: Model,
    features: Tensor,
    task: Task,
    passes: int | None,
    budget: float | None,
    decoders: Files | None,
    reference_images: str | Path | None,
    config: Any,
    options: ModelOptions,
) -> InvertResult:
    if not isinstance(features, Tensor) or features.ndim < 2 or not len(features):
        raise UsageError("features is a tensor of shape (N, *shape), as the layer gives them")
    size = options.get("size")
    if isinstance(model, nn.Module) and size is None:
        raise UsageError("features do not tell the size of the images; give size")
    opened, _ = open_model(model, None, options)
    x, run = opened.loaded.example(), InMemoryRun()
    opened.covered([task.layer], [task.layer])
    task, notes = _existing(opened.network, x, task)
    opened.images.paths = []  # no image is under test
    opened.images.need_one = False
    notes += _fit_linear(opened, x, (task,), run, decoders, reference_images, options.get("seed", 0))
    if budget is not None and passes is None:
        passes = _planned(opened.network, x, (task,), len(features), budget, run)[task.layer]
    found = reconstruct_features(opened.network, features, x.shape[1:], task, Settings(config=config), passes)
    rows = [
        {"image": i, "file": f"features-{i:04d}"} | task.fields() | result.numbers | {"picture": None}
        for i, result in enumerate(found)
    ]
    tensors = {i: (result.estimate, None) for i, result in enumerate(found)}
    return _result(task, rows, tensors, [], opened.network, tuple(notes), opened)


def _result(
    task: Task,
    rows: Sequence[dict[str, Any]],
    tensors: dict[int, Any],
    skipped: Sequence[SkippedImage],
    network: Network,
    notes: tuple[str, ...],
    opened: Opened,
) -> InvertResult:
    estimates, references, pictures = [], [], []
    for row in rows:
        estimate, reference = tensors.get(row["image"], (None, None))
        if estimate is None and reference is not None:
            estimate = torch.full_like(reference, torch.nan)
        estimates.append(estimate)
        references.append(reference)
        pictures.append(_pictures(network, estimate, reference) if task.recover == "image" else None)

    def numbers(name: str) -> Tensor:
        values = [row.get(name) for row in rows]
        return torch.tensor([float("nan") if v is None else v for v in values], dtype=torch.float64)

    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    return InvertResult(
        layer=task.layer,
        recover=task.recover,
        code=task.code,
        method=task.method,
        side_info=task.side_info,
        files=tuple(row["file"] for row in rows),
        estimates=tuple(estimates),
        references=tuple(references),
        relative_error=numbers("relative_error"),
        psnr=numbers("psnr"),
        ssim=numbers("ssim"),
        feature_error=numbers("feature_error"),
        seconds=numbers("seconds"),
        passes=tuple(row["passes"] for row in rows),
        status=tuple(row["status"] for row in rows),
        skipped=tuple(skipped),
        notes=notes,
        pictures=tuple(pictures),
        rows=tuple(dict(row) for row in rows),
    )


def _pictures(
    network: Network, estimate: Tensor | None, reference: Tensor | None
) -> tuple[Tensor | None, Tensor] | None:
    if estimate is None or estimate.ndim != 3:
        return None
    true = None if reference is None else reference[None]
    shown = network.preprocess.to_pixels(estimate[None], true)[0].clamp(0, 1)
    return (None if true is None else network.preprocess.to_pixels(true, true)[0].clamp(0, 1)), shown


def _safe(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_" else "-" for c in name)


def _digest(config: dict[str, Any]) -> str:
    # a run with a larger budget goes on in the same directory
    kept = {name: value for name, value in config.items() if name not in {"budget", "passes"}}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()[:8]
