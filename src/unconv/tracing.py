"""The layers of a network: any module's output, which of them can be inverted, and their features on a batch."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from unconv import html_repr
from unconv.block_extraction import find_conv_blocks
from unconv.conv_block import Skipped
from unconv.errors import UnconvError, UsageError
from unconv.graph import as_input_of, check_visible, evaluating, first_line, tensors_of, trace

OUTPUT = "output"  # the layer that is the whole network
ENDS = 8
SAMPLES = 4096  # entries of a layer that are compared between two forward passes
TOLERANCE = 1e-3  # relative, of that comparison
HANDED_ON = {"Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "Flatten", "Identity"}  # kinds that change no value


@dataclass(frozen=True)
class Layer:
    """One module's output, at its first call.

    Attributes:
        name: Path of the module, with the place in its output where that is a tuple or dict: ``layer1``,
            ``encoder[0]``, ``head['logits']``. ``output`` is the whole network's.
        kind: Class of the module.
        input_shape: Shape of the first tensor that it reads, without the batch axis.
        shape: Shape of its output for one image, without the batch axis.
        block: Whether a conv block is named by it: by its convolution, or by the module that ends it.
        gradient: Whether the gradient passes from here to the image.
    """

    name: str
    kind: str
    input_shape: tuple[int, ...]
    shape: tuple[int, ...]
    block: bool = False
    gradient: bool = True


@dataclass(frozen=True)
class Layers:
    """The layers of a network.

    Attributes:
        layers: In the order of execution.
        skipped: Modules whose output is no layer, and why.
        random: Layers that differ between two forward passes of the same image, the first one first.
        path: What ``execution_path`` gives for the image that they were found with.
        branches: Modules in which the image's values may decide what runs; where there are none, every image takes
            the same path.
    """

    layers: tuple[Layer, ...]
    skipped: tuple[Skipped, ...] = ()
    random: tuple[str, ...] = ()
    path: str = ""
    branches: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[Layer]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def _repr_html_(self) -> str:
        header = ("layer", "kind", "input", "features", "conv block")
        rows = [(la.name, la.kind, la.input_shape, la.shape, "yes" if la.block else "") for la in self.layers]
        skipped = html_repr.grid(("left out", "why"), [(s.module, s.reason) for s in self.skipped])
        return html_repr.grid(header, rows) + (skipped if self.skipped else "")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the layers, in the order of execution."""
        return tuple(layer.name for layer in self.layers)

    def get(self, name: str) -> Layer:
        """The layer of a name.

        Args:
            name: As in ``Layer.name``.

        Returns:
            The layer.

        Raises:
            UsageError: If there is none. The message says why the module of that name is none, or lists near names.
        """
        for layer in self.layers:
            if layer.name == name:
                return layer
        reason = next((s.reason for s in self.skipped if name == s.module or name.startswith(f"{s.module}.")), None)
        if reason:
            raise UsageError(f"{name!r} is no layer: {reason}")
        parts = [n for n in self.names if n.startswith((f"{name}.", f"{name}["))]
        near = parts[-3:] or difflib.get_close_matches(name, self.names, 3, 0.5) or list(self.ends())
        raise UsageError(f"there is no layer {name!r}; use one such as {', '.join(near)}")

    def ends(self) -> tuple[str, ...]:
        """Names of 6 to 8 layers spread over the depth: the stem and the ends of the top-level blocks.

        Returns:
            The names in the order of execution; fewer where the network has fewer layers.
        """
        chosen = [layer for layer in _top_level(self) if layer.kind not in HANDED_ON] or list(self.layers)
        if len(chosen) > ENDS:
            # the last layer at each resolution, and more in between where these are few
            last = [run[-1] for run in _runs(chosen)]
            others = [layer for layer in chosen if layer not in last]
            last += _spread(others, max(0, min(ENDS - 2 - len(last), len(others))))
            chosen = _spread([layer for layer in chosen if layer in last], ENDS)
        return tuple(layer.name for layer in chosen)


def list_layers(model: nn.Module, x: Tensor) -> Layers:
    """Find every module whose output can be inverted: a floating-point tensor that depends on the image.

    The network is run a few times on one image, in evaluation mode, and left as it was. Modules that give tuples,
    lists or dicts have one layer per tensor. Where the forward pass fails, the layers up to there are found.

    Args:
        model: Any module whose forward pass takes one tensor.
        x: An input, with the batch axis; its first image is used.

    Returns:
        The layers, and what was left out.

    Raises:
        UnconvError: If a module is compiled, or the forward pass fails before any layer.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(2048, 10))
        >>> [(layer.name, layer.shape) for layer in list_layers(net.eval(), torch.zeros(1, 3, 16, 16))]
        [('0', (8, 16, 16)), ('1', (8, 16, 16)), ('2', (2048,)), ('3', (10,)), ('output', (10,))]
    """
    check_visible(model)
    image = as_input_of(model, x[:1])
    graph = trace(model, image)
    with_gradient = _outputs(model, image, gradients=True)
    once = _outputs(model, image)
    pair = _outputs(model, torch.cat([image, _another(image)])) if image.device.type != "meta" else _Outputs({}, {})
    try:
        blocks = find_conv_blocks(model, image)
        ends = {name for block in blocks for name in (block.name, block.output)}
    except UnconvError:
        ends = set()

    layers, random = [], []
    skipped = dict(once.skipped)
    for name, found in once.tensors.items():
        again, both = with_gradient.tensors.get(name), pair.tensors.get(name)
        gradient = again is not None and again.gradient
        varies = again is not None and _differ(found.sample, again.sample)
        reason = _not_of_the_image(found, both, gradient)
        if not reason and both and not varies and not graph.reads_values and _differ(found.sample, both.halves[0], 0.1):
            reason = "its output for one image depends on the other images of the batch"
        if reason:
            skipped[name] = reason
            continue
        layers.append(Layer(name, found.kind, found.input_shape[1:], found.per_image(1), name in ends, gradient))
        if varies:
            random.append(name)
    unreached = f"not reached, the forward pass stopped: {once.stopped}" if once.stopped else "not reached"
    for path in _topmost(model, {name.split("[")[0] for name in (*once.tensors, *once.skipped)}):
        skipped[path] = unreached if once.stopped else "never called in the forward pass"
    if not layers and once.stopped:
        raise UnconvError(f"the network cannot take an input of shape {tuple(x.shape)}: {once.stopped}")
    left_out = tuple(Skipped(module, reason) for module, reason in skipped.items())
    return Layers(tuple(layers), left_out, tuple(random), graph.path, graph.reads_values)


def execution_path(model: nn.Module, x: Tensor) -> str:
    """Return the way that an image takes through a network: equal to ``Layers.path`` where the same modules run.

    One forward pass. ``x`` is one image with its batch axis. Not needed where ``Layers.branches`` is empty.
    """
    return trace(model, x).path


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
    return {name: _check_finite(f"layer {name}", _per_image(y, len(x)), len(x)) for name, y in outputs.items()}


def capture_inputs(model: nn.Module, names: Iterable[str], x: Tensor) -> dict[str, Tensor]:
    """What modules read on a batch, in the manner of ``capture``: the true inputs of conv blocks.

    Args:
        model: The network; run in evaluation mode without gradients, and left as it was.
        names: Paths of modules.
        x: The batch. Shape ``(N, *input)``.

    Returns:
        Per name, the first tensor that the module reads. Shape ``(N, M, *spatial)``; several rows per image where
        another axis (frames, patches) is folded into the batch.

    Raises:
        UsageError: If the network has no such module.
        UnconvError: If the forward pass fails or ends before all were reached, or an input is not finite.
    """
    inputs = _capture(model, names, x, inputs=True)
    return {name: _check_finite(f"the input of {name}", y, len(x)) for name, y in inputs.items()}


def _capture(model: nn.Module, names: Iterable[str], x: Tensor, *, inputs: bool) -> dict[str, Tensor]:
    wanted = tuple(dict.fromkeys(names))
    image = as_input_of(model, x)
    modules = {name: _module_of(model, name) for name in wanted}
    captured: dict[str, Tensor] = {}

    def keep(name: str, value: Any) -> None:
        if name not in captured:
            captured[name] = _pick(name, "" if inputs else _suffix(model, name), value).detach().clone()
            if captured[name].is_floating_point() and image.is_floating_point():
                captured[name] = captured[name].to(torch.promote_types(captured[name].dtype, image.dtype))
        if len(captured) == len(wanted):
            raise _Enough

    with evaluating(model), ExitStack() as hooks:
        for name, module in modules.items():
            if inputs:
                before = partial(lambda name, _, args, options: keep(name, (args, options)), name)
                handle = module.register_forward_pre_hook(before, with_kwargs=True)
            else:
                handle = module.register_forward_hook(partial(lambda name, _, __, y: keep(name, y), name))
            hooks.callback(handle.remove)
        try:
            model(image.clone())
        except _Enough:
            pass
        except UsageError:
            raise
        except Exception as error:
            message = f"the network cannot take an input of shape {tuple(x.shape)}: {first_line(error)}"
            raise UnconvError(message) from error
    for name in wanted:
        if name not in captured:
            raise UnconvError(f"the forward pass does not reach {name} on an input of shape {tuple(x.shape)}")
    return {name: captured[name] for name in wanted}


class _Enough(BaseException):
    """Ends a forward pass of which the rest is not needed; no ``except Exception`` of a network swallows it."""


def _module_of(model: nn.Module, name: str) -> nn.Module:
    modules = dict(model.named_modules(remove_duplicate=False))
    path = name if name in modules else name.split("[")[0]
    if path == OUTPUT and OUTPUT not in modules:
        return model
    if not path or path not in modules:
        near = difflib.get_close_matches(path, [m for m in modules if m], 3, 0.5)
        raise UsageError(f"the network has no module {path!r}" + (f"; near: {', '.join(near)}" if near else ""))
    return modules[path]


def _suffix(model: nn.Module, name: str) -> str:
    """Return the place in a module's output that a layer's name asks for: ``[0]``, ``['key']`` or nothing."""
    if name in dict(model.named_modules(remove_duplicate=False)):
        return ""
    return name[len(name.split("[")[0]) :]


def _pick(name: str, suffix: str, value: Any) -> Tensor:
    parts = dict(_named(value)) if suffix else {"": next(tensors_of(value), None)}
    if isinstance(value, Tensor):
        parts[""] = value
    if (tensor := parts.get(suffix)) is None:
        raise UsageError(f"there is no layer {name!r}; its module gives {', '.join(parts) or 'no tensor'}")
    return tensor


def _named(value: Any, place: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a module's output with their places, ``[0]`` or ``['key']``; one alone has none."""
    if isinstance(value, Tensor):
        yield place, value
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            yield from _named(item, f"{place}[{i}]")
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _named(item, f"{place}[{key!r}]")


def _per_image(y: Tensor, count: int) -> Tensor:
    """Return features with one row per image: an axis folded into the batch (frames, windows) becomes its own."""
    if y.ndim and len(y) != count and len(y) % count == 0:
        return y.unflatten(0, (count, -1))
    return y


def _check_finite(what: str, y: Tensor, count: int) -> Tensor:
    finite = y.flatten(1).isfinite().all(1) if y.ndim > 1 else y.isfinite()
    if not finite.all():
        image = int((~finite).nonzero()[0]) * count // len(finite)
        raise UnconvError(f"{what} has NaN or infinite values for image {image} of the batch")
    return y


@dataclass(frozen=True)
class _Output:
    """What is kept of a module's output."""

    kind: str
    input_shape: tuple[int, ...]
    shape: tuple[int, ...]
    gradient: bool
    sample: Tensor
    halves: tuple[Tensor, Tensor]

    def per_image(self, count: int) -> tuple[int, ...]:
        """Return the shape for one image."""
        return self.shape[1:] if self.shape[0] == count else (self.shape[0] // count, *self.shape[1:])


@dataclass(frozen=True)
class _Outputs:
    """The outputs of all modules in one forward pass, by layer name; what is none; why the pass ended early."""

    tensors: dict[str, _Output]
    skipped: dict[str, str]
    stopped: str | None = None


def _outputs(model: nn.Module, image: Tensor, *, gradients: bool = False) -> _Outputs:
    """Run a network once and look at the output of every module."""
    tensors: dict[str, _Output] = {}
    skipped: dict[str, str] = {}
    called: set[str] = set()

    def look(path: str, module: nn.Module, args: Any, options: Any, output: Any) -> None:
        if path in called:
            return
        called.add(path)
        read = next(tensors_of((args, options)), None)
        input_shape = () if read is None else tuple(read.shape)
        places = dict(_named(output))
        if not places:
            kind = type(output).__name__
            skipped[path] = f"its output is of type {kind}; only tensors, and tuples, lists and dicts of them, are read"
        for place, y in places.items():
            if not y.is_floating_point():
                skipped[path + place] = f"its output is {str(y.dtype).removeprefix('torch.')}, not floating-point"
            elif not y.ndim:
                skipped[path + place] = "its output is one number without a batch axis"
            else:
                kind = type(module).__name__
                sample, halves = _sample(y), (_sample(y[: len(y) // 2]), _sample(y[len(y) // 2 :]))
                tensors[path + place] = _Output(kind, input_shape, tuple(y.shape), y.requires_grad, sample, halves)

    with evaluating(model, gradients=gradients), ExitStack() as hooks:
        for path, module in _named_layers(model):
            handle = module.register_forward_hook(partial(look, path), with_kwargs=True)
            hooks.callback(handle.remove)
        try:
            model(image.clone().requires_grad_(gradients and image.is_floating_point()).clone())
        except Exception as error:
            return _Outputs(tensors, skipped, first_line(error))
    return _Outputs(tensors, skipped)


def _named_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield every module that has a forward pass, with its layer name."""
    taken = OUTPUT in dict(model.named_modules())
    for path, module in model.named_modules():
        lists = isinstance(module, nn.ModuleList | nn.ModuleDict | nn.ParameterList | nn.ParameterDict)
        if not lists and (path or not taken):
            yield path or OUTPUT, module


def _sample(y: Tensor) -> Tensor:
    flat = y.detach().flatten()
    return flat[:: max(1, len(flat) // SAMPLES)].float().clone()


def _differ(a: Tensor, b: Tensor, tolerance: float = TOLERANCE) -> bool:
    if a.device.type == "meta" or a.shape != b.shape:
        return False
    a, b = a.nan_to_num(), b.nan_to_num()
    return bool((a - b).abs().max() > tolerance * a.abs().max()) if a.numel() else False


def _another(image: Tensor) -> Tensor:
    """Return a second image: the first one turned round, with noise."""
    turned = image.flip(list(range(2, image.ndim)))
    if not image.is_floating_point():
        return turned
    noise = torch.rand(image.shape, generator=torch.Generator().manual_seed(0)).to(image)
    return turned + 0.1 * noise * (image.abs().max() or 1.0)


def _not_of_the_image(one: _Output, both: _Output | None, gradient: bool) -> str:
    """Return why an output is not one image's features, from what one image and two images give; empty if it is."""
    if both is None:
        return ""
    if both.shape[0] != 2 * one.shape[0] or both.shape[1:] != one.shape[1:]:
        axes = [i for i, (n, m) in enumerate(zip(one.shape, both.shape)) if m == 2 * n]
        if len(axes) == 1 and len(one.shape) == len(both.shape):
            return f"the batch is axis {axes[0]} of its output, not axis 0"
        return "" if gradient and one.shape[0] == 1 else "its output has no batch axis"
    if not gradient and not _differ(*both.halves):
        return "its output does not depend on the image"
    return ""


def _topmost(model: nn.Module, called: set[str]) -> Iterator[str]:
    """Yield the paths of modules that were not called, without those inside of one that is named already."""
    named: list[str] = []
    for path, _ in _named_layers(model):
        inside = any(path.startswith(f"{other}.") for other in named)
        alive = path == OUTPUT or any(other == path or other.startswith(f"{path}.") for other in called)
        if not inside and not alive:
            named.append(path)
            yield path


def _top_level(layers: Layers) -> list[Layer]:
    """Return the layers directly in the network; the largest block gives way to its parts while these are few."""
    found = {layer.name: layer for layer in layers if layer.name != OUTPUT}

    def children(prefix: str) -> list[str]:
        depth = prefix.count(".") + 1 if prefix else 0
        inside = [name for name in found if not prefix or name.startswith(f"{prefix}.")]
        return list(dict.fromkeys(".".join(name.split(".")[: depth + 1]) for name in inside))

    chosen = children("")
    while True:
        few = len(chosen) <= ENDS and len(_runs([found[name] for name in chosen if name in found])) < ENDS - 2
        # a list of modules is no layer itself
        sizes = {name: len(children(name)) for name in chosen if few or name not in found}
        if not any(sizes.values()):
            return [found[name] for name in found if name in chosen]
        largest = max(sizes, key=lambda name: (name not in found, sizes[name]))
        i = chosen.index(largest)
        chosen[i : i + 1] = children(largest)


def _runs(layers: Sequence[Layer]) -> list[list[Layer]]:
    """Return layers in groups of the same resolution."""
    return [list(run) for _, run in groupby(layers, lambda layer: layer.shape[1:])]


def _spread(items: list[Layer], count: int) -> list[Layer]:
    """Return so many of the items, evenly spread, the last one among them."""
    return [items[round((i + 1) * len(items) / count) - 1] for i in range(count)] if count < len(items) else items
