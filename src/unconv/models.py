"""Models by name, by ``module:callable`` and with weights from files, with what their images need."""

from __future__ import annotations

import copy
import difflib
import importlib
import itertools
import math
import os
import re
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode
from torchvision.models import WeightsEnum
from torchvision.transforms import InterpolationMode

from unconv import cifar_vgg
from unconv.checkpoint import (
    WeightsFile,
    WeightsMisfit,
    choose_weights,
    fit_weights,
    hash_state,
    is_finite,
    read_weights,
)
from unconv.errors import UnconvError, UsageError
from unconv.io import display_name, one_line, reason
from unconv.preprocessing import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Numbers,
    Preprocess,
    Preprocessing,
    UserPreprocess,
    normalisation,
    of_user,
)

BUNDLED = "cifar-vgg"
TIMM = "timm/"
CIFAR_SIZE = 32
IMAGENET_SIZE = 224
IMAGENET_CLASSES = 1000
SEED = 0
ASSUMED_IMAGENET = (
    "the weights file does not say how its images are prepared, so torchvision's ImageNet mean and std are assumed; "
    "Caffe's weights want mean 123.68,116.779,103.939 and std 1"
)


@dataclass(frozen=True)
class WeightsIdentity:
    """Which weights a model has.

    Attributes:
        source: Where they come from, in words: a file, a torchvision name, or ``"random, seed 0"``.
        sha256: Of the weights file's bytes; without a file, of the names, types, shapes and bytes of all tensors.
    """

    source: str
    sha256: str


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
    module: nn.Module
    preprocess: Preprocessing
    weights: WeightsIdentity
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    example_size: int = IMAGENET_SIZE

    def example(self) -> Tensor:
        """Return an input of the right shape ``(1, C, H, W)`` and range, made of seeded noise, for tracing."""
        noise = np.random.default_rng(SEED).integers(0, 256, (self.example_size, self.example_size, 3), np.uint8)
        return self.preprocess(Image.fromarray(noise))[None]


@dataclass
class _Built:
    """A model on its way to being a ``LoadedModel``."""

    module: nn.Module
    preprocess: Preprocessing
    source: str
    example_size: int = IMAGENET_SIZE
    sha256: str | None = None
    missing: tuple[str, ...] = ()
    assumed: str | None = None
    note: str | None = None

    def fill(self, weights: str, file: WeightsFile, state: OrderedDict[str, Tensor], otherwise: str = "") -> None:
        """Copy weights into the module; a refusal of another network's says what would be right."""
        self.source, self.sha256 = display_name(weights), file.sha256
        try:
            self.missing, self.note = fit_weights(self.module, state, display_name(file.path))
        except WeightsMisfit as error:
            raise UnconvError(f"{error}; {otherwise}" if otherwise else str(error)) from error
        self.preprocess = file.preprocessing or self.preprocess


def model_names() -> list[str]:
    """Return the bundled network and torchvision's classification networks."""
    return [BUNDLED, *torchvision.models.list_models(module=torchvision.models)]


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
    ``preprocess`` of a user's model; the weights file's own ``preprocessing``; torchvision's transforms for these
    weights, or timm's for this network; the default (``cifar-vgg``: CIFAR's statistics, the image's own size;
    torchvision: ImageNet's, 224x224; ``module:callable``: pixels in ``[0, 1]``, the image's own size). With
    ``size``, the shorter side is resized to it and the centre square cropped, whatever the rest says.

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
        if spec == BUNDLED:
            built = _bundled(weights)
        elif spec.startswith(TIMM):
            built = _from_timm(spec, weights, download)
        elif ":" in spec:
            built = _from_callable(spec, weights, size)
        elif spec in model_names():
            built = _from_torchvision(spec, weights, size, download)
        else:
            near = difflib.get_close_matches(spec, model_names(), n=5)
            hint = f" (near: {', '.join(near)})" if near else ""
            own = spec.removesuffix(".py")
            if own.isidentifier() and Path(f"{own}.py").is_file():
                hint = f" (for {own}.py in this folder, name its function or class too: {own}:build)"
            raise UsageError(
                f"unknown model {one_line(spec)!r}{hint}; give {BUNDLED}, a torchvision name such as vgg16, "
                "timm/NAME or module:callable"
            )
    return _loaded(spec, built, size, normal)


def adopt_model(
    module: nn.Module,
    *,
    preprocess: Callable[[Image.Image], Tensor] | None = None,
    size: int | None = None,
    mean: Numbers | None = None,
    std: Numbers | None = None,
) -> LoadedModel:
    """Take a network that the caller has built, with its preprocessing. It is copied, and left as it is.

    How an image is prepared is decided by the first of these that says it: ``mean`` and ``std``; ``preprocess``; the
    module's own attribute ``preprocess``; the default, pixels in ``[0, 1]`` at the image's own size.

    Args:
        module: The network.
        preprocess: From an RGB PIL image to a tensor of shape ``(C, H, W)``.
        size: As for ``load_model``.
        mean: As for ``load_model``.
        std: As for ``load_model``.

    Returns:
        The model; its module is on the CPU.

    Raises:
        UsageError: If an argument's value does not exist.
        UnconvError: If the network cannot be copied, or its weights are not numbers.
    """
    normal = _checked(size, mean, std)
    name = type(module).__name__
    try:
        with _CopyWithoutHistory():
            copied = copy.deepcopy(module)
    except Exception as error:
        raise UnconvError(f"{name} cannot be copied: {reason(error)}") from error
    built = _Built(copied, Preprocess(), f"as given in {name}")
    own = preprocess or getattr(module, "preprocess", None)
    if own is not None:
        built.preprocess = of_user(own)
    else:
        built.assumed = _assumed(name, size, "preprocess, or size,")
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
    """Refuse an analysis of modules whose weights the file did not give, or whose buffers are not finite.

    The batch norm that is registered right behind a convolution counts as part of it.

    Args:
        loaded: The model.
        module_paths: Every module that the analysis runs through, such as ``features.5``, in order.

    Raises:
        UnconvError: Names the first such module and its key.
    """
    modules = dict(loaded.module.named_modules())
    with_state = [name for name, m in modules.items() if m._parameters or m._buffers]
    behind = {a: b for a, b in itertools.pairwise(with_state) if isinstance(modules[b], _NormBase)}
    source = loaded.weights.source
    for path in module_paths:
        for part in (path, behind.get(path)):
            if part is None:
                continue
            for key in loaded.missing:
                if key.startswith(f"{part}."):
                    raise UnconvError(
                        f"{source} gives no {key}, which layer {path} needs; stop before it or give weights with it"
                    )
            if part in modules and isinstance(modules[part], nn.modules.conv._ConvNd | _NormBase):
                for key, buffer in modules[part].named_buffers():
                    if not is_finite(buffer):
                        raise UnconvError(f"{source}: {part}.{key} holds NaN or infinite values; layer {path} needs it")


def bundled_weights() -> Path:
    """Return the file with the weights of the bundled network, inside the package."""
    return Path(str(resources.files("unconv") / "weights" / "cifar_vgg.safetensors"))


def preprocess_of(member: WeightsEnum) -> Preprocess:
    """Return the same preprocessing as ``member.transforms()`` of published torchvision weights."""
    preset = member.transforms()
    return Preprocess(
        resize=preset.resize_size[0],
        crop=preset.crop_size[0],
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        interpolation="bicubic" if preset.interpolation == InterpolationMode.BICUBIC else "bilinear",
    )


def _checked(size: int | None, mean: Numbers | None, std: Numbers | None) -> Preprocess | None:
    most = math.isqrt(Image.MAX_IMAGE_PIXELS or 2**31)
    if size is not None and not 1 <= size <= most:
        raise UsageError(f"size is {size}; expected a number of pixels, at least 1 and at most {most}")
    if (mean is None) != (std is None):
        raise UsageError("mean and std belong together; give both or neither")
    return None if mean is None or std is None else normalisation(mean, std)


def _loaded(name: str, built: _Built, size: int | None, normal: Preprocess | None) -> LoadedModel:
    preprocess = _override(built.preprocess, size, normal)
    _settle(built.module)
    for key, parameter in built.module.named_parameters():
        if not is_finite(parameter) and key not in built.missing:
            raise UnconvError(f"{built.source}: {one_line(key)} holds NaN or infinite values; use weights of numbers")
    assumed = built.assumed if normal is None else None
    return LoadedModel(
        name=one_line(name),
        module=built.module,
        preprocess=preprocess,
        weights=WeightsIdentity(built.source, built.sha256 or hash_state(built.module.state_dict())),
        missing=built.missing,
        notes=tuple(note for note in (assumed, built.note) if note is not None),
        example_size=size or built.example_size,
    )


def _bundled(weights: str | None) -> _Built:
    preprocess = Preprocess(mean=cifar_vgg.MEAN, std=cifar_vgg.STD)
    built = _Built(cifar_vgg.CifarVGG(), preprocess, "", CIFAR_SIZE)
    file, key = (read_weights(bundled_weights()), None) if weights is None else _read(weights)
    built.fill(weights or "", file, choose_weights(built.module, file, key))
    if weights is None:
        built.source = "bundled with unconv"
    return built


def _from_torchvision(spec: str, weights: str | None, size: int | None, download: bool) -> _Built:
    default = Preprocess(resize=IMAGENET_SIZE, crop=IMAGENET_SIZE, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    if weights is None:
        return _Built(_build_torchvision(spec, None, size), default, f"random, seed {SEED}")
    enum = torchvision.models.get_model_weights(spec)
    member = enum.__members__.get(weights.removeprefix(f"{enum.__name__}."))
    choices = f" and none of {spec}'s weights ({', '.join(enum.__members__)})"
    file, key = _read(weights, choices) if member is None else (read_weights(_cached_file(member, download)), None)
    built = _Built(_build_torchvision(spec, member, size), default, "")
    state = choose_weights(built.module, file, key)
    if spec.startswith("densenet"):
        _rename_densenet_keys(state)
    if member is None:
        classes = _other_classes(built.module, state)
        if classes is not None:
            built.module = _build_torchvision(spec, None, size, num_classes=classes)
        otherwise = f"a {spec} that was changed goes in as module:callable, weights of another network with its name"
        built.fill(weights, file, state, otherwise)
        built.assumed = None if file.preprocessing else ASSUMED_IMAGENET
        return built
    # vgg16's IMAGENET1K_FEATURES fills the classifier, which its authors did not publish, with NaN
    for name in [k for k, v in state.items() if v.is_floating_point() and v.isnan().all()]:
        del state[name]
    built.fill(weights, file, state)
    built.source, built.preprocess = f"torchvision {member!r}", preprocess_of(member)
    return built


def _other_classes(module: nn.Module, state: OrderedDict[str, Tensor]) -> int | None:
    """Return the number of classes of a network that was trained on other data; None where it is as built."""
    target = module.state_dict()
    shapes = {(state[key].shape, target[key].shape) for key in state if key in target}
    other = {
        given[0] if given[1:] == built[1:] and built[:1] == (IMAGENET_CLASSES,) else None
        for given, built in shapes
        if given != built
    }
    return other.pop() if len(other) == 1 else None


def _build_torchvision(
    spec: str, member: WeightsEnum | None, size: int | None, num_classes: int = IMAGENET_CLASSES
) -> nn.Module:
    # torchvision's own builders set more than the weights where weights are given
    config: dict[str, Any] = {}
    if spec in {"googlenet", "inception_v3"}:
        config = {"init_weights": True, "transform_input": member is not None}
    elif spec.startswith(("vit_", "maxvit_")):
        side = (size or IMAGENET_SIZE) if member is None else member.meta["min_size"][0]
        if size is not None and size != side:
            raise UsageError(f"{spec} with these weights takes images of {side}x{side} only; leave out size")
        config = {"image_size": side} if spec.startswith("vit_") else {"input_size": (side, side)}
    if num_classes != IMAGENET_CLASSES:
        config["num_classes"] = num_classes
    try:
        return torchvision.models.get_model(spec, weights=None, **config)
    except Exception as error:
        raise UnconvError(f"{spec} cannot be built: {reason(error)}") from error


def _rename_densenet_keys(state: OrderedDict[str, Tensor]) -> None:
    # torchvision's files hold "norm.1" for "norm1", which its own loader renames too
    old = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\.(?:weight|bias|running_mean|running_var))$")
    for key in list(state):
        match = old.match(key)
        if match:
            state[match[1] + match[2]] = state.pop(key)


def _from_timm(spec: str, weights: str | None, download: bool) -> _Built:
    try:
        timm: Any = importlib.import_module("timm")
    except ImportError as error:
        raise UnconvError(f"{one_line(spec)} needs timm, which is not installed: pip install 'unconv[timm]'") from error
    name = spec.removeprefix(TIMM)
    base = name.partition(".")[0]
    if base not in timm.list_models():
        near = difflib.get_close_matches(base, timm.list_models(), n=5)
        raise UsageError(f"timm has no model {one_line(name)!r}" + (f" (near: {', '.join(near)})" if near else ""))
    tag = weights is not None and _file_and_key(weights) is None
    if tag:
        tags = [full.partition(".")[2] for full in timm.list_models(f"{base}.*", pretrained=True)]
        if weights not in tags:
            raise UsageError(f"weights {one_line(str(weights))} is no file and no tag of {base} ({', '.join(tags)})")
        if not download:
            raise UnconvError(f"weights {weights} of {base} are with timm; fetch their file and give it as weights")
        name = f"{base}.{weights}"
    try:
        module = timm.create_model(name, pretrained=tag)
        config = timm.data.resolve_model_data_config(module)
        transform = timm.data.create_transform(**config, is_training=False)
    except Exception as error:
        raise UnconvError(f"{one_line(spec)} cannot be built: {reason(error)}") from error
    built = _Built(module, _of_timm(config, transform), f"random, seed {SEED}", config["input_size"][-1])
    if tag:
        built.source = f"timm {name}"
    elif weights is not None:
        file, key = _read(weights)
        built.fill(weights, file, choose_weights(module, file, key), f"give weights of timm's {name}")
    return built


def _of_timm(config: dict[str, Any], transform: Callable[[Image.Image], Tensor]) -> Preprocessing:
    channels, height, width = config["input_size"]
    plain = config.get("crop_mode", "center") == "center" and channels == 3 and height == width
    if not plain or config["interpolation"] not in {"bilinear", "bicubic"}:
        return of_user(transform)
    return Preprocess(
        resize=math.floor(height / config["crop_pct"]),
        crop=height,
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        interpolation=config["interpolation"],
    )


def _assumed(name: str, size: int | None, more: str) -> str:
    sizes = "" if size else " at the image's own size"
    wanted = "mean and std" if size else f"{more} mean and std"
    return f"{name} has no attribute preprocess, so pixels in [0, 1]{sizes} are assumed; give {wanted} as in training"


def _from_callable(spec: str, weights: str | None, size: int | None) -> _Built:
    make = _look_up(spec)
    shown = one_line(spec)
    if isinstance(make, nn.Module):
        module: Any = make
    elif callable(make):
        # importing may have drawn numbers, and happens only once
        torch.manual_seed(SEED)
        try:
            module = make()
        except (Exception, SystemExit) as error:
            raise UnconvError(f"calling {shown} failed: {reason(error)}") from error  # pyright: ignore
    else:
        raise UnconvError(f"{shown} is a {type(make).__name__}; expected a callable that returns an nn.Module")
    if not isinstance(module, nn.Module):
        raise UnconvError(f"{shown} returned a {type(module).__name__}; expected an nn.Module")
    own = getattr(module, "preprocess", None) or getattr(make, "preprocess", None)
    _settle(module)
    built = _Built(module, Preprocess(), f"as {shown} sets them")
    if weights is not None:
        file, key = _read(weights)
        built.fill(weights, file, choose_weights(module, file, key), f"give weights of the network that {shown} makes")
    if own is not None:
        built.preprocess = of_user(own)
    elif built.preprocess == Preprocess():
        built.assumed = _assumed(shown, size, "size,")
    return built


def _look_up(spec: str) -> Any:
    module_name, _, path = spec.partition(":")
    if not module_name or not path:
        raise UsageError(f"{one_line(spec)!r} is not module:callable; for example mymodels:build")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    importlib.invalidate_caches()
    writes = sys.dont_write_bytecode
    sys.dont_write_bytecode = True  # a run writes into its own directory only
    try:
        value: Any = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        absent = error.name if isinstance(error, ModuleNotFoundError) else None
        if absent is not None and (module_name == absent or module_name.startswith(f"{absent}.")):
            stem = module_name.removesuffix(".py")
            hint = f"; a module is named without .py: {stem}:{path}" if stem != module_name else ""
            raise UsageError(one_line(f"no module {module_name} in {here} or installed{hint}")) from error
        raise UnconvError(f"cannot import {one_line(module_name)}: {reason(error)}") from error  # pyright: ignore
    finally:
        sys.dont_write_bytecode = writes
    for name in path.split("."):
        try:
            value = getattr(value, name)
        except AttributeError as error:
            names = [n for n in getattr(value, "__dict__", {}) if not n.startswith("_")]
            near = difflib.get_close_matches(name, names, cutoff=0.5) or names[:10]
            raise UsageError(one_line(f"{module_name} has no {path}; it has {', '.join(near) or 'nothing'}")) from error
    return value


def _settle(module: nn.Module) -> None:
    """Bring a module to the CPU, to float32 and evaluation mode; its own ``train`` may return nothing."""
    if any(is_lazy(tensor) for tensor in (*module.parameters(), *module.buffers())):
        raise UnconvError("the model has lazy parameters without a shape; run it once on an image before returning it")
    try:
        module.to("cpu")
        module.float()  # unlike .to(torch.float32), this keeps complex parameters complex
        module._apply(lambda t: t.to(torch.complex64) if t.dtype == torch.complex128 else t)
        module.eval()
        module.requires_grad_(False)
    except Exception as error:
        raise UnconvError(f"the model cannot be used on the CPU: {reason(error)}") from error


def _override(preprocess: Preprocessing, size: int | None, normal: Preprocess | None) -> Preprocessing:
    if isinstance(preprocess, UserPreprocess):
        if size is not None:
            raise UsageError("the model has its own preprocess, which sets the size; leave out size")
        return preprocess if normal is None else replace(preprocess, inverse=normal)
    assert isinstance(preprocess, Preprocess)
    if normal is not None:
        preprocess = replace(preprocess, mean=normal.mean, std=normal.std, scale=normal.scale)
    return preprocess if size is None else replace(preprocess, resize=size, crop=size)


def _cached_file(member: WeightsEnum, download: bool) -> Path:
    file = Path(torch.hub.get_dir(), "checkpoints", member.url.rpartition("/")[2])
    if file.is_file():
        return file
    by_hand = f"fetch {member.url} by hand and give the file as weights"
    if not download:
        raise UnconvError(f"{member!r} is not in torch's cache ({display_name(file.parent)}); {by_hand}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        # torchvision puts the beginning of the SHA-256 into the name
        torch.hub.download_url_to_file(member.url, str(file), file.stem.rpartition("-")[2])
    except Exception as error:
        # urllib, ssl, http and torch each raise their own kinds
        raise UnconvError(f"cannot download {member!r} ({reason(error)}); {by_hand}") from error
    return file


def _read(weights: str, choices: str = "") -> tuple[WeightsFile, str | None]:
    file_and_key = _file_and_key(weights)
    if file_and_key is None:
        raise UsageError(f"weights {one_line(weights)} is no file{choices}; give a .safetensors, .pt or .pth file")
    return read_weights(file_and_key[0]), file_and_key[1]


def _file_and_key(weights: str) -> tuple[Path, str | None] | None:
    """Cut ``FILE:KEY`` where the file exists; None where there is none."""
    for file, colon, key in ((weights, "", None), weights.rpartition(":")):
        try:
            if (colon or key is None) and Path(file).exists():
                return Path(file), key
        except (OSError, ValueError):
            pass
    return None
