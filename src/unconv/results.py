"""What ``unconv.invert`` and ``unconv.report`` give back: numbers and tensors, and how a notebook shows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from unconv import html_repr
from unconv.errors import UnconvError
from unconv.images import SkippedImage, to_uint8

SHOWN = 8  # images
EDGE = 160  # pixels of a picture in a report's table
MEANS = ("relative_error", "psnr", "ssim", "feature_error", "seconds", "passes")
COLUMNS = (*MEANS, "status")


def _of_rows(name: str, says: str) -> Any:
    """Return a property: one entry per image."""
    return property(lambda self: tuple(row.get(name) for row in self.rows), doc=says)


def _numbers(name: str, says: str) -> Any:
    """Return a property: one number per image, shape ``(N,)``, float64, NaN where there is none."""

    def read(self: InvertResult) -> Tensor:
        values = [row.get(name) for row in self.rows]
        return torch.tensor([float("nan") if v is None else v for v in values], dtype=torch.float64)

    return property(read, doc=f"{says} Shape ``(N,)``, float64, NaN where there is none.")


@dataclass(frozen=True, eq=False)
class InvertResult:
    """One layer inverted over images by one method.

    Attributes:
        layer: Name of the layer.
        recover: ``"image"``, or ``"input"``: a conv block's own input.
        code: ``"network"`` or ``"paper"``.
        method: The method.
        side_info: What was given besides the features.
        estimates: What was recovered of each image, as the network counts, not pixels; NaN where nothing was.
            Shape ``(*shape)`` each.
        references: What it should be, the same shapes; ``None`` where features were given without images.
        rows: The numbers of each image, as rows of ``results.parquet``.
        skipped: Images that were left out.
        notes: Remarks, such as side information that the network does not have.
        pictures: Original and reconstruction of each image in pixels, where an image was recovered.
    """

    layer: str
    recover: str
    code: str
    method: str
    side_info: str
    estimates: tuple[Tensor, ...]
    references: tuple[Tensor | None, ...]
    rows: tuple[dict[str, Any], ...] = field(repr=False)
    skipped: tuple[SkippedImage, ...] = ()
    notes: tuple[str, ...] = ()
    pictures: tuple[tuple[Tensor | None, Tensor] | None, ...] = field(default=(), repr=False)

    files = _of_rows("file", "Names of the images.")
    status = _of_rows("status", "How the solver ended for each image, or why there is no result.")
    passes = _of_rows("passes", "Passes made for each image; ``None`` for methods that make none.")
    relative_error = _numbers("relative_error", "``||estimate - reference|| / ||reference||``.")
    psnr = _numbers("psnr", "Decibels, on pixels in ``[0, 1]``; NaN too where the image is exact.")
    ssim = _numbers("ssim", "Structural similarity, on pixels in ``[0, 1]``.")
    feature_error = _numbers("feature_error", "``||f(estimate) - features|| / ||features||``, of features alone.")
    seconds = _numbers("seconds", "Time of each image.")

    @property
    def estimate(self) -> Tensor:
        """What was recovered, as one batch ``(N, *shape)``; UnconvError if sizes differ, see ``estimates``."""
        return _stacked(self.estimates, "estimates")

    @property
    def reference(self) -> Tensor:
        """What it should be, as one batch ``(N, *shape)``; UnconvError if sizes differ or the images are not known."""
        return _stacked(self.references, "references")

    def document(self) -> dict[str, Any]:
        """Return the result as ``unconv invert --json`` prints it; ``summary`` holds means over the images."""
        images = [{name: row.get(name) for name in ("file", *COLUMNS, "picture")} for row in self.rows]
        known = {name: [float(v) for image in images if (v := image[name]) is not None] for name in MEANS}
        return {
            **{name: getattr(self, name) for name in ("layer", "recover", "code", "method", "side_info")},
            "images": images,
            "summary": {name: fmean(v) if v else None for name, v in known.items()} | {"images": len(images)},
            "skipped": [asdict(image) for image in self.skipped],
            "notes": list(self.notes),
        }

    def __repr__(self) -> str:
        of, errors = "relative error", self.relative_error
        if errors.isnan().all():
            of, errors = "error of the features", self.feature_error
        count = f"{len(self.files)} image{'s' if len(self.files) != 1 else ''}"
        short = sum(status != "converged" for status in self.status)
        ended = f", {short} of them not converged" if short else ""
        return f"InvertResult({self._title()}: {count}, mean {of} {errors.nanmean().item():.3g}{ended})"

    def _title(self) -> str:
        what = "the image" if self.recover == "image" else "its input"
        code = "" if self.code == "network" else ", the paper's code"
        return f"{what} from {self.layer} by {self.method}, side information {self.side_info}{code}"

    def _repr_html_(self) -> str:
        shown = ("relative_error", "psnr", "ssim", "status")
        rows = [(r["file"], *self._shown(i), *map(r.get, shown)) for i, r in enumerate(self.rows[:SHOWN])]
        rest = len(self.rows) - len(rows)
        mean = {**self.document()["summary"], "status": f"and {rest} more images" if rest > 0 else ""}
        rows.append(("mean", None, None, *map(mean.get, shown)))
        header = ("image", "original", "reconstruction", "relative error", "PSNR", "SSIM", "status")
        return f"<p>{html_repr.escape(self._title())}</p>{html_repr.grid(header, rows)}"

    def _shown(self, i: int) -> list[html_repr.Markup | None]:
        pair = self.pictures[i] if self.pictures else None
        if pair is None or len(pair[1]) not in {1, 3}:
            return [None, None]
        shown = zip(pair, ("original", "reconstruction"), strict=True)
        return [
            x if x is None else html_repr.picture(Image.fromarray(to_uint8(x.nan_to_num(0.0))), n) for x, n in shown
        ]


@dataclass(frozen=True, eq=False)
class ReportResult:
    """A report that has been written.

    Attributes:
        page: The page, one file that opens from disk.
        run: The run directory that holds it, with ``results.parquet`` and the pictures.
        layers: What was found of each layer, as ``unconv report --json`` prints it.
        rows: One row per image, layer and method.
        skipped_modules: ``{"module", "reason"}`` of what was left out of the network.
        skipped_images: ``{"file", "reason"}`` of images that were left out.
        document: All of it, as ``unconv report --json`` prints it.
    """

    page: Path
    run: Path
    layers: list[dict[str, Any]]
    rows: list[dict[str, Any]] = field(repr=False)
    skipped_modules: list[dict[str, str]]
    skipped_images: list[dict[str, str]]
    document: dict[str, Any] = field(repr=False)

    def __repr__(self) -> str:
        return f"ReportResult({len(self.layers)} layers, page {self.page})"

    def _repr_html_(self) -> str:
        header = ("layer", "features", "image recovered", "linear error", "best error", "by")
        body = []
        for layer in self.layers:
            found = [i for i in layer["inversion"] if i["recover"] == "image" and i["relative_error"] is not None]
            best = min(found, key=lambda i: i["relative_error"], default=None)
            linear = None if layer["linear"] is None else layer["linear"]["relative_error"]
            last = (None, None) if best is None else (best["relative_error"], f"{best['method']}, {best['side_info']}")
            if best is not None and best["converged"] < best["images"]:
                last = (last[0], f"{last[1]}; {best['images'] - best['converged']} of {best['images']} not converged")
            body.append((layer["layer"], layer["shape"], self._picture(layer["layer"], best), linear, *last))
        page = html_repr.escape(str(self.page))
        address = html_repr.escape(self.page.resolve().as_uri())
        return f'<p>Report: <a href="{address}">{page}</a></p>{html_repr.grid(header, body)}'

    def _picture(self, layer: str, best: dict[str, Any] | None) -> html_repr.Markup | None:
        if best is None:
            return None
        task = {key: best[key] for key in ("recover", "code", "method", "side_info")} | {"layer": layer}
        for row in self.rows:
            if row["picture"] and all(row[key] == value for key, value in task.items()):
                with Image.open(self.run / row["picture"]) as opened:
                    opened.thumbnail((EDGE, EDGE))
                    return html_repr.picture(opened.convert("RGB"), f"{row['file']} from {layer}")
        return None


def _stacked(tensors: Sequence[Tensor | None], name: str) -> Tensor:
    known = [t for t in tensors if t is not None]
    if len(known) < len(tensors):
        raise UnconvError("only features were given, so what the estimates should be is not known")
    if len({t.shape for t in known}) > 1:
        raise UnconvError(f"the images differ in size, so they are no batch; use {name}, or give size")
    return torch.stack(known)
