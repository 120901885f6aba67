"""The command line's main verbs as Python functions: ``unconv.invert`` and ``unconv.report``."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeAlias, TypeVar

import torch
from PIL import Image
from torch import Tensor, nn

from unconv.commands import report as report_verb
from unconv.commands.invert import chosen_tuning, chosen_way, equip, needed
from unconv.commands.loading import network_of, open_images, open_model
from unconv.commands.options import ImageOptions, Invert, Report, check_choices
from unconv.commands.progress import progress_bar
from unconv.errors import UnconvError, UsageError
from unconv.evaluate.in_memory_images import InMemoryImages
from unconv.evaluate.inversion_run import invert_stream, passes
from unconv.evaluate.network import CapturedStream, Network, first_stages
from unconv.evaluate.reconstruction import Reconstruction
from unconv.images import ImageStream
from unconv.models import LoadedModel, Numbers, adopt_model
from unconv.preprocessing import Preprocess, Preprocessing, UserPreprocess
from unconv.results import InvertResult, ReportResult

Model: TypeAlias = str | nn.Module
Images: TypeAlias = str | Path | Image.Image | Tensor | Sequence[str | Path] | Sequence[Image.Image | Tensor] | None
P = ParamSpec("P")
R = TypeVar("R")


def _in_python(function: Callable[P, R]) -> Callable[P, R]:
    """Let errors name keyword arguments where they name options of the command line."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except UnconvError as error:
            said = re.sub(r"--([a-z]+(?:-[a-z]+)*)", lambda found: _argument(found[1]), str(error))
            raise type(error)(said) from error

    return call


def _argument(option: str) -> str:
    own = {}
    return own.get(option, option.replace("-", "_"))


@_in_python
def invert(
    model: Model,
    layer: str,
    images: Images = None,
    *,
    start: Literal["layer", "image"] | None = None,
    method: str | None = None,
    decoders: Sequence[str | Path] = (),
    side_info: Literal["none", "switches", "gates"] = "switches",
    code: Literal["network", "paper"] = "network",
    region: int | None = None,
    prior: Literal["none", "smooth", "natural", "gaussian", "l1", "tv"] | None = None,
    prior_weight: float | None = None,
    optimizer: Literal["adam", "lbfgs"] = "adam",
    total_variation: float = 0.0,
    alpha_norm: float = 0.0,
    jitter: int = 0,
    effort: float = 1.0,
    weights: str | None = None,
    size: int | None = None,
    mean: Numbers | None = None,
    std: Numbers | None = None,
    preprocess: Callable[[Image.Image], Tensor] | None = None,
    batch: int = Invert.batch,
    limit: int | None = None,
    device: str | None = None,
    seed: int = 0,
    progress: bool = True,
) -> InvertResult:
    """Recover a stage's input, or the image, from what the stage leaves behind: ``unconv invert`` in Python.

    Args:
        model: A network (copied, and left as it is), or a name as on the command line: ``"cifar-vgg"``,
            ``"resnet18"``, ``"module:callable"``.
        layer: The stage, by the module path of its convolution, such as ``"features.3"``.
        images: A folder, a file, or several; PIL images; a batch of shape ``(N, C, H, W)``, or tensors of shape
            ``(C, H, W)``, as the network receives them. Photographs that ship with scikit-image where ``None``.
        start: Recover the stage's own input (``"layer"``) or the network's (``"image"``). The layer where ``None``,
            except for methods that invert the whole network.
        method: ``"iht"``, ``"transpose"``, ``"min-norm"``, ``"convex"``, ``"gauss-newton"``, ``"gradient"`` or
            ``"decoder"``, a trained one. Where ``None``: ``"convex"``, or ``"gauss-newton"`` for the image.
        decoders: Files from ``unconv train-decoder``, for the method ``"decoder"``; those that a clone of the
            repository carries are found.
        side_info: SideInformation besides the pooled values: nothing, the switches, or switches and on/off patterns.
        code: What the network computes there, or the paper's reading of it (Table 3): unit filters, no bias,
            magnitude pooling.
        region: Side of the pooling imposed on a stage that has none.
        prior: What is assumed where the code leaves the input open.
        prior_weight: Weight of the priors ``"l1"`` and ``"tv"``.
        optimizer: Of the method ``"gradient"``.
        total_variation: Weight of the total variation, for ``"gradient"``.
        alpha_norm: Weight of the mean sixth power of the image, for ``"gradient"``.
        jitter: Largest random shift in pixels before each step, for ``"gradient"``.
        effort: Factor of the solvers' largest numbers of steps.
        weights: Of a named model: a file, or the name of torchvision weights (downloaded then).
        size: Side of the square that images are resized and cropped to, in pixels.
        mean: Subtracted from each channel; with ``std``. Above 1 means pixels in 0..255.
        std: Divides each channel.
        preprocess: Of a network of your own: from an RGB PIL image to a tensor ``(C, H, W)``.
        batch: Images at a time.
        limit: Use only the first so many images.
        device: Where to compute. Where ``None``: where the network is, the CPU for a named one.
        seed: Seed of everything random.
        progress: Whether to show a bar on stderr.

    Returns:
        Estimates with what they should be, and how far they are from it. All of them are kept in memory.

    Raises:
        UsageError: If a name or an argument's value does not exist.
        UnconvError: If no image could be inverted; says why for the first.
    """
    options = Invert(
        model=_name(model),
        stage=layer,
        start=start,
        code=code,
        region=region,
        side_info=side_info,
        method=method,
        decoders=tuple(map(Path, decoders)),
        prior=prior,
        prior_weight=prior_weight,
        optimizer=optimizer,
        total_variation=total_variation,
        alpha_norm=alpha_norm,
        jitter=jitter,
        effort=effort,
        weights=weights,
        size=size,
        mean=_words(mean),
        std=_words(std),
        images=_paths(images),
        batch=batch,
        limit=limit,
        device=_device(model, device),
        seed=seed,
    )
    check_choices(options)
    way, tuning = chosen_way(options), chosen_tuning(options)
    tuning.check(way.method)
    loaded, network, stream = _open(model, images, options, preprocess)
    stages = first_stages(network, stream)
    names = needed(loaded, stages, layer, way)
    equip(options, (way,), network, stages)
    captured = CapturedStream(network, stream, lambda _: names)
    files: list[str] = []
    found: list[Reconstruction] = []
    with progress_bar(passes(way) * len(stream), shown=progress) as bar:
        for part, outcomes in invert_stream(captured, layer, way, region, tuning, bar):
            files += part.batch.names
            found += [_at_home(outcome) for outcome in outcomes]
    if all(outcome.numbers["relative_error"] is None for outcome in found):
        raise UnconvError(found[0].numbers["status"])

    def numbers(field: str) -> Tensor:
        values = [outcome.numbers[field] for outcome in found]
        return torch.tensor([float("nan") if v is None else v for v in values], dtype=torch.float64)

    return InvertResult(
        stage=layer,
        way=way,
        files=tuple(files),
        estimates=tuple(torch.full_like(o.reference, torch.nan) if o.estimate is None else o.estimate for o in found),
        references=tuple(o.reference for o in found),
        relative_error=numbers("relative_error"),
        psnr=numbers("psnr"),
        ssim=numbers("ssim"),
        seconds=numbers("seconds"),
        status=tuple(o.numbers["status"] for o in found),
        skipped=tuple(captured.skipped),
        pictures=tuple(_pair(network, o) for o in found),
    )


@_in_python
def report(
    model: Model,
    images: Images = None,
    out: str | Path | None = None,
    *,
    stages: Sequence[str] = (),
    methods: Sequence[str] = (),
    region: int = Report.region,
    samples: int = Report.samples,
    pictures: int = Report.pictures,
    effort: float = Report.effort,
    weights: str | None = None,
    size: int | None = None,
    mean: Numbers | None = None,
    std: Numbers | None = None,
    preprocess: Callable[[Image.Image], Tensor] | None = None,
    batch: int = Report.batch,
    limit: int | None = None,
    device: str | None = None,
    seed: int = 0,
    progress: bool = True,
) -> ReportResult:
    """Measure and invert every stage over images, and write a page: ``unconv report`` in Python.

    Args:
        model: As for ``invert``.
        images: As for ``invert``.
        out: Run directory; the same call again completes what is missing there. Named after the settings, below
            ``runs/`` in the current folder, where ``None``.
        stages: Only these stages; all where empty.
        methods: Only these methods of inverting; all that a report has where empty.
        region: Side of the pooling imposed where the paper's code meets a stage without pooling.
        samples: Random codes of the sampled model-RIP.
        pictures: Number of images whose reconstructions are kept as pictures.
        effort: Factor of the solvers' largest numbers of steps; less is quicker and leaves larger errors.
        weights: As for ``invert``.
        size: As for ``invert``.
        mean: As for ``invert``.
        std: As for ``invert``.
        preprocess: As for ``invert``.
        batch: Images at a time.
        limit: Use only the first so many images.
        device: As for ``invert``.
        seed: Seed of Gaussian filters and random codes.
        progress: Whether to show a bar on stderr.

    Returns:
        The report: the path of its page, and what it says of each stage.

    Raises:
        UsageError: If a name or an argument's value does not exist.
        UnconvError: If nothing could be measured, or the run directory is of another run.
    """
    options = Report(
        model=_name(model),
        images=_paths(images),
        out=None if out is None else Path(out),
        stages=tuple(stages),
        methods=tuple(methods),
        region=region,
        samples=samples,
        pictures=pictures,
        effort=effort,
        weights=weights,
        size=size,
        mean=_words(mean),
        std=_words(std),
        batch=batch,
        limit=limit,
        device=_device(model, device),
        seed=seed,
    )
    ways = report_verb.chosen_ways(options)
    loaded, network, stream = _open(model, images, options, preprocess)
    if isinstance(stream, InMemoryImages):
        given = {"given": "images in memory", "count": len(stream), "sha256": stream.digest()}
        shape = next(iter(stream)).inputs.shape[1:]
        if shape[0] not in {1, 3}:
            raise UnconvError(f"images of shape {tuple(shape)} make no pictures; a report needs one or three channels")
    else:
        given = report_verb.given(options, stream)
    job = report_verb.prepare(options, ways, loaded, network, stream, given, _command(model, stream, options))
    written = report_verb.write(job, bar=progress)
    assert written is not None  # one process alone
    return ReportResult(
        page=written.page,
        run=job.path,
        stages=written.findings.stages,
        rows=list(written.findings.rows()),
        skipped_modules=job.skipped_modules,
        skipped_images=written.findings.skipped_images,
    )


def _open(
    model: Model, images: Images, options: ImageOptions, preprocess: Callable[[Image.Image], Tensor] | None
) -> tuple[LoadedModel, Network, ImageStream]:
    given = _in_memory(images)
    if isinstance(model, str):
        if preprocess is not None:
            raise UsageError("a named model brings its own preprocess; leave it out, or give size, mean and std")
        loaded, network = open_model(options)
    else:
        if options.weights is not None:
            raise UsageError("weights belong to a named model; this network has its own")
        loaded = adopt_model(model, preprocess=preprocess, size=options.size, mean=options.mean, std=options.std)
        if given is not None and loaded.notes and all(isinstance(image, Tensor) for image in given):
            loaded = replace(loaded, preprocess=_of_tensors(given), notes=())
        network = network_of(loaded, options.device)
    if given is None:
        return loaded, network, open_images(options, loaded)
    if options.batch < 1 or (options.limit is not None and options.limit < 1):
        raise UsageError("batch and limit count images, so they are at least 1")
    return loaded, network, InMemoryImages(given, network.preprocess, options.batch, options.limit)


def _in_memory(images: Images) -> Sequence[Any] | None:
    """Images that are not files; ``None`` for files, and where nothing is given."""
    if images is None or isinstance(images, str | Path):
        return None
    if isinstance(images, Image.Image):
        return [images]
    if isinstance(images, Tensor):
        if images.ndim != 4:
            raise UsageError(f"images have shape {tuple(images.shape)}; give a batch (N, C, H, W)")
        return list(images)
    items = list(images)
    return None if items and all(isinstance(item, str | Path) for item in items) else items


def _paths(images: Images) -> tuple[Path, ...]:
    if isinstance(images, str | Path):
        return (Path(images),)
    if images is None or isinstance(images, Image.Image) or _in_memory(images) is not None:
        return ()
    return tuple(Path(item) for item in images)  # pyright: ignore[reportArgumentType]


def _of_tensors(tensors: Sequence[Tensor]) -> Preprocessing:
    """What tensors of which nothing is said are taken for: pixels in ``[0, 1]`` if they could be."""
    if all(len(x) == 3 and x.numel() and x.min() >= 0 and x.max() <= 1 for x in tensors):
        return Preprocess()
    return UserPreprocess(_only_tensors)


def _only_tensors(image: Image.Image) -> Tensor:
    raise UnconvError(f"this network was given tensors, not pictures such as {image}")


def _name(model: Model) -> str:
    if not isinstance(model, str | nn.Module):
        raise UsageError(f"model is of type {type(model).__name__}; give an nn.Module or a name such as 'cifar-vgg'")
    return model if isinstance(model, str) else type(model).__name__


def _device(model: Model, device: str | None) -> str:
    if device is not None or isinstance(model, str):
        return device or "cpu"
    return next((str(tensor.device) for tensor in (*model.parameters(), *model.buffers())), "cpu")


def _words(numbers: Numbers | None) -> str | None:
    if numbers is None or isinstance(numbers, str):
        return numbers
    return ",".join(map(str, [numbers] if isinstance(numbers, int | float) else numbers))


def _command(model: Model, stream: ImageStream, options: Report) -> str:
    if isinstance(model, str) and not isinstance(stream, InMemoryImages):
        return report_verb.command(options)
    default = Report(model=options.model)
    what = repr(model) if isinstance(model, str) else f"model: {options.model}"
    said = [f"{name}={value!r}" for name, value in vars(options).items() if value != getattr(default, name)]
    return f"unconv.report({', '.join([what, 'images', *(s for s in said if not s.startswith('images='))])})  # Python"


def _at_home(outcome: Reconstruction) -> Reconstruction:
    tensors = (outcome.picture, outcome.estimate, outcome.reference)
    return Reconstruction(outcome.numbers, *(None if t is None else t.detach().cpu() for t in tensors))  # pyright: ignore


def _pair(network: Network, outcome: Reconstruction) -> tuple[Tensor, Tensor] | None:
    if outcome.picture is None:
        return None
    true = outcome.reference[None].to(network.device)
    return network.preprocess.to_pixels(true, true)[0].cpu().clamp(0, 1), outcome.picture
