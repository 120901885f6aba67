"""One task on one batch: an image, or a conv block's input, back from a layer, and how far it is from the truth."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.util import find_spec
from typing import Any, Literal, NamedTuple, cast, get_args

import torch
from torch import Tensor

from unconv.conv_block import IMAGE, SIDE_INFO, SideInfo
from unconv.errors import UnconvError, UsageError, check_choice
from unconv.evaluate.network import OTHER_PATH, Captured, Network, same_path
from unconv.images import quality
from unconv.inversion.calibration import Refinement
from unconv.inversion.frozen_network import NO_SIDE_INFORMATION
from unconv.inversion.gauss_newton import GaussNewtonConfig
from unconv.inversion.invert import invert_features
from unconv.inversion.misfit import best_fit
from unconv.io import finite
from unconv.linalg import column, norms, relative_norm
from unconv.sparsity import CodeKind

Recover = Literal["image", "input"]

FEATURES_METHODS = ("linear", "gauss-newton", "gradient")
FROM_LINEAR = ("linear", "gauss-newton")  # that begin with the layer's linear decoder
BLOCK_METHODS = ("iht", "transpose", "min-norm", "convex")
DECODER = "decoder"
METHODS = (*FEATURES_METHODS, DECODER, *BLOCK_METHODS)
NO_GAIN = "no_gain"  # the status of images whose refinement ended where more passes lost on reference images
IN_PASSES = ("gauss-newton", "gradient")  # by passes through the network, which a budget is dealt out in
IN_STEPS = ("min-norm", "convex")  # by passes through each conv block that is decoded
SLOW = (*IN_PASSES, "convex")  # what comes behind the cheap part of an evaluation, and within its budget
QUALITY = ("psnr", "ssim", "lpips", "same_class")
ERROR_WHITE = 0.25  # expected error that is white in its picture, as a share of the range of pixels
NUMBERS = ("relative_error", *QUALITY, "expected_error", "feature_error", "seconds", "passes")


@dataclass(frozen=True)
class Task:
    """What is recovered from which layer, and how."""

    layer: str  # the layer; for recover="input" and codes of the paper, a conv block
    recover: Recover = "image"  # "image", or "input": the conv block's own input
    # "network": what the network computes; "paper": unit filters, no bias, magnitude pooling, k regions (Table 3)
    code: CodeKind = "network"
    method: str = "gauss-newton"  # one of METHODS
    side_info: SideInfo = "none"  # "none", "switches" or "gates"
    noise: float = 0.0  # level of Gaussian noise on the features, relative to their root mean square

    def fields(self) -> dict[str, Any]:
        """Return the task as columns of ``results.parquet``."""
        return asdict(self)

    @property
    def of_features(self) -> bool:
        """Whether it inverts a layer's features; otherwise the code of a conv block."""
        return self.method in FEATURES_METHODS

    def check(self) -> None:
        """Raise UsageError where what is asked does not go together."""
        if not isinstance(self.layer, str):
            kind = type(self.layer).__name__
            raise UsageError(f"layer is of type {kind}; give the name of one layer, such as 'layer1'; see layers")
        check_choice(METHODS, method=self.method)
        check_choice(get_args(Recover), recover=self.recover)
        check_choice(get_args(CodeKind), code=self.code)
        check_choice(SIDE_INFO, side_info=self.side_info)
        if self.of_features and (self.recover, self.code) != ("image", "network"):
            raise UsageError(f"{self.method} gives the image from the network's features; use one of iht, transpose, "
                             "min-norm, convex for recover='input' or code='paper'")  # fmt: skip
        if self.method == DECODER and (self.recover, self.code, self.side_info) != ("image", "network", "switches"):
            raise UsageError("a trained decoder gives the image, and knows the switches; use side_info='switches'")
        if self.method == "linear" and self.side_info != "none":
            raise UsageError("a linear decoder reads the features alone; use side_info='none'")
        if not 0 <= self.noise < math.inf:
            raise UsageError(f"noise is {self.noise}; it is a share of the features, such as 0.1")
        if self.noise and not (self.of_features and self.side_info == "none"):
            raise UsageError("noise is on the features that are sent; use it with side_info='none'")


@dataclass(frozen=True)
class Settings:
    """What reconstruction is told besides the task."""

    region: int | None = None  # side of the max pooling imposed on a conv block without pooling
    k: int | None = None  # regions that the paper's code keeps per image; from fractions where None
    # share of regions in use by conv block, 0 to 1, over all images
    fractions: Mapping[str, float] = field(default_factory=dict)
    config: Any = None  # of the solver; its own where None


class Reconstruction(NamedTuple):
    """What one task gave for one image."""

    numbers: dict[str, Any]  # those of NUMBERS, None where there is none, and "status"
    estimate: Tensor | None  # what was recovered, as the network counts; None where nothing was
    reference: Tensor | None  # what it should be, the same shape; None where only features are known
    picture: Tensor | None  # the estimate in pixels, shape (C, H, W), where it is an image
    error_map: Tensor | None = None  # expected error of each pixel, shape (1, H, W), where the solver tells


class Solved(NamedTuple):
    """What a solver gave for a batch; ``expected``: its squared error at each pixel, a mean over channels."""

    estimate: Tensor
    status: Sequence[str]
    passes: Sequence[int | None]
    seconds: float
    expected: Tensor | None = None


def noisy_name(layer: str, noise: float) -> str:
    """Return the name under which what is fitted to a layer's noisy features is kept."""
    return f"{layer} noise {noise:g}" if noise else layer


def refinement_of(task: Task, refinements: Mapping[str, Refinement]) -> Refinement | None:
    """Return how far refinement of a task pays, by ``noisy_name``; ``None`` where that was not tried."""
    return refinements.get(noisy_name(task.layer, task.noise)) if task.method == "gauss-newton" else None


def with_noise(features: Tensor, noise: float, seeds: Sequence[int]) -> Tensor:
    """Return features with noise; that of an image depends on its seed alone. Shape ``(N, *shape)``."""
    if not noise:
        return features
    pairs = zip(features, seeds, strict=True)
    return torch.cat([add_noise(y[None], noise, torch.Generator().manual_seed(seed)) for y, seed in pairs])


def add_noise(features: Tensor, noise: float, generator: torch.Generator) -> Tensor:
    """Return features ``y + noise * rms(y) * n`` with ``n`` of the normal distribution. Shape ``(N, *shape)``."""
    if not noise:
        return features
    size = column(features.flatten(1).square().mean(1).sqrt(), features)
    return features + noise * size * torch.randn(features.shape, generator=generator).to(features)


def reconstruct(
    network: Network,
    captured: Captured,
    task: Task,
    settings: Settings,
    *,
    passes: int | None = None,
    made: int = 0,
    starts: Sequence[Tensor] = (),
) -> list[Reconstruction]:
    """Do a task for a batch; what fails for one image is said in its status and does not stop the others.

    ``passes`` are made, behind those ``made`` before, from the best of ``starts``.
    """

    def do(places: Sequence[int]) -> list[Reconstruction]:
        some = captured.select(places)
        x, reference = some.batch.inputs.to(network.device), _reference(network, some, task)
        if task.of_features:
            features = with_noise(some.features[task.layer], task.noise, some.batch.indices)
            begun = [start[list(places)] for start in starts]
            solved = _from_features(network, features, x, x.shape[1:], task, settings, passes, made, begun)
        else:
            from unconv.evaluate.block_reconstruction import solve_code

            if same_path(network, some)[1]:
                raise UnconvError(OTHER_PATH)
            solved = solve_code(network, some, x, task, settings, passes)
        if not torch.isfinite(solved.estimate).all():
            raise UnconvError(f"inverting {task.layer} by {task.method} gave NaN or infinite values; check the weights")
        is_image = task.recover == "image" or network.conv_blocks(x).get(task.layer).source == IMAGE
        return _compare(network, solved, reference, is_image=is_image)

    results: list[Reconstruction] = []
    for places, done, reason in network.in_parts(range(len(captured.batch.names)), do):
        if done is None:
            reference = _reference(network, captured.select(places), task)[0]
            done = [Reconstruction(dict.fromkeys(NUMBERS) | {"status": reason}, None, reference.cpu(), None)]
        results += done
    return results


def _reference(network: Network, captured: Captured, task: Task) -> Tensor:
    """Return what is to be recovered."""
    x = captured.batch.inputs.to(network.device)
    return captured.inputs[network.conv_blocks(x).get(task.layer).name] if task.recover == "input" else x


def reconstruct_features(
    network: Network, features: Tensor, shape: Sequence[int], task: Task, settings: Settings, passes: int | None
) -> list[Reconstruction]:
    """Invert features alone, without their images; the errors are those of the features."""
    function = network.function(task.layer, shape)
    if features.shape[1:] != torch.Size(function.shape):
        expected = ", ".join(map(str, ("N", *function.shape)))
        raise UsageError(f"features have shape {tuple(features.shape)}; layer {task.layer} gives ({expected})")
    features = features.to(network.device, torch.float32)
    solved = _from_features(network, features, None, shape, task, settings, passes)
    with torch.no_grad():
        errors = relative_norm(function(solved.estimate) - features, features).tolist()
    pictures = network.preprocess.to_pixels(solved.estimate).cpu().clamp(0, 1)
    results = []
    for i, (passes, status) in enumerate(zip(solved.passes, solved.status, strict=True)):
        numbers = {"feature_error": finite(errors[i]), "seconds": solved.seconds, "passes": passes, "status": status}
        results.append(Reconstruction(dict.fromkeys(NUMBERS) | numbers, solved.estimate[i].cpu(), None, pictures[i]))
    return results


def solver_config(noise: float) -> GaussNewtonConfig:
    """Return how features with a level of noise are fitted: not nearer than ``||n|| / ||y + n||`` (discrepancy)."""
    config = GaussNewtonConfig()
    return replace(config, tolerance=max(config.tolerance, noise / math.sqrt(1 + noise**2)))


def _from_features(
    network: Network,
    features: Tensor,
    x: Tensor | None,
    shape: Sequence[int],
    task: Task,
    settings: Settings,
    passes: int | None,
    made: int = 0,
    starts: Sequence[Tensor] = (),
) -> Solved:
    name, refined = noisy_name(task.layer, task.noise), task.method == "gauss-newton"
    decoder, function = network.linear.get(name), network.function(task.layer, shape)
    if task.method == "linear" and decoder is None:
        raise UnconvError(f"there is no linear decoder of layer {task.layer}")
    config, found = settings.config, None
    if refined and config is None:
        config, found = solver_config(task.noise), None if decoder is None else decoder.refinement
        config = replace(config, robust_after=max(0, config.robust_after - made))
    known = NO_SIDE_INFORMATION
    use: SideInfo = "none" if x is None else task.side_info
    if found is not None:
        use = found.helpful(use, GaussNewtonConfig().passes if passes is None else passes)
        config = found.applied(cast(GaussNewtonConfig, config), use)
    if x is not None and use != "none":
        known = function.record(x, use)
    preconditioner = network.preconditioner(task.layer, name) if refined else None
    number = itertools.count(2)  # the first pass only looks

    def watch(_: Tensor) -> None:
        network.say(f"{task.layer} by {task.method}, {task.side_info}: pass {next(number)}")

    start = time.perf_counter()
    result = invert_features(
        function,
        features,
        known,
        method=cast(Any, task.method),
        passes=passes,
        box=network.box,
        initial=best_fit(function, features, known, [image.to(features) for image in starts]),
        decoder=decoder,
        preconditioner=preconditioner,
        config=config,
        progress=watch,
    )
    seconds = (time.perf_counter() - start) / len(features)
    expected = None
    if task.method == "linear" and decoder is not None and decoder.error_model is not None:
        expected = decoder.expected_squared_error(result.value)
    return Solved(result.value, result.status, result.passes, seconds, expected)


def _compare(network: Network, solved: Solved, reference: Tensor, *, is_image: bool) -> list[Reconstruction]:
    # relative_error = ||x^ - x|| / ||x|| on the tensor that the network receives; PSNR and SSIM on pixels in [0, 1]
    errors = relative_norm(solved.estimate - reference, reference).tolist()
    pictures, maps = None, None
    scores: dict[str, Sequence[float] | None] = {}
    if is_image:
        true = network.preprocess.to_pixels(reference, reference).cpu().clamp(0, 1)
        pictures = network.preprocess.to_pixels(solved.estimate, reference).cpu().clamp(0, 1)
        if pictures.ndim == 4:
            decibels, similarity = quality(true, pictures)
            judge = network.judge
            scores = {
                "psnr": decibels.tolist(),
                "ssim": similarity.tolist(),
                "same_class": judge and judge.same_class(reference, solved.estimate, true, pictures),
            }
            if find_spec("torchmetrics") is not None:
                from unconv.evaluate.metrics import perceptual

                scores["lpips"] = perceptual(true, pictures)
    if solved.expected is not None:
        # of all C values of a pixel, relative to the image: sqrt(C sum e^2) / ||x||
        expected = (solved.expected * reference.shape[1]).flatten(1).sum(1).sqrt() / norms(reference)
        scores["expected_error"] = expected.tolist()
        preprocess = network.preprocess
        unit = preprocess.to_pixels(reference + 1, reference) - preprocess.to_pixels(reference, reference)
        size = unit.square().mean(1).sqrt() * solved.expected.sqrt()  # in pixels' units
        maps = (size / ERROR_WHITE).clamp(0, 1)[:, None].cpu()
    results = []
    for i, error in enumerate(errors):
        numbers = dict.fromkeys(NUMBERS) | {"status": solved.status[i]}
        if math.isfinite(error) and reference[i].any():
            numbers |= {"relative_error": error, "seconds": solved.seconds, "passes": solved.passes[i]}
            numbers |= {name: finite(values[i]) for name, values in scores.items() if values is not None}
        else:
            numbers["status"] = "what is to be recovered is zero, so there is no relative error"
        picture = None if pictures is None else pictures[i]
        error_map = None if maps is None else maps[i]
        results.append(Reconstruction(numbers, solved.estimate[i].cpu(), reference[i].cpu(), picture, error_map))
    return results
