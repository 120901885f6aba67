"""A report made by hand: the document and rows of four layers, three series and two photographs, with pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import skimage.data
from PIL import Image, ImageFilter

from unconv.reporting.data import Report, read_report
from unconv.reporting.page import write_page, write_report

LAYERS = ("conv1", "layer1", "layer2", "fc")
NAMES = ("cat.png", "rocket.png")
LINEAR, ALONE, GATES = ("linear", "none"), ("gauss-newton", "none"), ("gauss-newton", "gates")
# means over two images, which lie 0.02 to both sides
ERRORS = {LINEAR: (0.10, 0.25, 0.60, 0.80), ALONE: (0.08, 0.20, 0.70, 0.90), GATES: (0.05, 0.15, 0.40, 0.70)}
HOLLOW = {(ALONE, 2), (ALONE, 3), (GATES, 3)}  # stopped by their budget, except the first image
RANDOM_WEIGHTS = "random, seed 0"


@dataclass
class MadeReport:
    """The arguments of ``write_report``."""

    run: Path
    document: dict[str, Any]
    rows: list[dict[str, Any]]
    config: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)

    def read(self) -> Report:
        """Arrange it."""
        return read_report(self.run, self.document, self.rows, self.config, self.environment)

    def write(self, **limits: int) -> Path:
        """Write the page alone."""
        return write_page(self.run, self.read(), {}, **limits)

    def write_all(self) -> Path:
        """Write figures and page."""
        return write_report(self.run, self.document, self.rows, self.config, self.environment)


def photograph(name: str, size: tuple[int, int]) -> Image.Image:
    """Return a photograph of scikit-image at a size."""
    picture = {"cat.png": skimage.data.chelsea, "rocket.png": skimage.data.rocket}.get(name, skimage.data.coffee)
    return Image.fromarray(picture()).resize(size)


def build_report(
    run: Path, *, names: tuple[str, ...] = NAMES, size: tuple[int, int] = (96, 64), **changes: Any
) -> MadeReport:
    """Return a report whose pictures lie in the run directory; ``changes`` are of its document."""
    (run / "images").mkdir(parents=True, exist_ok=True)
    rows = []
    for n, name in enumerate(names):
        original = photograph(NAMES[n % 2], size)
        original.save(run / f"images/{n:04d}.png")
        for i, layer in enumerate(LAYERS):
            for w, (key, errors) in enumerate(ERRORS.items()):
                error = errors[i] + (0.02 if n % 2 else -0.02)
                picture = f"images/{n:04d}-{3 * i + w:03d}.png"
                original.filter(ImageFilter.GaussianBlur(8 * error)).save(run / picture)
                rows.append({
                    "image": n,
                    "file": name,
                    "layer": layer,
                    **fields(key),
                    "relative_error": error,
                    "psnr": 30 - 20 * error,
                    "ssim": 1 - error,
                    "seconds": 0.5,
                    "passes": None if key == LINEAR else 64,
                    "status": "max_passes" if (key, i) in HOLLOW and n else "converged",
                    "picture": picture,
                })
    document = {
        "run": str(run),
        "layers": [layer_document(i, len(names)) for i in range(len(LAYERS))],
        "skipped_images": [{"file": "broken.jpg", "reason": "truncated"}],
        "skipped_modules": [{"module": "head", "reason": "it is not reached"}],
        "model": {"name": "tiny-net", "weights": "tiny.safetensors", "sha256": "00ff", "input_shape": [3, *size[::-1]]},
        "command": "unconv report tiny-net --seed 3",
        "notes": ["two reference images are under test"],
    }
    preprocessing = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "scale": 1.0, "resize": None}
    config = {"seed": 3, "budget": 600.0, "passes": dict.fromkeys(LAYERS, 64), "preprocessing": preprocessing}
    return MadeReport(run, document | changes, rows, config, {"packages": {"torch": "2.0"}})


def fields(key: tuple[str, str]) -> dict[str, str]:
    """Return the fields of a series that is recovered from the network's features."""
    return {"recover": "image", "code": "network", "method": key[0], "side_info": key[1]}


def layer_document(i: int, images: int) -> dict[str, Any]:
    """Return the document of one layer."""
    shares = {"luminance": [0.99, 0.9, 0.6, 0.3], "colour": [0.95, 0.5, 0.2, None]}
    explained = {"edges": [0.0, 0.0625, 0.125, 0.25, 0.5], "luminance_total": 0.9 - 0.2 * i, "colour_total": 0.5}
    return {
        "layer": LAYERS[i],
        "kind": "Conv2d",
        "shape": [8 * (i + 1), 16, 24],
        "linear": {"images": images, "explained_variance": explained | shares},
        "inversion": [
            {
                **fields(key),
                "relative_error": errors[i],
                "psnr": 30 - 20 * errors[i],
                "ssim": 1 - errors[i],
                "seconds": 0.5,
                "passes": None if key == LINEAR else 64,
                "images": images,
                "converged": 1 if (key, i) in HOLLOW else images,
                "failed": 0,
                "note": None,
            }
            for key, errors in ERRORS.items()
        ],
        "block": block_document(i) if i < 2 else None,
    }


def block_document(i: int) -> dict[str, Any]:
    """Return the theory of one conv block."""
    code = {
        "known": "switches",
        "images": 2,
        "equations": 4500,
        "unknowns": 6000,
        "undetermined": 1500,
        "exact": False,
        "proven": True,
        "sigma": {"lower": 0.25, "upper": 0.375},
    }
    return {
        "name": f"{LAYERS[i]}.conv",
        "kind": "conv+relu+maxpool",
        "input_shape": [3 * (i + 1), 64, 96],
        "code_shape": [8, 32, 48],
        "sparsity": {"activation": 50.0 - i, "pooled": 70.0 - i},
        "coherence": {
            "learned": {"signed": 0.5 + 0.1 * i, "absolute": 0.6, "shifted": 0.7},
            "random": {"signed": 0.1, "absolute": 0.2, "shifted": 0.3},
        },
        "rip": [
            {"filters": filters, "boundary": boundary, "k": 40 + i, "p01": 0.9, "p50": 1.0, "p99": 1.1}
            for filters in ("learned", "normalised", "gaussian")
            for boundary in ("full", "cropped")
        ],
        "certificate": {
            "delta_k": {"k": 40, "lower": 0.5, "upper": 1.25, "ratio": 2.5, "how": "coherence"},
            "delta_2k": {"k": 40, "lower": 0.75, "upper": 2.5, "ratio": 3.3, "how": "coherence"},
            "input": code,
            "image": code,
            "direction": {"picture": "images/0000-000.png", "undetermined": True, "gain": 0.5, "largest": 10.0},
            "images": [],
            "notes": ["no bounds for one image"],
        },
    }


@pytest.fixture(scope="session")
def built() -> Callable[..., MadeReport]:
    """Return ``build_report``, for fixtures that outlive a test."""
    return build_report


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., MadeReport]:
    """Build a report in a run directory of its own; see ``build_report``."""
    return lambda **changes: build_report(tmp_path / "run", **changes)
