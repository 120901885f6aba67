"""The image, or a conv block's input, back from a layer, and the linear decoders of layers, as functions."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack

import torch
from torch import Tensor, nn

from unconv.api_options import (
    Files,
    Model,
    ModelOptions,
    RunOptions,
    count_blocks,
    linear_folder,
    open_model,
    progress_bar,
    ray_cluster,
    use_decoders,
)
from unconv.conv_block import SIDE_INFO, SideInfo
from unconv.errors import UnconvError, UsageError, check_whole
from unconv.evaluate.network import Images, Network, Opened
from unconv.evaluate.reconstruction import (
    DECODER,
    FROM_LINEAR,
    IN_PASSES,
    IN_STEPS,
    Recover,
    Settings,
    Task,
    reconstruct_features,
)
from unconv.evaluate.run_directory import InMemoryRun, RunDirectory
from unconv.results import InvertResult
from unconv.tracing import Layers

if TYPE_CHECKING:
    from unconv.inversion.calibration import Refinement
    from unconv.inversion.linear import LinearDecoder


def layers(model: Model, image: Images | None = None, **options: Unpack[ModelOptions]) -> Layers:
    """List every module whose output can be inverted, in execution order, and what is left out and why.

    Args:
        model: As for ``invert``.
        image: What the network is run on, as for ``invert``; seeded noise where ``None``.
        **options: How the model and the image are opened, see ``ModelOptions``.

    Returns:
        The layers, with their shapes; ``block`` says which are conv blocks.
    """
    opened, _ = open_model(model, image, options)
    return opened.network.layers(opened.loaded.example() if image is None else opened.example())


def invert(
    model: Model,
    layer: str,
    images: Images | None = None,
    *,
    features: Tensor | None = None,
    method: str | None = None,
    side_info: SideInfo = "none",
    recover: Recover = "image",
    code: Literal["network", "paper"] = "network",
    region: int | None = None,
    k: int | None = None,
    passes: int | None = None,
    budget: float | None = None,
    config: Any = None,
    **options: Unpack[RunOptions],
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
        passes: Most forward and backward passes per image; ``"min-norm"`` and ``"convex"`` count those of each conv
            block that they decode. The method's own where ``None``.
        budget: Seconds, turned into whole passes before work starts.
        config: Of the solver, such as a ``GaussNewtonConfig``. It is used as it is: what calibration finds (``noise``,
            ``robust``, where refinement stops paying) is left out.
        **options: How the model and the images are opened, and where results go, see ``RunOptions``.

    Returns:
        Estimates, what they should be, and how far they are from it; ``||estimate - x|| / ||x||`` is on the tensor
        that the network (or block) receives, PSNR and SSIM on pixels in ``[0, 1]``.

    Raises:
        UsageError: If a name or an argument's value does not exist.
        UnconvError: If no image could be inverted; says why for the first.
    """
    task = checked_task(layer, recover, code, method, side_info, region=region, k=k, passes=passes, budget=budget)
    method = task.method
    out = options.get("out")
    if features is not None:
        if images is not None or out is not None or options.get("ray") is not None:
            raise UsageError("features come without images, out and ray; leave those out")
        if not isinstance(features, Tensor) or features.ndim < 2 or not len(features):
            raise UsageError("features is a tensor of shape (N, *shape), as the layer gives them")
        if isinstance(model, nn.Module) and options.get("size") is None:
            raise UsageError("features do not tell the size of the images; give size")
    from unconv.evaluate.evaluation import Evaluation, Plan

    opened, progress = open_model(model, images, options, RunOptions)
    x = opened.example() if features is None else opened.loaded.example()
    task, notes = _existing(opened.network, x, task)
    opened.covered([layer], [layer])
    use_decoders(opened, x, (task,), options.get("decoders"))
    if features is not None:
        if task.side_info != "none" or not task.of_features:
            raise UsageError(
                "features alone give no side information and no code; use linear, gauss-newton or gradient"
            )
        opened.images.paths, opened.images.need_one = [], False  # no image is under test
    count = len(opened.images if features is None else features)
    given = {"verb": "invert", "tasks": [task.fields()], "region": region, "k": k, "passes": passes, "budget": budget}
    given |= opened.description | {"config": None if config is None else repr(config)}
    run = InMemoryRun() if out is None else RunDirectory(out, given)
    folder = None if out is None else run.path / "decoders"
    with (
        contextlib.closing(run),
        ray_cluster(options.get("ray")) as cluster,
        progress_bar(count, progress) as bar,
    ):
        opened.network.say = lambda message: bar(message, 0)
        settings = Settings(region, k, _fractions(opened, run, task, region, k, progress), config)
        notes += _fit_linear(opened, x, [layer], folder, options) if method in FROM_LINEAR else []
        if budget is not None:
            passes = _planned(opened.network, x, task, count, budget, run)
        refinements = {} if config is not None else _calibrated(opened.network, x.shape[1:], task, passes, folder)
        pictures = 0 if out is None else count
        plan = Plan((task,), passes, settings, pictures=pictures, keep=True, refinements=refinements)
        if features is not None:
            passes = next(iter(plan.targets(task)), passes)
            found = reconstruct_features(opened.network, features, x.shape[1:], task, settings, passes)
            about = task.fields() | {"picture": None}
            rows = [{"image": i, "file": f"features-{i:04d}"} | about | one.numbers for i, one in enumerate(found)]
            return _result(opened, task, rows, {i: (one.estimate, None) for i, one in enumerate(found)}, notes)
        evaluation = Evaluation(opened.network, opened.images, plan, run)
        evaluation.go(progress=bar, ray=cluster)
        rows = list(evaluation.rows())
        if all(row["relative_error"] is None for row in rows):
            raise UnconvError(rows[0]["status"])
        if out is not None:
            run.write_results(rows)
        tensors = {index: (estimate, reference) for index, estimate, reference in evaluation.tensors(0)}
    return _result(opened, task, rows, tensors, notes, evaluation.skipped())


def checked_task(
    layer: str,
    recover: Recover,
    code: Literal["network", "paper"],
    method: str | None,
    side_info: SideInfo,
    *,
    region: int | None,
    k: int | None,
    passes: int | None,
    budget: float | None,
) -> Task:
    """Return what ``invert`` is asked for, with its default method; UsageError where that does not go together."""
    if method is None:
        of_block = "convex" if recover == "input" else "gauss-newton"
        method = "iht" if code == "paper" else of_block
    task = Task(layer, recover, code, method, side_info)
    task.check()
    check_whole(region=region, k=k, passes=passes)
    if (region, k) != (None, None) and (task.of_features or method == DECODER):
        raise UsageError(
            f"region and k have no effect on {method}; they belong to a block's input and the paper's code"
        )
    if passes is not None and method not in (*IN_PASSES, *IN_STEPS):
        raise UsageError(f"passes have no effect on {method}, which is one step; leave them out")
    if budget is not None and method not in IN_PASSES:
        raise UsageError(f"a budget has no effect on {method}; leave it out")
    if None not in (passes, budget):
        raise UsageError("passes and budget both say how much work is done; give one of them")
    return task


def linear(
    model: Model,
    layers: str | Sequence[str],
    images: Images | None = None,
    *,
    decoders: Files | None = None,
    reference_images: str | Path | None = None,
    **options: Unpack[ModelOptions],
) -> dict[str, LinearDecoder]:
    """Fit the linear decoders of layers, all in one pass over reference images; no gradient, no training loop.

    Args:
        model: As for ``invert``.
        layers: The name of a layer, or several; see ``layers``.
        images: Images under test, as for ``invert``: they say what shape images have, and none of them is a reference
            image.
        decoders: A folder of decoders saved as ``LAYER.safetensors``; what is there is not fitted again.
        reference_images: Folder of images to fit to; synthetic ones and packaged photographs where ``None``.
        **options: How the model and the images are opened, see ``ModelOptions``.

    Returns:
        By layer, a decoder. Called with features ``(N, *shape)`` and the shape ``(C, H, W)`` of one image, it gives
        estimates ``(N, C, H, W)`` as the network receives them, not clipped to valid pixels. ``explained`` is the
        variance that it explains in held-out reference images, by octave of spatial frequency;
        ``expected_squared_error`` the posterior variance of an estimate at each pixel, and
        ``error_model.calibration`` how true that is. There is none of these with a single reference image.

    Raises:
        UsageError: If a name or an argument's value does not exist.
        UnconvError: If no reference image is usable.
    """
    names = [layers] if isinstance(layers, str) else list(layers)
    opened, progress = open_model(model, images, options)
    x = opened.example()
    for name in names:
        opened.network.layers(x).get(name)
    opened.covered(names, names)
    where: RunOptions = {"decoders": decoders, "reference_images": reference_images}
    # where values choose the way, a reference image that reaches one layer may not reach another
    together = [[name] for name in names] if opened.network.layers(x).branches else [names]
    with progress_bar(len(names), progress) as bar:
        opened.network.say = lambda message: bar(message, 0)
        notes = [note for some in together for note in _fit_linear(opened, x, some, None, where)]
    for note in dict.fromkeys(notes):
        print(f"note: {note}", file=sys.stderr)
    return {name: opened.network.linear[name] for name in names}


def _existing(network: Network, x: Tensor, task: Task) -> tuple[Task, list[str]]:
    """Return the task with side information that exists for its layer, and a remark where that is another one."""
    if not task.of_features:
        network.conv_blocks(x).get(task.layer)
        return task, []
    layer = network.layers(x).get(task.layer)
    if task.side_info == "none":
        return task, []
    kinds = network.function(layer.name, x.shape[1:]).side_info_kinds
    below = next(kind for kind in reversed(SIDE_INFO[: SIDE_INFO.index(task.side_info) + 1]) if kind in kinds)
    if below == task.side_info:
        return task, []
    note = f"there are no {task.side_info} up to {layer.name}, so side_info={task.side_info!r} is {below!r}"
    return replace(task, side_info=below), [note]


def _fractions(
    opened: Opened, run: RunDirectory, task: Task, region: int | None, k: int | None, progress: bool
) -> dict[str, float]:
    """Return the share of regions in use of the block whose paper's code is made; read once over the images."""
    if k is not None or task.code != "paper":
        return {}
    from unconv.evaluate.theory import pooled_fraction

    name = opened.network.conv_blocks(opened.example()).get(task.layer).name

    def count() -> dict[str, float]:
        return {name: pooled_fraction(count_blocks(opened, [name], region, progress)[0], name)}

    return run.part("fractions", count)


def _fit_linear(opened: Opened, x: Tensor, names: Sequence[str], folder: Path | None, options: RunOptions) -> list[str]:
    """Fit the linear decoders of layers that are in no folder; return remarks."""
    from unconv.evaluate.linear_fit import fit_linear

    decoders = options.get("decoders")
    if (given := linear_folder(decoders)) is None and decoders:
        raise UsageError("decoders are files; give a folder with LAYER.safetensors for linear decoders")
    opened.network.say(f"fitting the linear decoder{'s' if len(names) > 1 else ''} of {', '.join(names)}")
    return fit_linear(
        opened.network,
        opened.images,
        x,
        names,
        folder=folder,
        given=given,
        reference_folder=options.get("reference_images"),
        seed=opened.description["seed"],
    )


def _planned(network: Network, x: Tensor, task: Task, images: int, budget: float, run: RunDirectory) -> int:
    """Return the whole passes that fit into a budget, at least one; the run keeps them."""
    from unconv.evaluate.budget import MOST_WITHOUT_ROBUST, calibration_passes, plan_passes, seconds_per_pass

    layer, per_pass = task.layer, run.part("seconds", lambda: seconds_per_pass(network, x, [task.layer]))
    kinds = _known_kinds(network, x.shape[1:], task)

    def planned(calibration: int) -> int:
        return plan_passes((task,), per_pass, images, budget - calibration * per_pass[layer])[layer]

    passes = planned(calibration_passes(len(kinds)))
    if passes <= MOST_WITHOUT_ROBUST:
        passes = min(planned(calibration_passes()), MOST_WITHOUT_ROBUST)
    passes = max(1, passes)
    run.write_config(passes={layer: passes})
    return passes


def _known_kinds(network: Network, shape: Sequence[int], task: Task) -> tuple[SideInfo, ...]:
    """Return the kinds of side information up to the task's."""
    kinds = network.function(task.layer, shape).side_info_kinds
    return kinds[: kinds.index(task.side_info) + 1]


def _calibrated(
    network: Network, shape: Sequence[int], task: Task, passes: int | None, folder: Path | None
) -> dict[str, Refinement]:
    """Return how far refinement of the layer pays, by reference images."""
    if task.method != "gauss-newton":
        return {}
    from unconv.evaluate.budget import MOST_PASSES
    from unconv.evaluate.linear_fit import calibrated

    most = MOST_PASSES if passes is None else passes
    kinds = _known_kinds(network, shape, task)
    found = calibrated(network, task.layer, kinds, most=most, folder=folder)
    return {} if found is None else {task.layer: found}


def _result(
    opened: Opened,
    task: Task,
    rows: Sequence[dict[str, Any]],
    tensors: dict[int, tuple[Tensor | None, Tensor | None]],
    notes: Sequence[str],
    skipped: Sequence[Any] = (),
) -> InvertResult:
    estimates, references, pictures = [], [], []
    for row in rows:
        estimate, reference = tensors.get(row["image"], (None, None))
        if estimate is None and reference is not None:
            estimate = torch.full_like(reference, torch.nan)
        estimates.append(estimate)
        references.append(reference)
        pictures.append(_pictures(opened.network, estimate, reference) if task.recover == "image" else None)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    return InvertResult(
        layer=task.layer,
        recover=task.recover,
        code=task.code,
        method=task.method,
        side_info=task.side_info,
        estimates=tuple(estimates),
        references=tuple(references),
        rows=tuple(rows),
        skipped=tuple(skipped),
        notes=tuple(notes),
        pictures=tuple(pictures),
    )


def _pictures(
    network: Network, estimate: Tensor | None, reference: Tensor | None
) -> tuple[Tensor | None, Tensor] | None:
    """Return the original, where it is known, and the estimate in pixels; ``None`` where that is no image."""
    if estimate is None or estimate.ndim != 3:
        return None
    to_pixels, like = network.preprocess.to_pixels, None if reference is None else reference[None]
    original = None if like is None else to_pixels(like, like)[0].clamp(0, 1)
    return original, to_pixels(estimate[None], like)[0].clamp(0, 1)
