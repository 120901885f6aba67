"""Models by name, by ``module:callable`` and with weights from files, with what their images need."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.overrides import TorchFunctionMode

from unconv.checkpoint import STATISTICS, hash_state, is_finite
from unconv.errors import UnconvError, UsageError
from unconv.io import one_line, reason
from unconv.model_sources import IMAGENET_SIZE, SEED, Built, build, settle
from unconv.preprocessing import Numbers, Preprocess, Preprocessing, UserPreprocess, normalisation


@dataclass(frozen=True)
class WeightsIdentity:
    """Which weights a model has."""

    source: str  # where they come from, in words: a file, a torchvision name, or "random, seed 0"
    sha256: str  # of the weights file's bytes; without a file, of the names, types, shapes and bytes of all tensors

    @property
    def random(self) -> bool:
        """Whether nobody gave or trained them."""
        return self.source.startswith("random, seed ")


@dataclass(frozen=True)
class LoadedModel:
    """A network that is ready to be measured.

    Attributes:
        name: What the user asked for.
        module: The network: float32, on the CPU, in evaluation mode, without gradients for its parameters.
        preprocess: From an RGB PIL image to the network's input.
        weights: Which weights it has.
        missing: Parameters and buffers that the weights file did not give, in the model's order. They keep random
            values, so whatever needs one of them is refused (``check_covered``).
        notes: What was assumed in place of something that the user did not say, one line each.
        example_size: Side in pixels of the square image that ``example`` is made of.
    """

    name: str
    module: nn.Module = field(repr=False)
    preprocess: Preprocessing
    weights: WeightsIdentity
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    example_size: int = IMAGENET_SIZE

    def example(self) -> Tensor:
        """Return an input of the right shape ``(1, C, H, W)`` and range, made of seeded noise, for tracing."""
        noise = np.random.default_rng(SEED).integers(0, 256, (self.example_size, self.example_size, 3), np.uint8)
        return self.preprocess(Image.fromarray(noise))[None]


def load_model(
    spec: str,
    *,
    weights: str | None = None,
    size: int | None = None,
    mean: Numbers | None = None,
    std: Numbers | None = None,
    download: bool = False,
) -> LoadedModel:
    """Load a model by name, with its weights and its preprocessing.

    How an image is prepared is decided by the first of these that says it: ``mean`` and ``std``; the attribute
    ``preprocess`` of a user's model; torchvision's transforms for these weights, or timm's for this network; the
    default (``cifar-vgg``: CIFAR's statistics, the image's own size; torchvision: ImageNet's, 224x224;
    ``module:callable``: pixels in ``[0, 1]``, the image's own size). With ``size``, the shorter side is resized to it
    and the centre square cropped, whatever the rest says.

    Args:
        spec: ``"cifar-vgg"``, a torchvision name (built for as many classes as the weights file has), ``"timm/NAME"``
            where timm is installed, or ``"module:callable"``, looked up from the current folder too (which stays on
            ``sys.path``); the callable, called without arguments, returns an ``nn.Module``. This is the one place
            where a user's code runs.
        weights: A ``.safetensors`` file or a file saved by torch; ``"FILE:KEY"`` where it holds several sets of
            weights; for torchvision, a name of its weights such as ``"IMAGENET1K_V1"``; for timm, a tag such as
            ``"a1_in1k"``. Without it: the bundled weights, what the callable sets, or a random initialisation.
        size: Side of the square input in pixels.
        mean: Subtracted from each colour channel: three numbers, one, or text with commas; with ``std`` only.
            Values above 1 in either mean that the network counts pixels in ``[0, 255]``. Where the model has its
            own ``preprocess`` they only say how to undo its normalisation.
        std: Divides each colour channel.
        download: Whether published weights that are not in torch's cache may be fetched.

    Returns:
        The model.

    Raises:
        UsageError: If a name or an argument's value does not exist.
        UnconvError: If the model cannot be built or its weights do not fit.
    """
    normal = _checked(size, mean, std)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        built = build(spec, weights, size, download)
    return _loaded(spec, built, size, normal)


def adopt_model(
    module: nn.Module,
    *,
    preprocess: Callable[[Image.Image], Tensor] | None = None,
    size: int | None = None,
    mean: Numbers | None = None,
    std: Numbers | None = None,
) -> LoadedModel:
    """Take a network that the caller has built; it is copied, and left as it is.

    How an image is prepared is decided by the first of these that says it: ``mean`` and ``std``; ``preprocess``, from
    an RGB PIL image to a tensor ``(C, H, W)``; the module's own attribute ``preprocess``; the default, pixels in ``[0,
    1]`` at the image's own size.
    """
    normal = _checked(size, mean, std)
    name = type(module).__name__
    try:
        with _CopyWithoutHistory():
            copied = copy.deepcopy(module)
    except Exception as error:
        raise UnconvError(f"{name} cannot be copied: {reason(error)}") from error
    built = Built(copied, Preprocess(), f"as given in {name}")
    own = preprocess or getattr(module, "preprocess", None)
    built.prepare(own, name, size, "preprocess, or size,")
    return _loaded(name, built, size, normal)


class _CopyWithoutHistory(TorchFunctionMode):
    """Copies tensors that autograd computed (stored activations, recomputed filters) as plain numbers."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__deepcopy__ and not args[0].is_leaf:
            _, memo = args
            memo[id(args[0])] = args[0].detach().clone()
            return memo[id(args[0])]
        return func(*args, **(kwargs or {}))


def check_covered(loaded: LoadedModel, module_paths: Iterable[str]) -> None:
    """Refuse modules, or batch norms right behind them, whose weights the file did not give or are not finite."""
    modules = dict(loaded.module.named_modules())
    with_state = [name for name, m in modules.items() if m._parameters or m._buffers]
    behind = {a: b for a, b in itertools.pairwise(with_state) if isinstance(modules[b], _NormBase)}
    source = loaded.weights.source
    for path in module_paths:
        for part in filter(None, (path, behind.get(path))):
            if key := next((key for key in loaded.missing if key.startswith(f"{part}.")), None):
                needed = f"which layer {path} needs; stop before it or give weights with it"
                raise UnconvError(f"{source} gives no {key}, {needed}")
            norm = modules.get(part)
            for key, buffer in norm.named_buffers() if isinstance(norm, _NormBase) else ():
                if key in STATISTICS and not is_finite(buffer):
                    raise UnconvError(f"{source}: {part}.{key} holds NaN or infinite values; layer {path} needs it")


def _checked(size: int | None, mean: Numbers | None, std: Numbers | None) -> Preprocess | None:
    most = math.isqrt(Image.MAX_IMAGE_PIXELS or 2**31)
    if size is not None and not (isinstance(size, int) and 1 <= size <= most):
        raise UsageError(f"size is {size!r}; expected a number of pixels, at least 1 and at most {most}")
    if (mean is None) != (std is None):
        raise UsageError("mean and std belong together; give both or neither")
    return None if mean is None or std is None else normalisation(mean, std)


def _loaded(name: str, built: Built, size: int | None, normal: Preprocess | None) -> LoadedModel:
    preprocess = _override(built.preprocess, size, normal)
    settle(built.module)
    for key, parameter in built.module.named_parameters():
        if not is_finite(parameter) and key not in built.missing:
            raise UnconvError(f"{built.source}: {one_line(key)} holds NaN or infinite values; use weights of numbers")
    assumed = built.assumed if normal is None else None
    first, count = next(iter(built.missing), None), len(built.missing)
    more = f" and {count - 1} more" if count > 1 else ""
    absent = first and f"{built.source} gives no {first}{more}; layers that need them are refused"
    return LoadedModel(
        name=one_line(name),
        module=built.module,
        preprocess=preprocess,
        weights=WeightsIdentity(built.source, built.sha256 or hash_state(built.module.state_dict())),
        missing=built.missing,
        notes=tuple(note for note in (assumed, built.note, absent) if note is not None),
        example_size=size or built.example_size,
    )


def _override(preprocess: Preprocessing, size: int | None, normal: Preprocess | None) -> Preprocessing:
    if isinstance(preprocess, UserPreprocess):
        if size is not None:
            raise UsageError("the model has its own preprocess, which sets the size; leave out size")
        return preprocess if normal is None else replace(preprocess, inverse=normal)
    assert isinstance(preprocess, Preprocess)
    if normal is not None:
        preprocess = replace(preprocess, mean=normal.mean, std=normal.std, scale=normal.scale)
    return preprocess if size is None else replace(preprocess, resize=size, crop=size)
