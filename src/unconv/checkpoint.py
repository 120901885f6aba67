"""Weights files, read without running any code from them, and fitted into a model."""

from __future__ import annotations

import argparse
import collections
import difflib
import hashlib
import os
import pathlib
import pickle
import re
import stat
import struct
import types
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn

from unconv.errors import UnconvError, UsageError
from unconv.io import display_name, one_line, reason

# the largest published models stay below 1 MB; a long header is millions of names to make objects of
MAX_HEADER_BYTES = 10_000_000
MAX_DEPTH = 8
STATISTICS = {"running_mean", "running_var", "num_batches_tracked"}
RECIPE = (
    "import torch; f = lambda o: f(o.state_dict()) if hasattr(o, 'state_dict') else {k: f(v) for k, v in "
    "(o.items() if isinstance(o, dict) else enumerate(o)) if isinstance(v, (dict, list, tuple, torch.Tensor)) or "
    "hasattr(v, 'state_dict')} if isinstance(o, (dict, list, tuple)) else o; "
    "torch.save(f(torch.load(FILE, map_location='cpu', weights_only=False)), 'weights.pth')"
)


# plain records of numbers and text, which stand beside weights; making one of these runs no code of a file
HARMLESS = [
    *(argparse.Namespace, types.SimpleNamespace, collections.defaultdict, collections.Counter, dict, list, set),
    *((pathlib.PurePosixPath, f"pathlib.{name}") for name in ("PosixPath", "_local.PosixPath", "PurePosixPath")),
]


class WeightsMisfit(UnconvError):
    """Weights are those of another network: a name that the model does not have, or a tensor of another shape."""


@dataclass(frozen=True)
class WeightsFile:
    """What a weights file holds."""

    path: Path
    # all tensors, on the CPU, with dots between the names of nested dictionaries (state_dict.module.conv.weight);
    # where the file has them, torch's versions of modules in _metadata
    state: OrderedDict[str, Tensor]
    sha256: str


def read_weights(path: str | Path) -> WeightsFile:
    """Read a ``.safetensors`` file, or one saved by torch (any other suffix), without running any code from it."""
    path = Path(path)
    name, wanted = display_name(path), "give a .safetensors, .pt or .pth file"
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise UsageError(f"{name} is not a regular file; {wanted}")
        if status.st_size == 0:
            raise UnconvError(f"{name} is empty; {wanted} with weights")
        with open(path, "rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:
        raise UsageError(f"no weights file {name}; {wanted}") from error
    except OSError as error:
        raise UnconvError(f"cannot read {name}: {reason(error)}") from error
    if path.suffix.lower() == ".safetensors":
        return WeightsFile(path, _read_safetensors(path), sha256)
    state: OrderedDict[str, Tensor] = OrderedDict()
    versions: OrderedDict[str, Any] = OrderedDict()
    for key, value in _flatten(_read_pickle(path), "", MAX_DEPTH, versions):
        if key in state:
            raise UnconvError(f"{name} names two tensors {_shown(key)}; save the model's state dict alone")
        state[key] = value
    state._metadata = versions  # pyright: ignore[reportAttributeAccessIssue]
    return WeightsFile(path, state, sha256)


def choose_weights(module: nn.Module, file: WeightsFile, key: str | None = None) -> OrderedDict[str, Tensor]:
    """Return the tensors under the one prefix (``state_dict.module.``) where the model's names stand, without it.

    Where two sets of weights fit, ``key`` is the prefix of one of them, or its beginning; without it both are named.
    """
    name = display_name(file.path)
    if not file.state:
        raise UnconvError(f"{name} holds no tensors in dictionaries; give a file with the model's weights")
    target = module.state_dict()
    chosen = _prefixes(file.state, target)
    if key is not None:
        wanted, held = f"{key.strip('.')}.", chosen
        exact = [p for p in chosen if p == wanted.lstrip(".")]
        chosen = exact or [p for p in chosen if wanted != "." and p.startswith(wanted)]
        if not chosen:
            raise UsageError(f"{name} holds no weights of the model under {key!r}; it does under {_labels(held)}")
    chosen = _best(file.state, target, chosen)
    if len(chosen) > 1:
        raise UsageError(
            f"{len(chosen)} sets of weights in {name} fit the model: {_labels(chosen)}; "
            f"choose one with weights='{name}:{chosen[0].rstrip('.')}'"
        )
    prefix = chosen[0]
    state = OrderedDict((k[len(prefix) :], v) for k, v in file.state.items() if k.startswith(prefix))
    versions = {f"{k}." if k else "": v for k, v in getattr(file.state, "_metadata", {}).items()}
    versions = {k[len(prefix) :].rstrip("."): v for k, v in versions.items() if k.startswith(prefix)}
    # versions tell torch which old names to translate; without any, the names are today's
    state._metadata = OrderedDict(versions or target._metadata)  # pyright: ignore[reportAttributeAccessIssue]
    return state


def fit_weights(module: nn.Module, state: OrderedDict[str, Tensor], name: str) -> tuple[tuple[str, ...], str | None]:
    """Copy weights, all or a part, into a model; ``name`` is the file's, for messages.

    Names of parts that the model does not have (losses, metrics, another head) are left out; a name that a part of
    the model does not have is a ``WeightsMisfit``. Returns the model's names that are not given, in its order and
    without the counters of batch norms, and a note on what was left out.
    """
    target = module.state_dict()
    for key, tensor in state.items():
        if key in target:
            _check_tensor(name, key, tensor, target[key])
    detached = OrderedDict((k, v.detach()) for k, v in state.items())
    detached._metadata = state._metadata  # pyright: ignore[reportAttributeAccessIssue]
    try:
        result = module.load_state_dict(detached, strict=False)
    except Exception as error:
        # shapes were compared above; what is left are keys that a module translates and then cannot use
        raise UnconvError(one_line(f"{name} does not fit the model: {' '.join(str(error).split())}")[:400]) from error
    missing = set(result.missing_keys)
    loaded = module.state_dict()
    own = {part for key in loaded if key not in missing for part in _parents(key)}
    for key in result.unexpected_keys:
        # another network's: a part of the model that gets weights has no such name
        beside = "." not in key and any("." not in other for other in missing)
        if len(missing) == len(target) or beside or any(part in own for part in _parents(key)):
            near = difflib.get_close_matches(key[:200], list(target), n=1) or [next(iter(target), "nothing")]
            raise WeightsMisfit(f"{name}: the model has no {_shown(key)}; its keys are like {near[0]}")
    parameters = dict(module.named_parameters(remove_duplicate=False))
    for key in parameters:
        if key not in missing and not is_finite(parameters[key]):
            raise UnconvError(f"{name}: {_shown(key)} holds NaN or infinite values; use weights of numbers")
    # safetensors stores tied parameters once, so the second name is given too
    storages = {t.data_ptr() for key, t in loaded.items() if key not in missing and t.numel()}
    absent = tuple(
        key
        for key, tensor in loaded.items()
        if key in missing and not key.endswith("num_batches_tracked") and tensor.data_ptr() not in storages
    )
    foreign = result.unexpected_keys
    return absent, f"{name}: left out {len(foreign)} keys of other parts, as {_shown(foreign[0])}" if foreign else None


def hash_state(state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of the names, types, shapes and bytes of tensors on the CPU, whatever their order."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode("utf-8", "surrogatepass"))
        digest.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def is_finite(tensor: Tensor) -> bool:
    """Return whether a tensor on the CPU holds neither NaN nor infinite values as float32."""
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.detach())
    # numpy does not wake torch's threads for each of some hundred small tensors
    return not tensor.is_floating_point() or bool(np.isfinite(tensor.detach().float().numpy()).all())


def _prefixes(state: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> list[str]:
    """List the prefixes under which names of the model stand, with tensors of the same shape where there are any."""
    scores: dict[str, int] = {}
    for key, tensor in state.items():
        for prefix, name in _splits(key):
            if name in target:
                scores[prefix] = max(scores.get(prefix, 0), 1 + (tensor.shape == target[name].shape))
    # names of an old version, which a module may translate, stand as they are
    return [prefix for prefix, score in scores.items() if score == max(scores.values())] or [""]


def _splits(key: str) -> Iterator[tuple[str, str]]:
    """Yield every way to cut a name at a dot into prefix and rest."""
    yield "", key
    for i, char in enumerate(key):
        if char == ".":
            yield key[: i + 1], key[i + 1 :]


def _best(state: Mapping[str, Tensor], target: Mapping[str, Tensor], prefixes: list[str]) -> list[str]:
    """List the prefixes that fit best: as many tensors as any other, counters and running statistics apart."""
    names = [name for name in target if name.rpartition(".")[2] not in STATISTICS] or list(target)

    def given(prefix: str) -> list[str]:
        return [n for n in names if prefix + n in state and state[prefix + n].shape == target[n].shape]

    sets = {prefix: {prefix + name for name in given(prefix)} for prefix in prefixes}
    most = max(map(len, sets.values()))
    best = [prefix for prefix in prefixes if len(sets[prefix]) == most]
    # where the model repeats names, "" and "head." can meet the same tensors; the shorter one is the whole model
    return [p for p in best if not any(len(q) < len(p) and sets[p] & sets[q] for q in best)]


def _labels(prefixes: Any) -> str:
    names = [prefix.rstrip(".") or "(nothing)" for prefix in prefixes]
    return ", ".join(map(_shown, names[:12])) + (f" and {len(names) - 12} more" if len(names) > 12 else "")


def _parents(key: str) -> list[str]:
    """List the modules that a name lies in, the root apart."""
    parts = key.split(".")[:-1]
    return [".".join(parts[: i + 1]) for i in range(len(parts))]


def _shown(key: str) -> str:
    return one_line(key if len(key) <= 80 else f"{key[:77]}...")


def _check_tensor(name: str, key: str, tensor: Tensor, expected: Tensor) -> None:
    if tensor.shape != expected.shape:
        raise WeightsMisfit(
            f"{name}: {_shown(key)} has shape {tuple(tensor.shape)}; the model expects {tuple(expected.shape)}"
        )
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
        raise UnconvError(f"{name}: {_shown(key)} is no plain tensor of numbers; save it as one")
    if (expected.is_floating_point() and not tensor.is_floating_point()) or (
        tensor.is_complex() and not expected.is_complex()
    ):
        raise UnconvError(f"{name}: {_shown(key)} has type {tensor.dtype}; the model expects {expected.dtype}")


def _flatten(content: Any, path: str, depth: int, versions: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Yield all tensors of nested dictionaries and lists, and collect torch's versions of modules."""
    if isinstance(content, Tensor) and path:
        yield path, content
    elif isinstance(content, Mapping | list | tuple) and depth:
        stated = getattr(content, "_metadata", None)
        for key, value in stated.items() if isinstance(stated, Mapping) else ():
            if isinstance(key, str) and isinstance(value, Mapping):
                versions[f"{path}.{key}".strip(".")] = value
        for key, value in content.items() if isinstance(content, Mapping) else enumerate(content):
            if isinstance(key, str | int):
                yield from _flatten(value, f"{path}.{key}" if path else str(key), depth - 1, versions)


def _read_safetensors(path: Path) -> OrderedDict[str, Tensor]:
    try:
        with open(path, "rb") as start:
            claimed = struct.unpack("<Q", start.read(8).ljust(8, b"\0"))[0]
        if claimed > MAX_HEADER_BYTES:
            raise ValueError(f"its header claims {claimed} bytes; at most {MAX_HEADER_BYTES} are read")
        # the library itself checks every offset against the file's length
        with safe_open(path, framework="pt", device="cpu") as file:
            return OrderedDict((key, file.get_tensor(key)) for key in list(file.keys()))
    except Exception as error:
        raise UnconvError(f"{display_name(path)} is not a readable safetensors file ({reason(error)})") from error


def _read_pickle(path: Path) -> Any:
    name = display_name(path)
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                entries = archive.infolist()
            if any(entry.filename.endswith("/constants.pkl") for entry in entries):
                raise UnconvError(f"{name} is a TorchScript program, which is not run; save the network's state_dict")
            # torch.save never compresses, so this is another archive or a decompression bomb
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise UnconvError(f"{name} is a compressed archive; unpack it and give the weights file inside")
        with warnings.catch_warnings(), torch.serialization.safe_globals(HARMLESS):
            warnings.simplefilter("ignore")
            # not mapped into memory: mapped records are not checked against their sizes
            return torch.load(path, map_location="cpu", weights_only=True, mmap=False)
    except UnconvError:
        raise
    except pickle.UnpicklingError as error:
        # torch's message is a page of advice around one line
        match = re.search(r"(?:Unsupported global: GLOBAL|unsupported GLOBAL) (\S+)", str(error))
        cause = one_line(match[1] if match else str(error).strip().split("\n")[0])[:200]
        raise UnconvError(
            f"{name} holds something other than tensors ({cause}) and is refused, since loading it could run code; "
            f"where you trust it, keep its tensors only: {RECIPE}"
        ) from error
    except Exception as error:
        # torch and zipfile raise almost anything on damaged files: RuntimeError, EOFError, KeyError, struct.error, ...
        raise UnconvError(
            f"{name} is damaged or no weights file ({reason(error)}); give a .safetensors, .pt or .pth file"
        ) from error
