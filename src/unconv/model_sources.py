"""Where networks come from: the bundled one, torchvision, timm, and a user's ``module:callable``."""

from __future__ import annotations

import difflib
import importlib
import math
import os
import re
import sys
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
import torchvision
from PIL import Image
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torchvision.models import WeightsEnum
from torchvision.transforms import InterpolationMode

from unconv.checkpoint import WeightsFile, WeightsMisfit, choose_weights, fit_weights, read_weights
from unconv.errors import UnconvError, UsageError
from unconv.io import display_name, one_line, reason
from unconv.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocess, Preprocessing, of_user

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


@dataclass
class Built:
    """A model on its way to being a ``LoadedModel``."""

    module: nn.Module
    preprocess: Preprocessing
    source: str
    example_size: int = IMAGENET_SIZE
    sha256: str | None = None
    missing: tuple[str, ...] = ()
    assumed: str | None = None
    note: str | None = None

    def read(self, weights: str) -> None:
        """Fill the module from a weights file."""
        file, key = _read(weights)
        self.fill(weights, file, choose_weights(self.module, file, key))

    def prepare(self, own: Any, name: str, size: int | None, more: str) -> None:
        """Take a user's own preprocessing, or note for a network without any what is assumed."""
        if own is not None:
            self.preprocess = of_user(own)
            return
        sizes = "" if size else " at the image's own size"
        wanted = "mean and std" if size else f"{more} mean and std"
        self.assumed = f"{name} has no attribute preprocess, so pixels in [0, 1]{sizes} are assumed; give {wanted} "
        self.assumed += "as in training"

    def fill(self, weights: str, file: WeightsFile, state: OrderedDict[str, Tensor], otherwise: str = "") -> None:
        """Copy weights into the module; a refusal of another network's says what would be right."""
        self.source, self.sha256 = display_name(weights), file.sha256
        try:
            self.missing, self.note = fit_weights(self.module, state, display_name(file.path))
        except WeightsMisfit as error:
            raise UnconvError(f"{error}; {otherwise}" if otherwise else str(error)) from error


def model_names() -> list[str]:
    """Return the bundled network and torchvision's classification networks."""
    return [BUNDLED, *torchvision.models.list_models(module=torchvision.models)]


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


def build(spec: str, weights: str | None, size: int | None, download: bool) -> Built:
    """Return the network of a name, or what a ``module:callable`` makes."""
    if spec == BUNDLED:
        return bundled(weights)
    if spec.startswith(TIMM):
        return from_timm(spec, weights, download)
    if ":" in spec:
        return from_callable(spec, weights, size)
    if spec in model_names():
        return from_torchvision(spec, weights, size, download)
    hint, own = _near(spec, model_names()), spec.removesuffix(".py")
    if own.isidentifier() and Path(f"{own}.py").is_file():
        hint = f" (for {own}.py in this folder, name its function or class too: {own}:build)"
    others = f"give {BUNDLED}, a torchvision name such as vgg16, timm/NAME or module:callable"
    raise UsageError(f"unknown model {one_line(spec)!r}{hint}; {others}")


def _near(name: str, names: list[str]) -> str:
    near = difflib.get_close_matches(name, names, n=5)
    return f" (near: {', '.join(near)})" if near else ""


def bundled(weights: str | None) -> Built:
    """Return the small VGG that ships with the package."""
    from unconv import cifar_vgg

    preprocess = Preprocess(mean=cifar_vgg.MEAN, std=cifar_vgg.STD)
    built = Built(cifar_vgg.CifarVGG(), preprocess, "", CIFAR_SIZE)
    built.read(str(bundled_weights()) if weights is None else weights)
    if weights is None:
        built.source = "bundled with unconv"
    return built


def from_torchvision(spec: str, weights: str | None, size: int | None, download: bool) -> Built:
    """Return a network of torchvision's, with published weights, a file's, or random ones."""
    default = Preprocess(resize=IMAGENET_SIZE, crop=IMAGENET_SIZE, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    if weights is None:
        return Built(_build_torchvision(spec, None, size), default, f"random, seed {SEED}")
    enum = torchvision.models.get_model_weights(spec)
    member = enum.__members__.get(weights.removeprefix(f"{enum.__name__}."))
    choices = f" and none of {spec}'s weights ({', '.join(enum.__members__)})"
    file, key = _read(weights, choices) if member is None else (read_weights(_cached_file(member, download)), None)
    built = Built(_build_torchvision(spec, member, size), default, "")
    state = choose_weights(built.module, file, key)
    if spec.startswith("densenet"):
        _rename_densenet_keys(state)
    if member is None:
        classes = _other_classes(built.module, state)
        if classes is not None:
            built.module = _build_torchvision(spec, None, size, num_classes=classes)
        otherwise = f"a {spec} that was changed goes in as module:callable, weights of another network with its name"
        built.fill(weights, file, state, otherwise)
        built.assumed = ASSUMED_IMAGENET
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


def from_timm(spec: str, weights: str | None, download: bool) -> Built:
    """Return a network of timm's, with its own preprocessing."""
    try:
        timm: Any = importlib.import_module("timm")
    except ImportError as error:
        raise UnconvError(f"{one_line(spec)} needs timm, which is not installed: pip install 'unconv[timm]'") from error
    name = spec.removeprefix(TIMM)
    base = name.partition(".")[0]
    if base not in timm.list_models():
        raise UsageError(f"timm has no model {one_line(name)!r}{_near(base, timm.list_models())}")
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
    built = Built(module, _of_timm(config, transform), f"random, seed {SEED}", config["input_size"][-1])
    if tag:
        built.source = f"timm {name}"
    elif weights is not None:
        built.read(weights)
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


def from_callable(spec: str, weights: str | None, size: int | None) -> Built:
    """Return what a user's ``module:callable`` makes; the one place where a user's code runs."""
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
    settle(module)
    built = Built(module, Preprocess(), f"as {shown} sets them")
    if weights is not None:
        built.read(weights)
    built.prepare(own, shown, size, "size,")
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


def settle(module: nn.Module) -> None:
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
