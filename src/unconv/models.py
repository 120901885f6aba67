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
from collections.abc import Callable, Iterable, Sequence
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
from torchvision.models import WeightsEnum
from torchvision.transforms import InterpolationMode

from unconv import cifar_vgg
from unconv.checkpoint import (
    WeightsFile,
    WeightsMisfit,
    fit_weights,
    hash_state,
    is_finite,
    read_weights,
    strip_prefixes,
)
from unconv.errors import UnconvError, UsageError
from unconv.images import display_name, one_line
from unconv.preprocessing import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Preprocess,
    Preprocessing,
    UserPreprocess,
    normalisation,
    of_user,
)

BUNDLED = "cifar-vgg"
CIFAR_SIZE = 32
IMAGENET_SIZE = 224
IMAGENET_CLASSES = 1000
SEED = 0
ASSUMED_IMAGENET = (
    "the weights file does not say how its images are prepared, so torchvision's ImageNet mean and std are assumed; "
    "Caffe's weights want --mean 123.68,116.779,103.939 --std 1"
)
Numbers = str | float | Sequence[float]


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
        """An input of the right shape and range, made of seeded noise, for tracing.

        Returns:
            Shape ``(1, C, H, W)``.
        """
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


def model_names() -> list[str]:
    """The names that ``load_model`` takes, besides ``module:callable``.

    Returns:
        The bundled network, then torchvision's classification networks.
    """
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
    """A model by name, with its weights and its preprocessing.

    How an image is prepared is decided by the first of these that says it: ``mean`` and ``std``; the attribute
    ``preprocess`` of a user's model; the weights file's own ``preprocessing``; torchvision's transforms for these
    weights; the default (``cifar-vgg``: CIFAR's statistics, the image's own size; torchvision: ImageNet's, 224x224;
    ``module:callable``: pixels in ``[0, 1]``, the image's own size). With ``size``, the shorter side is resized to
    it and the centre square cropped, whatever the rest says.

    Args:
        spec: ``"cifar-vgg"``, a torchvision name (built for as many classes as the weights file has), or
            ``"module:callable"``, looked up from the current folder too (which stays on ``sys.path``); the callable,
            called without arguments, returns an ``nn.Module``. This is the one place where a user's code runs.
        weights: A ``.safetensors`` file, a ``.pt`` / ``.pth`` state dict, or, for torchvision, a name of its weights
            such as ``"IMAGENET1K_V1"``. Without it: the bundled weights, what the callable sets, or, for
            torchvision, a random initialisation.
        size: Side of the square input in pixels.
        mean: Subtracted from each colour channel: three numbers, one, or text with commas; with ``std`` only.
            Values above 1 in either mean that the network counts pixels in ``[0, 255]``. Where the model has its
            own ``preprocess`` they only say how to undo its normalisation.
        std: Divides each colour channel.
        download: Whether torchvision weights that are not in torch's cache may be fetched.

    Returns:
        The model.

    Raises:
        UsageError: If a name or an option's value does not exist.
        UnconvError: If the model cannot be built or its weights do not fit.
    """
    normal = _checked(size, mean, std)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        if spec == BUNDLED:
            built = _bundled(weights)
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
                "or module:callable"
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
    """A network that the caller has built, with its preprocessing. It is copied, and left as it is.

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
        UsageError: If an option's value does not exist.
        UnconvError: If the network cannot be copied, or its weights are not numbers.
    """
    normal = _checked(size, mean, std)
    name = type(module).__name__
    try:
        copied = copy.deepcopy(module)
    except Exception as error:
        raise UnconvError(one_line(f"{name} cannot be copied: {type(error).__name__}: {error}")) from error
    built = _Built(copied, Preprocess(), f"as given in {name}")
    own = preprocess or getattr(module, "preprocess", None)
    if own is not None:
        built.preprocess = of_user(own)
    else:
        built.assumed = _assumed(name, size, "mean and std", "preprocess, or size,")
    return _loaded(name, built, size, normal)


def _checked(size: int | None, mean: Numbers | None, std: Numbers | None) -> Preprocess | None:
    most = math.isqrt(Image.MAX_IMAGE_PIXELS or 2**31)
    if size is not None and not 1 <= size <= most:
        raise UsageError(f"--size is {size}; expected a number of pixels, at least 1 and at most {most}")
    if (mean is None) != (std is None):
        raise UsageError("--mean and --std belong together; give both or neither")
    return None if mean is None or std is None else normalisation(mean, std)


def _loaded(name: str, built: _Built, size: int | None, normal: Preprocess | None) -> LoadedModel:
    preprocess = _override(built.preprocess, size, normal)
    module = _settle(built.module)
    for key, tensor in module.state_dict().items():
        if not is_finite(tensor):
            raise UnconvError(f"{built.source}: {one_line(key)} holds NaN or infinite values; use weights of numbers")
    return LoadedModel(
        name=one_line(name),
        module=module,
        preprocess=preprocess,
        weights=WeightsIdentity(built.source, built.sha256 or hash_state(module.state_dict())),
        missing=built.missing,
        notes=() if built.assumed is None or normal is not None else (built.assumed,),
        example_size=size or built.example_size,
    )


def check_covered(loaded: LoadedModel, module_paths: Iterable[str]) -> None:
    """Refuse an analysis of modules whose parameters the weights file did not give.

    The batch norm that is registered right behind a convolution counts as part of it.

    Args:
        loaded: The model.
        module_paths: Every module that the analysis runs through, such as ``features.5``, in order.

    Raises:
        UnconvError: If a parameter is missing; names the first such module and its key.
    """
    if not loaded.missing:
        return
    modules = dict(loaded.module.named_modules())
    own_state = [name for name, m in modules.items() if m._parameters or m._buffers]
    behind = {a: b for a, b in itertools.pairwise(own_state) if isinstance(modules[b], _NormBase)}
    for path in module_paths:
        needed = tuple(f"{p}." for p in (path, behind.get(path)) if p is not None)
        for key in loaded.missing:
            if key.startswith(needed):
                raise UnconvError(
                    f"{loaded.weights.source} gives no {key}, which stage {path} needs; "
                    "stop before that stage or give --weights that hold it"
                )


def bundled_weights() -> Path:
    """The file with the weights of the bundled network.

    Returns:
        Its path inside the package.
    """
    return Path(str(resources.files("unconv") / "weights" / "cifar_vgg.safetensors"))


def _bundled(weights: str | None) -> _Built:
    module = cifar_vgg.CifarVGG()
    preprocess = Preprocess(mean=cifar_vgg.MEAN, std=cifar_vgg.STD)
    if weights is None:
        file, source = read_weights(bundled_weights()), "bundled with unconv"
    else:
        file, source = read_weights(_existing_file(weights)), display_name(weights)
    missing = fit_weights(module, file)
    return _Built(module, file.preprocessing or preprocess, source, CIFAR_SIZE, file.sha256, missing)


def _from_torchvision(spec: str, weights: str | None, size: int | None, download: bool) -> _Built:
    default = Preprocess(resize=IMAGENET_SIZE, crop=IMAGENET_SIZE, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    if weights is None:
        return _Built(_build_torchvision(spec, None, size), default, f"random, seed {SEED}")
    enum = torchvision.models.get_model_weights(spec)
    named = enum.__members__.get(weights.removeprefix(f"{enum.__name__}."))
    if named is None:
        file = read_weights(_existing_file(weights, f" and none of {spec}'s weights ({', '.join(enum.__members__)})"))
        # a file that was fetched by hand is known by the hash that torchvision puts into its name
        named = next((member for member in enum if file.sha256.startswith(hash_prefix(member))), None)
    else:
        file = read_weights(_cached_file(named, download))
        if not file.sha256.startswith(hash_prefix(named)):
            raise UnconvError(
                f"{display_name(file.path)} is not the file that torchvision published: its SHA-256 does not begin "
                f"with {hash_prefix(named)}; delete it to fetch it again"
            )
    module = _build_torchvision(spec, named, size)
    _rename_legacy_keys(spec, file.state)
    if named is None:
        classes = _other_classes(module, file)
        if classes is not None:
            module = _build_torchvision(spec, None, size, num_classes=classes)
        otherwise = f"a {spec} that was changed goes in as module:callable, weights of another network with its name"
        return _Built(
            module,
            file.preprocessing or default,
            display_name(weights),
            sha256=file.sha256,
            missing=_fitted(module, file, otherwise),
            assumed=None if file.preprocessing else ASSUMED_IMAGENET,
        )
    # vgg16's IMAGENET1K_FEATURES fills the classifier, which its authors did not publish, with NaN
    for key in [k for k, v in file.state.items() if v.is_floating_point() and v.isnan().all()]:
        del file.state[key]
    missing = fit_weights(module, file)
    return _Built(module, preprocess_of(named), f"torchvision {named!r}", sha256=file.sha256, missing=missing)


def _fitted(module: nn.Module, file: WeightsFile, otherwise: str) -> tuple[str, ...]:
    """``fit_weights``, whose refusal of another network's weights also says what to do."""
    try:
        return fit_weights(module, file)
    except WeightsMisfit as error:
        raise UnconvError(f"{error}; {otherwise}") from error


def _other_classes(module: nn.Module, file: WeightsFile) -> int | None:
    """The number of classes of a network that was trained on other data; ``None`` where it is as built."""
    target: OrderedDict[str, Tensor] = module.state_dict()  # pyright: ignore[reportAssignmentType]
    state = OrderedDict(file.state)
    strip_prefixes(state, target)
    shapes = {key: (tensor.shape, target[key].shape) for key, tensor in state.items() if key in target}
    heads = {
        found[0] if found[1:] == built[1:] and built[:1] == (IMAGENET_CLASSES,) else None
        for found, built in shapes.values()
        if found != built
    }
    return heads.pop() if len(heads) == 1 else None


def _build_torchvision(
    spec: str, named: WeightsEnum | None, size: int | None, num_classes: int = IMAGENET_CLASSES
) -> nn.Module:
    # torchvision's own builders set more than the weights where weights are given
    config: dict[str, Any] = {}
    if spec in {"googlenet", "inception_v3"}:
        config = {"init_weights": True, "transform_input": named is not None}
    elif spec.startswith(("vit_", "maxvit_")):
        side = (size or IMAGENET_SIZE) if named is None else named.meta["min_size"][0]
        if size is not None and size != side:
            raise UsageError(f"{spec} with these weights takes images of {side}x{side} only; leave out --size")
        config = {"image_size": side} if spec.startswith("vit_") else {"input_size": (side, side)}
    if num_classes != IMAGENET_CLASSES:
        config["num_classes"] = num_classes
    try:
        return torchvision.models.get_model(spec, weights=None, **config)
    except Exception as error:
        raise UnconvError(one_line(f"{spec} cannot be built: {type(error).__name__}: {error}")) from error


def _rename_legacy_keys(spec: str, state: OrderedDict[str, Tensor]) -> None:
    # torchvision's densenet files hold "norm.1" for "norm1", which its own loader renames too
    if spec.startswith("densenet"):
        old = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\.(?:weight|bias|running_mean|running_var))$")
        for key in list(state):
            match = old.match(key)
            if match:
                state[match[1] + match[2]] = state.pop(key)


def _assumed(name: str, size: int | None, normal: str, more: str) -> str:
    sizes = "" if size else " at the image's own size"
    wanted = normal if size else f"{more} {normal}"
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
            raise UnconvError(one_line(f"calling {spec} failed: {type(error).__name__}: {error}")) from error
    else:
        raise UnconvError(f"{shown} is a {type(make).__name__}; expected a callable that returns an nn.Module")
    if not isinstance(module, nn.Module):
        raise UnconvError(f"{shown} returned a {type(module).__name__}; expected an nn.Module")
    own = getattr(module, "preprocess", None) or getattr(make, "preprocess", None)
    built = _Built(_settle(module), Preprocess(), f"as {shown} sets them")
    if weights is not None:
        file = read_weights(_existing_file(weights))
        built.source, built.sha256 = display_name(weights), file.sha256
        built.missing = _fitted(module, file, f"give weights of the network that {shown} makes")
        built.preprocess = file.preprocessing or built.preprocess
    if own is not None:
        built.preprocess = of_user(own)
    elif built.preprocess == Preprocess():
        built.assumed = _assumed(shown, size, "--mean and --std", "--size,")
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
        found: Any = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        absent = error.name if isinstance(error, ModuleNotFoundError) else None
        if absent is not None and (module_name == absent or module_name.startswith(f"{absent}.")):
            stem = module_name.removesuffix(".py")
            said = f"; a module is named without .py: {stem}:{path}" if stem != module_name else ""
            raise UsageError(one_line(f"no module {module_name} in {here} or installed{said}")) from error
        raise UnconvError(one_line(f"cannot import {module_name}: {type(error).__name__}: {error}")) from error
    finally:
        sys.dont_write_bytecode = writes
    for name in path.split("."):
        try:
            found = getattr(found, name)
        except AttributeError as error:
            names = [n for n in getattr(found, "__dict__", {}) if not n.startswith("_")]
            near = difflib.get_close_matches(name, names, cutoff=0.5) or names[:10]
            raise UsageError(one_line(f"{module_name} has no {path}; it has {', '.join(near) or 'nothing'}")) from error
    return found


def _settle(module: nn.Module) -> nn.Module:
    if any(is_lazy(tensor) for tensor in (*module.parameters(), *module.buffers())):
        raise UnconvError("the model has lazy parameters without a shape; run it once on an image before returning it")
    try:
        return module.to("cpu", torch.float32).eval().requires_grad_(False)
    except Exception as error:
        raise UnconvError(one_line(f"the model cannot be used on the CPU: {type(error).__name__}: {error}")) from error


def _override(preprocess: Preprocessing, size: int | None, normal: Preprocess | None) -> Preprocessing:
    if isinstance(preprocess, UserPreprocess):
        if size is not None:
            raise UsageError("the model has its own preprocess, which sets the size; leave out --size")
        return preprocess if normal is None else replace(preprocess, inverse=normal)
    assert isinstance(preprocess, Preprocess)
    if normal is not None:
        preprocess = replace(preprocess, mean=normal.mean, std=normal.std, scale=normal.scale)
    return preprocess if size is None else replace(preprocess, resize=size, crop=size)


def hash_prefix(member: WeightsEnum) -> str:
    """The beginning of the SHA-256 of a published weights file, which torchvision puts into its name.

    Args:
        member: Weights of a torchvision network.

    Returns:
        At least eight hexadecimal digits.

    Raises:
        UnconvError: If the name holds none.
    """
    match = re.search(r"-([a-f0-9]{8,})\.", member.url.rpartition("/")[2])
    if match is None:
        raise UnconvError(f"torchvision's {member!r} has no hash in its address; give --weights a file instead")
    return match[1]


def preprocess_of(member: WeightsEnum) -> Preprocess:
    """How torchvision prepares images for its published weights.

    Args:
        member: Weights of a torchvision network.

    Returns:
        The same preprocessing as ``member.transforms()``.
    """
    preset = member.transforms()
    return Preprocess(
        resize=preset.resize_size[0],
        crop=preset.crop_size[0],
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        interpolation="bicubic" if preset.interpolation == InterpolationMode.BICUBIC else "bilinear",
    )


def _cached_file(member: WeightsEnum, download: bool) -> Path:
    file = Path(torch.hub.get_dir(), "checkpoints", member.url.rpartition("/")[2])
    if file.is_file():
        return file
    by_hand = f"fetch {member.url} by hand and give it as --weights FILE"
    if not download:
        raise UnconvError(f"{member!r} is not in torch's cache ({display_name(file.parent)}); {by_hand}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(member.url, str(file), hash_prefix(member))
    except Exception as error:
        # urllib, ssl, http and torch each raise their own kinds
        raise UnconvError(
            one_line(f"cannot download {member!r} ({type(error).__name__}: {error}); {by_hand}")
        ) from error
    return file


def _existing_file(weights: str, choices: str = "") -> Path:
    try:
        if Path(weights).exists():
            return Path(weights)
    except (OSError, ValueError):
        pass
    raise UsageError(f"--weights {one_line(weights)} is no file{choices}; give a .safetensors, .pt or .pth file")
