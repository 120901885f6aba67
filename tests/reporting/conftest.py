from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from unconv.reporting.data import ReportData

STAGES = ("features.0", "features.3", "features.7")
DEFAULT_METHODS = (("transpose", "switches"), ("min-norm", "switches"), ("min-norm", "gates"))
# mean over two images is the value itself: the images lie 0.02 to both sides
ERRORS = {
    ("transpose", "switches"): (0.80, 0.85, 0.90),
    ("min-norm", "switches"): (0.10, 0.20, 0.45),
    ("min-norm", "gates"): (0.05, 0.15, 0.30),
}
NAMES = ("cat.png", "dog.png")


def save_noise(path: Path, size: tuple[int, int], seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def build_report(
    run: Path, *, names: tuple[str, ...] = NAMES, size: tuple[int, int] = (24, 16), **changes: Any
) -> ReportData:
    """A report of three stages, three ways and two images, its pictures in the run directory."""
    pictures = []
    for n, name in enumerate(names):
        save_noise(run / f"images/{n}.png", size, n)
        records = []
        for i, stage in enumerate(STAGES):
            for w, (method, side) in enumerate(DEFAULT_METHODS):
                path = f"images/{n}-{i}-{w}.png"
                save_noise(run / path, size, 100 * n + 10 * i + w + 1000)
                error = ERRORS[method, side][i] + (0.02 if n % 2 else -0.02)
                records.append({
                    "stage": stage,
                    "from": "image",
                    "code": "network",
                    "method": method,
                    "side_info": side,
                    "path": path,
                    "relative_error": error,
                    "psnr": 30 - 20 * error,
                    "ssim": 1 - error,
                })
        pictures.append({"file": name, "original": f"images/{n}.png", "reconstructions": records})
    data = {
        "model": "tiny-net",
        "weights": "tiny.safetensors (SHA-256 00ff)",
        "command": "unconv report tiny-net --seed 3",
        "config": {"seed": 3, "preprocessing": {"size": 24}},
        "environment": {"torch": "2.0"},
        "stages": [stage_document(i, name, len(names)) for i, name in enumerate(STAGES)],
        "skipped_modules": [{"module": "head", "reason": "a linear layer"}],
        "skipped_images": [{"file": "broken.jpg", "reason": "truncated"}],
        "pictures": pictures,
    }
    return ReportData(**(data | changes))


@pytest.fixture(scope="session")
def built() -> Callable[..., ReportData]:
    """``build_report``, for fixtures that outlive a test."""
    return build_report


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., tuple[ReportData, Path]]:
    """A report with its run directory; see ``build_report``."""

    def build(**changes: Any) -> tuple[ReportData, Path]:
        return build_report(tmp_path / "run", **changes), tmp_path / "run"

    return build


def stage_document(i: int, name: str, images: int) -> dict[str, Any]:
    return {
        "stage": name,
        "kind": "conv+relu+maxpool",
        "input_shape": [3 * (i + 1), 16, 24],
        "code_shape": [8 - i, 8, 12],
        "activation": 50.0 - i,
        "pooled": 70.0 - i,
        "coherence": {
            "learned": {"signed": 0.5 + 0.1 * i, "absolute": 0.6, "shifted": 0.7},
            "random": {"signed": 0.1, "absolute": 0.2, "shifted": 0.3},
        },
        "rip": [
            {"filters": filters, "boundary": boundary, "k": 40 + i, "p01": 0.9, "p50": 1.0, "p99": 1.1}
            for filters in ("learned", "normalised", "gaussian")
            for boundary in ("full", "cropped")
        ],
        "inversion": [
            {
                "from": "image",
                "code": "network",
                "method": method,
                "side_info": side,
                "relative_error": ERRORS[method, side][i],
                "psnr": 30 - 20 * ERRORS[method, side][i],
                "ssim": 1 - ERRORS[method, side][i],
                "seconds": 0.5,
                "images": images,
                "failed": 0,
                "note": None,
            }
            for method, side in DEFAULT_METHODS
        ],
    }
