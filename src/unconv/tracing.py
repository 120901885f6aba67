"""The layers of a network: any module's output, which of them can be inverted, and their features on a batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from unconv.block_extraction import find_conv_blocks
from unconv.conv_block import ConvBlocks, Skipped
from unconv.errors import UnconvError, UsageError
from unconv.graph import (
    NOT_REACHED,
    OUTPUT,
    Enough,
    another_image,
    as_input_of,
    check_visible,
    evaluating,
    find_module,
    first_line,
    image_by_image,
    pick,
    places_of,
    tensors_of,
    trace,
)
from unconv.io import near_names

ENDS = 8
SAMPLES = 4096  # entries of a layer that are compared between two forward passes
TOLERANCE = 1e-3  # relative to the largest, of that comparison
MIXED = 0.03  # the same, between an image alone and in a batch
MIXES = "its output for one image depends on the other images of the batch"
RANDOM = "it is random: forward passes of one image differ (dropout that is left on, noise, a drawn path)"
LEGEND = (
    "conv block: a convolution with its batch norm, activation and pooling. yes: one begins or ends there, and either "
    "name stands for it"
)
HANDED_ON = {"Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "Flatten", "Identity"}  # kinds that change no value


@dataclass(frozen=True)
class Layer:
    """One module's output, at its first call."""

    # path of the module, with the place in its output where that is a tuple or dict: layer1, encoder[0],
    # head['logits']. output is the whole network's.
    name: str
    kind: str  # class of the module
    input_shape: tuple[int, ...]  # shape of the first tensor that it reads, without the batch axis
    shape: tuple[int, ...]  # shape of its output for one image, without the batch axis
    block: bool = False  # whether a conv block is named by it: by its convolution, or by the module that ends it
    gradient: bool = True  # whether autograd records a way from the image to here


@dataclass(frozen=True)
class Layers:
    """The layers of a network, in the order of execution, and the modules whose output is none."""

    layers: tuple[Layer, ...]
    skipped: tuple[Skipped, ...] = ()
    path: str = ""  # of the graph of the image that they were found with
    branches: tuple[str, ...] = ()  # modules in which values may decide what runs; without any, all take the same path

    def __iter__(self) -> Iterator[Layer]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __repr__(self) -> str:
        rows = [("layer", "kind", "input", "output", "conv block")]
        for la in self.layers:
            given, shape = ("x".join(map(str, shape)) for shape in (la.input_shape, la.shape))
            rows.append((la.name, la.kind, given, shape, "yes" if la.block else ""))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        lines += [LEGEND] if any(la.block for la in self.layers) else []
        return "\n".join([*lines, *(f"skipped {s.module}: {s.reason}" for s in self.skipped)])

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the layers, in the order of execution."""
        return tuple(layer.name for layer in self.layers)

    def get(self, name: str) -> Layer:
        """Return the layer of a name; UsageError says why the module of that name is none, or lists near names."""
        for layer in self.layers:
            if layer.name == name:
                return layer
        reason = next((s.reason for s in self.skipped if name == s.module or name.startswith(f"{s.module}.")), None)
        if reason:
            raise UsageError(f"{name!r} is no layer: {reason}")
        near = near_names(name, self.names) or list(self.ends())
        raise UsageError(f"there is no layer {name!r}; use one such as {', '.join(near)}")

    def ends(self) -> tuple[str, ...]:
        """Return 6 to 8 names spread over the depth: the stem and the ends of the top-level blocks."""
        chosen = [layer for layer in _top_level(self) if layer.kind not in HANDED_ON] or list(self.layers)
        if len(chosen) > ENDS:
            # the last layer at each resolution, and more in between where these are few
            last = [run[-1] for run in _runs(chosen)]
            others = [layer for layer in chosen if layer not in last]
            count = max(0, min(ENDS - 2 - len(last), len(others)))
            last += [others[(2 * i + 1) * len(others) // (2 * count)] for i in range(count)]
            chosen = [layer for layer in chosen if layer in last]
            count = min(ENDS, len(chosen))
            chosen = [chosen[round((i + 1) * len(chosen) / count) - 1] for i in range(count)]
        return tuple(layer.name for layer in chosen)


def list_layers(model: nn.Module, x: Tensor, blocks: ConvBlocks | None = None) -> Layers:
    """Find every module whose output can be inverted: a floating-point tensor that depends on the image.

    The network is run a few times on the first image of ``x``, in evaluation mode, and left as it was. Modules that
    give tuples, lists or dicts have one layer per tensor. Where the forward pass fails, the layers up to there are
    found; UnconvError if there are none, or a module is compiled.
    """
    check_visible(model)
    image = as_input_of(model, x[:1])
    graph = trace(model, image)
    once, again = _run(model, image), _run(model, image, gradients=True)
    pair = _run(model, torch.cat([image, another_image(image)])) if image.device.type != "meta" else _Run({}, {})
    if blocks is None:
        try:
            blocks = find_conv_blocks(model, image)
        except UnconvError:
            blocks = ConvBlocks(())
    ends = {name for block in blocks for name in (block.name, block.output)}

    layers: list[Layer] = []
    skipped = dict(once.skipped)
    for name, output in once.outputs.items():
        with_gradient, both = again.outputs.get(name), pair.outputs.get(name)
        varies = with_gradient is not None and _differ(output.samples[0], with_gradient.samples[0])
        gradient = with_gradient is not None and with_gradient.layer.gradient
        reason = _not_of_the_image(output, both, gradient, varies or bool(graph.reads_values)) if both else ""
        if varies:
            reason = RANDOM
        if reason:
            skipped[name] = reason
            continue
        layers.append(replace(output.layer, block=name in ends, gradient=gradient))
    for path in _uncalled(model, {name.split("[")[0] for name in (*once.outputs, *once.skipped)}):
        skipped[path] = graph.unreached
    if not layers and once.stopped:
        raise UnconvError(f"the network cannot take an input of shape {tuple(x.shape)}: {once.stopped}")
    left_out = tuple(Skipped(module, reason) for module, reason in skipped.items())
    return Layers(tuple(layers), left_out, graph.path, graph.reads_values)


def capture(model: nn.Module, names: Iterable[str], x: Tensor) -> dict[str, Tensor]:
    """The features of layers on a batch, as copies that nothing in place can change.

    The forward pass stops after the last one, so what lies behind need not work. Of a module that is called several
    times, the first call counts. Features in half precision (autocast) come in the network's own type.

    Args:
        model: The network; run in evaluation mode without gradients, and left as it was.
        names: Names of layers, as in ``Layer.name``.
        x: The batch. Shape ``(N, *input)``; moved to the network's device and floating-point type.

    Returns:
        Per name, in the order of ``names``, the features. Shape ``(N, *layer.shape)``.

    Raises:
        UsageError: If the network has no such module, or its output has no such tensor.
        UnconvError: If the forward pass fails or ends before all were reached, or features are not finite.
    """
    outputs = _capture(model, names, x, inputs=False)
    features = {name: image_by_image(y, len(x), name) for name, y in outputs.items()}
    return {name: _check_finite(f"layer {name}", y, len(x)) for name, y in features.items()}


def capture_inputs(model: nn.Module, names: Iterable[str], x: Tensor) -> dict[str, Tensor]:
    """What modules read on a batch, in the manner of ``capture``: the true inputs of conv blocks, ``(N, M, *spatial)``.

    Several rows per image where another axis (frames, patches) is folded into the batch. Errors as for ``capture``.
    """
    inputs = _capture(model, names, x, inputs=True)
    return {name: _check_finite(f"the input of {name}", y, len(x)) for name, y in inputs.items()}


def _capture(model: nn.Module, names: Iterable[str], x: Tensor, *, inputs: bool) -> dict[str, Tensor]:
    wanted = tuple(dict.fromkeys(names))
    image = as_input_of(model, x)
    captured: dict[str, Tensor] = {}

    def keep(name: str, place: str, _: nn.Module, *given: Any) -> None:
        if name not in captured:
            value = next(tensors_of(given)) if inputs else pick(given[-1], place, name)
            value = value.detach().clone()
            half = value.is_floating_point() and image.is_floating_point()
            captured[name] = value.to(torch.promote_types(value.dtype, image.dtype)) if half else value
        if len(captured) == len(wanted):
            raise Enough

    with evaluating(model), ExitStack() as hooks:
        for name in wanted:
            module, place = find_module(model, name)
            look = partial(keep, name, place)
            if inputs:
                handle = module.register_forward_pre_hook(look, with_kwargs=True)
            else:
                handle = module.register_forward_hook(look)
            hooks.callback(handle.remove)
        try:
            model(image.clone())
        except UsageError:
            raise
        except Enough:
            pass
        except Exception as error:
            message = f"the network cannot take an input of shape {tuple(x.shape)}: {first_line(error)}"
            raise UnconvError(message) from error
    for name in wanted:
        if name not in captured:
            raise UnconvError(f"the forward pass does not reach {name} on an input of shape {tuple(x.shape)}")
    return {name: captured[name] for name in wanted}


def _check_finite(what: str, y: Tensor, count: int) -> Tensor:
    finite = y.flatten(1).isfinite().all(1) if y.ndim > 1 else y.isfinite()
    if not finite.all():
        # an axis that is not the batch (frames, patches) holds as many rows per image
        image = int((~finite).nonzero()[0]) * count // len(finite)
        raise UnconvError(f"{what} has NaN or infinite values for image {image} of the batch")
    return y


@dataclass(frozen=True)
class _Output:
    """A module's output in one forward pass, its shape with the batch axis, and some entries of each image."""

    layer: Layer
    full_shape: tuple[int, ...]
    samples: list[Tensor]


@dataclass(frozen=True)
class _Run:
    """The outputs of all modules in one forward pass by layer name, those that are none, and why the pass ended."""

    outputs: dict[str, _Output]
    skipped: dict[str, str]
    stopped: str | None = None


def _run(model: nn.Module, batch: Tensor, *, gradients: bool = False) -> _Run:
    """Run a network once and look at the output of every module, at its first call."""
    run = _Run({}, {})
    called: set[str] = set()

    def look(path: str, module: nn.Module, args: Any, options: Any, output: Any) -> None:
        if path in called:
            return
        called.add(path)
        read = next(tensors_of((args, options)), output)
        input_shape = tuple(read.shape[1:]) if isinstance(read, Tensor) else ()
        places = dict(places_of(output))
        if not places:
            run.skipped[path] = f"its output is of type {type(output).__name__} and holds no tensor"
        for place, y in places.items():
            if not y.is_floating_point():
                run.skipped[path + place] = f"its output is {str(y.dtype).removeprefix('torch.')}, not floating-point"
            elif not y.ndim:
                run.skipped[path + place] = "its output has no batch axis"
            elif not len(y):
                run.skipped[path + place] = NOT_REACHED
            else:
                # an axis that is folded into the batch (frames, windows) becomes its own
                folded = () if len(y) == len(batch) else (len(y) // len(batch),)
                shape = (*folded, *y.shape[1:])
                samples = [_sample(part) for part in y.detach().chunk(len(batch))]
                layer = Layer(path + place, type(module).__name__, input_shape, shape, gradient=y.requires_grad)
                run.outputs[layer.name] = _Output(layer, y.shape, samples)

    with evaluating(model, gradients=gradients), ExitStack() as hooks:
        for path, module in _callable_modules(model):
            hooks.callback(module.register_forward_hook(partial(look, path), with_kwargs=True).remove)
        try:
            model(batch.clone().requires_grad_(gradients and batch.is_floating_point()).clone())
        except Exception as error:
            return replace(run, stopped=first_line(error))
    return run


def _callable_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield every module that has a forward pass, with its layer name."""
    modules = dict(model.named_modules())
    for path, module in modules.items():
        if type(module).forward is not nn.Module.forward and (path or OUTPUT not in modules):
            yield path or OUTPUT, module


def _uncalled(model: nn.Module, called: set[str]) -> list[str]:
    """Return the paths of modules that were not called, without those inside of one that is named already."""
    named: list[str] = []
    for path, _ in _callable_modules(model):
        inside = path.startswith(tuple(f"{other}." for other in named))
        if not inside and path != OUTPUT and not any(f"{other}.".startswith(f"{path}.") for other in called):
            named.append(path)
    return named


def _sample(y: Tensor) -> Tensor:
    """Return at most 8192 entries, evenly spread, as a copy."""
    return y.flatten()[:: max(1, y.numel() // SAMPLES)].float().nan_to_num().clone()


def _differ(a: Tensor, b: Tensor, tolerance: float = TOLERANCE) -> bool:
    comparable = a.device.type != "meta" and a.shape == b.shape and a.numel() > 0
    return comparable and bool((a - b).abs().max() > tolerance * a.abs().max())


def _not_of_the_image(one: _Output, both: _Output, gradient: bool, unsteady: bool) -> str:
    """Return why an output is not one image's features, from one image and from a pair; empty if it is."""
    if unsteady and gradient and both.full_shape == one.full_shape:
        return ""  # called image by image
    doubled = both.full_shape[0] == 2 * one.full_shape[0]
    if not doubled or both.layer.shape != one.layer.shape:
        if doubled and len(both.full_shape) == len(one.full_shape):
            return "its shape depends on the image's values"
        axes = [i for i, (n, m) in enumerate(zip(one.full_shape, both.full_shape)) if m == 2 * n]
        return f"the batch is axis {axes[0]} of its output, not axis 0" if axes else "its output has no batch axis"
    if not gradient and not _differ(both.samples[0], both.samples[1]):
        return "its output does not depend on the image"
    if not unsteady and _differ(one.samples[0], both.samples[0], MIXED):
        return MIXES
    return ""


def _top_level(layers: Layers) -> list[Layer]:
    """Return the layers directly in the network; the largest block gives way to its parts while these are few."""
    found = {layer.name: layer for layer in layers if layer.name != OUTPUT}

    def children(prefix: str) -> list[str]:
        depth = prefix.count(".") + 1 if prefix else 0
        inside = [name for name in found if not prefix or name.startswith(f"{prefix}.")]
        names = dict.fromkeys(".".join(name.split(".")[: depth + 1]) for name in inside)
        # a module that gives several tensors stands for its parts, which give the same ones again
        return [name for name in names if name in found or not any(n.startswith(f"{name}[") for n in found)]

    chosen = children("")
    while True:
        few = len(chosen) <= ENDS and len(_runs(found[name] for name in chosen if name in found)) < ENDS - 2
        # a list of modules is no layer itself
        sizes = {name: len(children(name)) for name in chosen if few or name not in found}
        if not any(sizes.values()):
            return [found[name] for name in found if name in chosen]
        largest = max(sizes, key=lambda name: (name not in found, sizes[name]))
        i = chosen.index(largest)
        chosen[i : i + 1] = children(largest)


def _runs(layers: Iterable[Layer]) -> list[list[Layer]]:
    """Return layers in groups of the same resolution."""
    return [list(run) for _, run in groupby(layers, lambda layer: layer.shape[1:])]
