"""``unconv doctor``: whether the installation works; versions, devices, and a tiny inversion on each of them."""

from __future__ import annotations

import importlib
import os
import platform
import re
import time
from collections.abc import Callable
from importlib import metadata
from typing import Any

from unconv.commands.options import Doctor

STAGE = "features.3"
SIDE = 32  # pixels
LARGEST_ERROR = 0.1  # of the image from the code of STAGE; 0.02 is usual
LARGEST_GAP = 1e-5
ADAPTERS = ("pylops", "deepinv")


def run(options: Doctor) -> tuple[dict[str, Any], str]:
    """Check the installation. A part that does not work is reported, and the others are checked all the same.

    Args:
        options: The options.

    Returns:
        The JSON document and its text; ``ok`` is whether everything works.
    """
    packages = {name: _version(name) for name in _required()}
    checks = [_check("packages", lambda: _all_there(packages))]
    document: dict[str, Any] = {
        "ok": False,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "packages": packages,
        "adapters": {name: _version(name) for name in ADAPTERS},
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": None,
        "devices": [],
        "checks": checks,
    }
    found = _check("torch", lambda: _devices(document))
    checks.append(found)
    if found["ok"]:
        checks.append(_check("weights", _weights))
        checks.append(_check("photographs", _photographs))
        for device in document["devices"]:
            checks.append(_check(f"adjoint on {device['device']}", lambda name=device["device"]: _adjoint(name)))
            checks.append(_check(f"inversion on {device['device']}", lambda name=device["device"]: _inversion(name)))
    document["ok"] = all(check["ok"] for check in checks)
    return document, _text(document)


def _check(name: str, look: Callable[[], str]) -> dict[str, Any]:
    start = time.perf_counter()
    try:
        ok, said = True, look()
    except Exception as error:  # whatever is broken here is what the user wants to know
        ok, said = False, " ".join(f"{type(error).__name__}: {error}".split())
    return {"check": name, "ok": ok, "said": said, "seconds": time.perf_counter() - start}


def _required() -> list[str]:
    """The packages that an installation needs, the optional ones left out."""
    try:
        wanted = metadata.requires("unconv") or []
    except metadata.PackageNotFoundError:
        return []
    names = [re.match(r"[\w.-]+", line) for line in wanted if "extra ==" not in line]
    return ["unconv", *sorted(match[0].lower() for match in names if match)]


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _all_there(packages: dict[str, str | None]) -> str:
    absent = [name for name, version in packages.items() if version is None]
    if not packages:
        raise RuntimeError("unconv is not installed, only lying on the path; run: pip install -e .")
    if absent:
        raise RuntimeError(f"not installed: {', '.join(absent)}; run: pip install {' '.join(absent)}")
    return f"{len(packages)} packages"


def _devices(document: dict[str, Any]) -> str:
    torch = importlib.import_module("torch")
    document["threads"] = torch.get_num_threads()
    document["devices"] = [{"device": "cpu", "name": platform.processor() or platform.machine(), "memory_bytes": None}]
    for i in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(i)
        document["devices"].append({
            "device": f"cuda:{i}",
            "name": properties.name,
            "memory_bytes": properties.total_memory,
        })
    built = torch.version.cuda or torch.version.hip
    unused = f"; built for GPUs ({built}), but finds none here" if built and not torch.cuda.is_available() else ""
    return f"{torch.__version__} on {len(document['devices'])} device(s), {torch.get_num_threads()} threads{unused}"


def _weights() -> str:
    from unconv.models import BUNDLED, load_model

    return f"{BUNDLED} with SHA-256 {load_model(BUNDLED).weights.sha256[:8]}..."


def _photographs() -> str:
    from unconv.images import read_image, sample_photographs

    found = [read_image(path).size for path in sample_photographs()]
    return f"{len(found)} bundled photographs"


def _adjoint(device: str) -> str:
    import torch

    from unconv.operators import ConvOperator, adjoint_gap

    generator = torch.Generator().manual_seed(0)
    operator = ConvOperator(torch.randn(8, 3, 3, 3, generator=generator).to(device), (3, 16, 16), stride=2, padding=1)
    x = torch.randn(2, *operator.input_shape, generator=generator).to(device)
    z = torch.randn(2, *operator.output_shape, generator=generator).to(device)
    gap = adjoint_gap(operator, x, z)
    if not gap < LARGEST_GAP:
        raise RuntimeError(f"the transposed convolution is off by {gap:.1e}; rounding is below {LARGEST_GAP}")
    return f"exact up to {gap:.0e}"


def _inversion(device: str) -> str:
    from unconv.api import invert

    found = invert("cifar-vgg", STAGE, start="image", size=SIDE, limit=1, effort=0.5, device=device, progress=False)
    error = found.relative_error.item()
    if not error < LARGEST_ERROR:
        raise RuntimeError(f"relative error {error:.3f} from {STAGE}; it should be below {LARGEST_ERROR}")
    return f"a photograph from the code of {STAGE}: relative error {error:.3f} in {found.seconds.item():.2f} s"


def _text(document: dict[str, Any]) -> str:
    versions = {name: version or "absent" for name, version in (document["packages"] | document["adapters"]).items()}
    lines = [
        f"python {document['python']} on {document['platform']}, {document['cpus']} CPUs",
        *(f"{device['device']}: {device['name']}{_memory(device)}" for device in document["devices"]),
        ", ".join(f"{name} {version}" for name, version in versions.items()),
        "",
        *(f"{'ok  ' if check['ok'] else 'FAIL'}  {check['check']}: {check['said']}" for check in document["checks"]),
        "",
    ]
    if document["ok"]:
        return "\n".join([*lines, "Everything works. Next: unconv report cifar-vgg --size 32"])
    failed = [check["check"] for check in document["checks"] if not check["ok"]]
    return "\n".join([*lines, f"Does not work: {', '.join(failed)}."])


def _memory(device: dict[str, Any]) -> str:
    return "" if device["memory_bytes"] is None else f", {device['memory_bytes'] / 1e9:.0f} GB"
