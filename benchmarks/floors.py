"""What our steps cost beside the bare torch calls that any version must make: ``python benchmarks/floors.py``.

The first layers of VGG-19's shape with Gaussian filters, and a photograph. Both sides in turn, medians of the ratios
within a run, into ``floors.json`` beside this file; a target, where there is one, is the largest ratio.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.benchmark import Timer

from unconv.block_extraction import find_conv_blocks
from unconv.decode.convex import convex
from unconv.evaluate.run_directory import environment
from unconv.images import read_image, sample_photographs
from unconv.inversion.frozen_network import LayerFunction
from unconv.inversion.jacobian import Jacobian
from unconv.io import write_json
from unconv.measure.rip import sample_ratios
from unconv.operators import ConvOperator, gaussian_like
from unconv.paper.fig2 import SIZES
from unconv.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from unconv.recover import iht
from unconv.sparsity import Pooled
from unconv.tracing import capture_inputs

SIDE = 96  # of the photograph, in pixels
SECONDS = 1.0  # that each pair is timed for
RUNS = 9  # in which both sides are called in turn
SHAPES = {"conv2_1": (2, 64, 128, 2), "conv3_1": (2, 128, 256, 4), "conv5_1": (4, 512, 512, 16)}
"""Batch, channels, filters, and by how much the map is smaller than the image."""
POOL_1, CONV_2_1 = "4", "5"

Row = dict[str, Any]
Call = Callable[[], object]


def vgg_start() -> nn.Module:
    """Return conv(1,1) to conv(2,1) of VGG with Gaussian filters, twice their variance for the ReLUs."""
    layers: list[nn.Module] = []
    for seed, (inputs, outputs) in enumerate([(3, 64), (64, 64), (64, 128)]):
        layer = nn.Conv2d(inputs, outputs, 3, padding=1)
        layer.weight.data = 2**0.5 * gaussian_like(layer.weight.data, seed)
        # without biases a black start sits on the bend of every ReLU, where no gradient leads away
        nn.init.normal_(layer.bias, 0, 0.1, generator=torch.Generator().manual_seed(seed))  # pyright: ignore
        layers += [layer, nn.ReLU()] + ([nn.MaxPool2d(2)] if seed == 1 else [])
    return nn.Sequential(*layers).eval().requires_grad_(False)


def photograph(side: int) -> Tensor:
    """Return the astronaut as a network receives it. Shape ``(1, 3, side, side)``."""
    preprocess = Preprocess(resize=side, crop=side, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    return preprocess(read_image(sample_photographs()[0]))[None]


def seconds(call: Call) -> float:
    """Return the median time of a call."""
    return Timer("call()", globals={"call": call}).blocked_autorange(min_run_time=SECONDS).median


def paired(ours: Call, floor: Call, times: tuple[Call, int] | None = None) -> dict[str, Any]:
    """Return times of both sides taken in turn, the order turned around in every other run, and ratios within a run.

    ``times``: a shorter run of ours and by how many steps it is shorter. The time of one step is then their difference
    by that number, so that preparations cancel.
    """
    calls = [ours, floor] if times is None else [ours, floor, times[0]]
    repeats = [max(1, round(SECONDS / RUNS / len(calls) / _clock(call, 1))) for call in calls]
    found = []
    for run in range(RUNS):
        order = range(len(calls)) if run % 2 else reversed(range(len(calls)))
        clocked = {i: _clock(calls[i], repeats[i]) for i in order}
        one = clocked[0] if times is None else (clocked[0] - clocked[2]) / times[1]
        found.append((one, clocked[1], one / clocked[1]))
    each = np.array(found)
    quartiles = np.percentile(each[:, 2], (25, 75)).tolist()
    return {
        "ours": float(np.median(each[:, 0])),
        "floor": float(np.median(each[:, 1])),
        "ratio": float(np.median(each[:, 2])),
        "quartiles": quartiles,
    }


def _clock(call: Call, repeats: int) -> float:
    """Return the seconds of one of several calls in a row."""
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def row(name: str, setting: str, measured: dict[str, Any], target: float | None, call: Call) -> Row:
    """Return one line of the result; where it misses its target, with the operations that take the time."""
    result: Row = {"name": name, "setting": setting, **measured, "target": target}
    if target is not None and result["ratio"] > target:
        with torch.profiler.profile() as profile:
            call()
        events = sorted(profile.key_averages(), key=lambda event: -event.self_cpu_time_total)
        total = sum(event.self_cpu_time_total for event in events)
        result["profile"] = [
            {"operation": event.key, "percent": 100 * event.self_cpu_time_total / total, "calls": event.count}
            for event in events[:6]
        ]
    return result


def one_step_iht(image: Tensor) -> Iterator[Row]:
    """Convolution, pooling, unpooling, transposed convolution; and a step of more of them."""
    for name, (batch, channels, filters, shrunk) in SHAPES.items():
        side = max(4, image.shape[-1] // shrunk)
        generator = torch.Generator().manual_seed(0)
        weight = torch.randn(filters, channels, 3, 3, generator=generator)
        x = torch.randn(batch, channels, side, side, generator=generator)
        operator = ConvOperator(weight, x.shape[1:], padding=1).normalised()
        w = operator.weight

        def bare(x: Tensor = x, w: Tensor = w) -> Tensor:
            values, switches = F.max_pool2d(F.conv2d(x, w, padding=1), 2, return_indices=True)
            return F.conv_transpose2d(F.max_unpool2d(values, switches, [2, 2]), w, padding=1)

        half = filters * (side // 2) ** 2 // 2
        models = {"signed": Pooled(2, signed=True), "magnitude": Pooled(2), "half kept": Pooled(2, k=half)}
        for kind, model in models.items():
            once = partial(iht, operator, x, model)
            yield row("one-step IHT", f"{name}, {kind}", paired(once, bare), 1.05, once)
            if name == "conv2_1":
                few, many = (partial(iht, operator, x, model, steps=steps, step_size=0.1) for steps in (2, 8))
                yield row("a step of IHT", f"{name}, {kind}", paired(many, bare, (few, 6)), 1.15, many)


def convex_step(model: nn.Module, image: Tensor) -> Iterator[Row]:
    """A step of the convex decoder of conv(2,1): bare, one convolution and its transpose."""
    name = CONV_2_1
    block = find_conv_blocks(model, image).get(name).with_region(2)
    x = capture_inputs(model, [name], image)[name]
    code, w, h = block.encode(x), block.operator.weight, block.operator.forward(x)

    def bare() -> None:
        F.conv2d(x, w, padding=1)
        F.conv_transpose2d(h, w, padding=1)

    for kind, prior in (("no prior", None), ("smooth", "smooth")):
        # its first steps look for their length
        few, many = (partial(convex, block, code, prior=prior, max_steps=n, tolerance=0.0) for n in (10, 40))
        yield row("a step of the convex decoder", f"conv2_1, {kind}", paired(many, bare, (few, 30)), 1.25, many)


def jacobian_products(model: nn.Module, image: Tensor) -> Iterator[Row]:
    """An inner step of Gauss-Newton from pool(1), one ``J`` and one ``J^T``: bare, chains of masked convolutions."""
    function = LayerFunction(model, POOL_1, image.shape[1:])
    first, second = (model[i].weight.contiguous(memory_format=torch.channels_last) for i in (0, 2))  # pyright: ignore
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    h = model[0](image)  # pyright: ignore
    gate = (h > 0).to(h)
    h = model[2](h.relu())  # pyright: ignore
    pooled, switches = F.max_pool2d(h.relu(), 2, return_indices=True)
    gate_2 = (h > 0).to(h)

    def bare() -> None:
        v = F.conv2d(noise.contiguous(memory_format=torch.channels_last), first, padding=1) * gate
        v = F.conv2d(v, second, padding=1) * gate_2
        w = v.flatten(2).gather(2, switches.flatten(2)).view_as(pooled)
        v = F.max_unpool2d(w, switches, [2, 2]) * gate_2
        F.conv_transpose2d(F.conv_transpose2d(v, second, padding=1) * gate, first, padding=1)

    for side_info in function.side_info_kinds:
        known = function.record(image, side_info)
        jacobian = Jacobian(lambda x, known=known: function(x, known), image)
        ours = partial(lambda jacobian: jacobian.adjoint(jacobian.forward(noise)), jacobian)
        yield row("J and J^T", f"pool(1), side information {side_info}", paired(ours, bare), 1.25, ours)


def rip_sampling() -> Iterator[Row]:
    """Ratios of Figure 2's layer, codes drawn: bare, dense transposed convolutions of codes that are there already."""
    samples, dense = 20480, 512  # of the paper's figure, about
    for dtype in (torch.float64, torch.float32):
        operator = SIZES.operator(0).to(dtype)
        z = torch.randn(dense, *operator.output_shape, generator=torch.Generator().manual_seed(0)).to(dtype)
        bare = partial(lambda o, z: [o.adjoint(z).flatten(1).norm(dim=1) for _ in range(samples // dense)], operator, z)
        ours = partial(sample_ratios, operator, Pooled("map"), SIZES.k, samples)
        target = 1 / 20 if dtype == torch.float64 else None  # the figure is computed in float64
        yield row(f"{samples} ratios of model-RIP", f"Figure 2, {str(dtype)[6:]}", paired(ours, bare), target, ours)


def steps(side: int) -> Iterator[Row]:
    """All steps, and how each is printed."""
    model, image = vgg_start(), photograph(side)
    with torch.no_grad():
        for part in (one_step_iht(image), convex_step(model, image), jacobian_products(model, image), rip_sampling()):
            for one in part:
                print(f"{one['name']:30} {one['setting']:40} {one['ratio']:8.3f} (target {one['target']})", flush=True)
                yield one


def run(script: str, title: str, measured: Callable[[int], Iterator[Row]]) -> None:
    """Measure and write the rows for the side of the photograph that the command line names."""
    parser = argparse.ArgumentParser(description=title.splitlines()[0])
    parser.add_argument("--side", type=int, default=SIDE)
    parser.add_argument("--out", type=Path, default=Path(script).with_suffix(".json"))
    chosen = parser.parse_args()
    rows = list(measured(chosen.side))
    write_json(chosen.out, {"side": chosen.side, "rows": rows, "environment": environment()})


if __name__ == "__main__":
    run(__file__, __doc__ or "", steps)
