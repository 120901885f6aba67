"""What our steps cost beside the bare torch calls that any version must make."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from unconv.bench.profile import profile
from unconv.bench.subject import REGION, BenchSubject
from unconv.bench.timing import paired_seconds, per_step, ratio_row
from unconv.decode.convex import convex
from unconv.experiments.fig2 import SETTING
from unconv.invert.gauss_newton import Continuation, Jacobian, Objective, Weighting, conjugate_gradients
from unconv.invert.surgery import SIDE_INFO, Features, SideInfo
from unconv.measure.activity import Activity
from unconv.measure.coherence import coherence
from unconv.measure.rip import sample_ratios
from unconv.operators import ConvOperator
from unconv.recover import iht
from unconv.sparsity import Pooled

FEW, MANY = 2, 8  # steps of the shorter and of the longer run, whose difference is what a step costs
EARLY, LATE = 10, 40  # the same of the convex decoder, whose first steps look for their length
RATIOS = 4096  # codes of a timing of model-RIP sampling
ONE_STEP, T_STEP, INNER, SAMPLING = 1.05, 1.15, 1.25, 20.0
SHAPES = {
    "VGG conv2_1": (2, 64, 128, 2),
    "VGG conv3_1": (2, 128, 256, 4),
    "VGG conv5_1": (4, 512, 512, 16),
}
"""Batch, channels, filters, and by how much the map is smaller than the image."""

Row = dict[str, Any]


def one_step_iht(subject: BenchSubject, runs: int) -> list[Row]:
    """One-step IHT: convolution, pooling, unpooling, transposed convolution.

    Args:
        subject: Gives the side of the image and the device; filters and maps are Gaussian.
        runs: Number of paired runs.

    Returns:
        A row per shape and kind of pooling.
    """
    rows = []
    for name, (batch, channels, filters, shrunk) in SHAPES.items():
        side = max(4, subject.image.shape[-1] // shrunk)
        operator, x = _layer(batch, channels, filters, side, subject.image.device)
        k = filters * (side // 2) ** 2 // 2
        models = {"signed": Pooled(2, signed=True), "magnitude": Pooled(2), "magnitude, half kept": Pooled(2, k=k)}
        with torch.inference_mode():
            calls: dict[str, Callable[[], object]] = {"floor": _one_step_floor(operator, x)}
            calls |= {word: _iht(operator, x, model, 1) for word, model in models.items()}
            times = paired_seconds(calls, runs, x.device)
            for word in models:
                found = ratio_row(times, word, "floor")
                bare = "conv2d, max_pool2d with indices, max_unpool2d, conv_transpose2d"
                shape = [batch, channels, filters, side]
                row = _floor_row("one-step-iht", f"{name}, {word}", found, bare, at_most=ONE_STEP, shape=shape)
                rows.append(_explained(row, calls[word]))
    return rows


def t_step_iht(subject: BenchSubject, runs: int) -> list[Row]:
    """A step of IHT, from the difference of longer and shorter runs.

    Args:
        subject: As for ``one_step_iht``.
        runs: Number of paired runs.

    Returns:
        A row per kind of pooling.
    """
    batch, channels, filters, shrunk = SHAPES["VGG conv2_1"]
    side = max(4, subject.image.shape[-1] // shrunk)
    operator, x = _layer(batch, channels, filters, side, subject.image.device)
    k = filters * (side // 2) ** 2 // 2
    rows = []
    for word, model in {"signed": Pooled(2, signed=True), "magnitude": Pooled(2), "half kept": Pooled(2, k=k)}.items():
        with torch.inference_mode():
            few, many = (_iht(operator, x, model, steps, 0.1) for steps in (FEW, MANY))
            found = _step_ratio(_one_step_floor(operator, x), few, many, runs, x.device)
            bare = "the calls of one-step-iht, once per step"
            row = _floor_row("t-step-iht", f"VGG conv2_1, {word}", found, bare, at_most=T_STEP)
            rows.append(_explained(row, many))
    return rows


def convex_step(subject: BenchSubject, runs: int) -> list[Row]:
    """A step of the convex decoder: its floor is one convolution and its transpose.

    Args:
        subject: The layer and its input.
        runs: Number of paired runs.

    Returns:
        A row with the smooth metric, and one without.
    """
    operator, code = subject.conv.operator, subject.conv.encode(subject.inner)
    z = operator.forward(subject.inner)

    def floor() -> None:
        F.conv2d(subject.inner, operator.weight, padding=1)
        F.conv_transpose2d(z, operator.weight, padding=1)

    def steps(count: int, prior: Any) -> Callable[[], object]:
        return lambda: convex(subject.conv, code, prior=prior, max_steps=count, tolerance=0.0)

    rows = []
    for word, prior in {"no prior": None, "smooth": "smooth"}.items():
        with torch.inference_mode():
            found = _step_ratio(floor, steps(EARLY, prior), steps(LATE, prior), runs, z.device, LATE - EARLY)
            bare = "conv2d, conv_transpose2d"
            row = _floor_row("convex-step", f"pool(1) through conv(2,1), {word}", found, bare, at_most=INNER)
            rows.append(_explained(row, steps(LATE, prior)))
    return rows


def gauss_newton_step(subject: BenchSubject, runs: int) -> list[Row]:
    """An inner step of Gauss-Newton: one ``J`` and one ``J^T``, which bare are chains of convolutions and masks.

    Args:
        subject: The network and the image.
        runs: Number of paired runs.

    Returns:
        A row per kind of side information.
    """
    features = Features(subject.module, subject.pool, subject.image.shape[1:])
    forward, backward = _bare_chains(subject)
    noise = torch.randn(subject.image.shape, generator=torch.Generator().manual_seed(0)).to(subject.image)
    rows = []
    for side_info in SIDE_INFO:
        step = _inner_step(features, subject.image, side_info)
        answer = forward(noise)

        def floor(answer: Tensor = answer) -> None:
            with torch.inference_mode():
                forward(noise)
                backward(answer)

        found = _step_ratio(floor, lambda s=step: s(FEW), lambda s=step: s(MANY), runs, noise.device)
        bare = "conv2d and conv_transpose2d with masks, gather and unpooling, channels last"
        row = _floor_row("gauss-newton-step", f"pool(1), known: {side_info}", found, bare, at_most=INNER)
        rows.append(_explained(row, lambda s=step: s(MANY)))
    return rows


def rip_sampling(subject: BenchSubject, runs: int) -> list[Row]:
    """Ratios of random codes per second, codes drawn, beside dense transposed convolutions of codes that are there.

    Args:
        subject: Gives the device and, for two dimensions, the layer conv(2,1).
        runs: Number of paired runs.

    Returns:
        A row for Figure 2's layer in either type, and one for conv(2,1).
    """
    rows = []
    for dtype in (torch.float64, torch.float32):
        operator = SETTING.operator(0).to(dtype).to(subject.image.device)
        found = _sampling(operator, Pooled("map"), SETTING.k, RATIOS, 512, runs)
        word = f"Figure 2, one dimension, {str(dtype).removeprefix('torch.')}"
        # the figure is computed in float64
        target = SAMPLING if dtype == torch.float64 else None
        rows.append(_floor_row("rip-sampling", word, found, DENSE, at_least=target, k=SETTING.k))
    operator = subject.conv.operator.normalised().full()
    side = operator.output_shape[1]
    for k in (32, operator.output_shape[0] * (side // 2) ** 2 // 4):
        found = _sampling(operator, Pooled(2), k, 32 if k > 64 else 512, 2, runs)
        rows.append(_floor_row("rip-sampling", f"conv(2,1), 2x2 regions, k = {k}", found, DENSE, k=k))
    return rows


def verbs(subject: BenchSubject, runs: int) -> list[Row]:
    """The measuring verbs' own work beside the bare calls.

    Args:
        subject: The layer and its input.
        runs: Number of paired runs.

    Returns:
        Rows of ``coherence`` and ``sparsity``; ``rip`` has its own.
    """
    weight, stage, x = subject.conv.operator.weight, subject.conv, subject.inner
    taps = math.prod(weight.shape[2:])

    def products() -> None:
        flat = weight.flatten(1) / weight.flatten(1).norm(dim=1, keepdim=True)
        # every pair of filters once at zero shift, and all pairs of taps for the shifts
        (flat @ flat.T).fill_diagonal_(0).abs().max()
        rows = weight.permute(2, 3, 0, 1).reshape(-1, weight.shape[1])
        (rows @ rows.T).view(taps, len(weight), taps, len(weight)).abs().amax()

    def layer() -> None:
        h = F.relu(F.conv2d(x, weight, stage.bias, padding=1))
        h.count_nonzero()
        F.max_pool2d(h, REGION).count_nonzero()

    def activity() -> None:
        h = stage.activate(stage.preactivation(x))
        Activity().update(stage.name, h, stage.pool(h).values)

    with torch.inference_mode():
        shifted = paired_seconds({"ours": lambda: coherence(weight), "floor": products}, runs, x.device)
        counted = paired_seconds({"ours": activity, "floor": layer}, runs, x.device)
    return [
        _floor_row(
            "coherence", "filters of conv(2,1)", ratio_row(shifted, "ours", "floor"), "products of all taps, largest"
        ),
        _floor_row(
            "sparsity", "conv(2,1)", ratio_row(counted, "ours", "floor"), "conv2d, relu, max_pool2d, count_nonzero"
        ),
    ]


DENSE = "conv_transpose of dense codes that are drawn already, and its norm; the ratio is samples per second"
FLOORS: dict[str, Callable[[BenchSubject, int], list[Row]]] = {
    "one-step-iht": one_step_iht,
    "t-step-iht": t_step_iht,
    "convex-step": convex_step,
    "gauss-newton-step": gauss_newton_step,
    "rip-sampling": rip_sampling,
    "verbs": verbs,
}


def _layer(batch: int, channels: int, filters: int, side: int, device: torch.device) -> tuple[ConvOperator, Tensor]:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(filters, channels, 3, 3, generator=generator)
    x = torch.randn(batch, channels, side, side, generator=generator)
    return ConvOperator(weight, x.shape[1:], padding=1).normalised().to(device), x.to(device)


def _iht(operator: ConvOperator, x: Tensor, model: Pooled, steps: int, step_size: float = 1.0) -> Callable[[], object]:
    return lambda: iht(operator, x, model, steps=steps, step_size=step_size)


def _one_step_floor(operator: ConvOperator, x: Tensor) -> Callable[[], Tensor]:
    w = operator.weight

    def floor() -> Tensor:
        values, switches = F.max_pool2d(F.conv2d(x, w, padding=1), 2, return_indices=True)
        return F.conv_transpose2d(F.max_unpool2d(values, switches, [2, 2]), w, padding=1)

    return floor


def _step_ratio(
    floor: Callable[[], object],
    few: Callable[[], object],
    many: Callable[[], object],
    runs: int,
    device: torch.device,
    steps: int = MANY - FEW,
) -> dict[str, dict[str, float]]:
    def bare() -> None:
        # as many in a row as the difference of ours holds: one call by itself finds cold caches, and costs more
        for _ in range(steps):
            floor()

    times = paired_seconds({"few": few, "floor": bare, "many": many}, runs, device)
    ours = per_step(times["few"], times["many"], steps)
    return ratio_row({"ours": ours, "floor": [t / steps for t in times["floor"]]}, "ours", "floor")


def _sampling(operator: ConvOperator, model: Pooled, k: int, samples: int, dense: int, runs: int) -> Any:
    shape = (dense, *operator.output_shape)
    z = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(operator.weight)
    calls: dict[str, Callable[[], object]] = {
        "floor": lambda: operator.adjoint(z).flatten(1).norm(dim=1),
        "ours": lambda: sample_ratios(operator, model, k, samples),
    }
    with torch.inference_mode():
        times = paired_seconds(calls, runs, operator.device)
    each = {"floor": [t / dense for t in times["floor"]], "ours": [t / samples for t in times["ours"]]}
    found = ratio_row(each, "floor", "ours")
    return {"above": found["below"], "below": found["above"], "ratio": found["ratio"]}


def _inner_step(features: Features, x: Tensor, side_info: SideInfo) -> Callable[[int], object]:
    """Conjugate gradients of a number of steps at one image, as ``gauss_newton`` runs them."""
    known = features.record(x, side_info)
    target = features(x, known)
    jacobian = Jacobian(lambda v: features(v, known), x)
    weighting = Weighting.learn(jacobian, x) if side_info == "gates" else Weighting(None)
    objective = Objective.of(features, target, known, weighting, None, "auto", 0.0)
    product = objective.quadratic(jacobian, x)
    right = jacobian.adjoint(target)
    none = torch.zeros(len(x), device=x.device)
    metric = Continuation.of(torch.full_like(none, 0.2), none > 0, x)
    return lambda steps: conjugate_gradients(product, right, metric, tolerance=none, max_steps=steps)


def _bare_chains(subject: BenchSubject) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """The derivative of pool(1) and its transpose at the image, by bare calls."""
    last = torch.channels_last
    one, two = subject.first_layers
    first, second = (conv.weight.detach().contiguous(memory_format=last) for conv in (one, two))
    with torch.no_grad():
        h = one(subject.image.contiguous(memory_format=last))
        gate = (h > 0).to(h)
        h = two(h.relu())
        _, switches = F.max_pool2d(h.relu(), 2, return_indices=True)
        gate_2 = (h > 0).to(h)
    places = switches.permute(0, 2, 3, 1).flatten(1, 2)

    def forward(v: Tensor) -> Tensor:
        h = F.conv2d(v.contiguous(memory_format=last), first, padding=1) * gate
        h = F.conv2d(h, second, padding=1) * gate_2
        pooled = h.permute(0, 2, 3, 1).flatten(1, 2).gather(1, places)
        return pooled.unflatten(1, tuple(switches.shape[2:])).permute(0, 3, 1, 2)

    def backward(w: Tensor) -> Tensor:
        h = F.max_unpool2d(w, switches, [2, 2]) * gate_2
        return F.conv_transpose2d(F.conv_transpose2d(h, second, padding=1) * gate, first, padding=1)

    return forward, backward


def _explained(row: Row, call: Callable[[], object]) -> Row:
    """A row that misses its target, with the profile that says why."""
    return row if row["met"] is not False else row | {"profile": profile(call)}


def _floor_row(
    group: str,
    setting: str,
    found: dict[str, dict[str, float]],
    bare: str,
    *,
    at_most: float | None = None,
    at_least: float | None = None,
    **more: Any,
) -> Row:
    median = found["ratio"]["median"]
    met = None if at_most is None and at_least is None else median <= (at_most or math.inf)
    if at_least is not None:
        met = median >= at_least
    return {
        "kind": "floor",
        "group": group,
        "setting": setting,
        "bare": bare,
        "ours_seconds": found["above"],
        "floor_seconds": found["below"],
        "ratio": found["ratio"],
        "at_most": at_most,
        "at_least": at_least,
        "met": met,
        **more,
    }
