"""What ``unconv.invert`` and ``unconv.report`` give back: numbers and tensors, and how a notebook shows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torchvision.transforms.functional as TF
from PIL import Image
from torch import Tensor

from unconv import html_repr
from unconv.images import SkippedImage
from unconv.inversion.methods import InversionMethod

SHOWN = 8  # images
EDGE = 160  # pixels of a picture in a report's table


@dataclass(frozen=True, eq=False)
class InvertResult:
    """One stage inverted over images, one way.

    Attributes:
        stage: Name of the stage.
        way: What was recovered, from which code, by which method, knowing what.
        files: Names of the images.
        estimates: What was recovered of each image; NaN where the way is not open to it. As the network counts, not
            pixels. Shape ``(*shape)`` each.
        references: What it should be, the same shapes.
        relative_error: ``||estimate - reference|| / ||reference||``. Shape ``(N,)``, float64, NaN where there is none.
        psnr: Decibels, on pixels in ``[0, 1]``; NaN where no image was recovered, or it is exact. Shape ``(N,)``.
        ssim: Structural similarity, likewise.
        seconds: Time of each image. Shape ``(N,)``.
        status: How the solver ended for each image, or why there is no result.
        skipped: Images that were left out.
        pictures: Original and reconstruction of each image in pixels, where an image was recovered.
    """

    stage: str
    way: InversionMethod
    files: tuple[str, ...]
    estimates: tuple[Tensor, ...]
    references: tuple[Tensor, ...]
    relative_error: Tensor
    psnr: Tensor
    ssim: Tensor
    seconds: Tensor
    status: tuple[str, ...]
    skipped: tuple[SkippedImage, ...] = ()
    pictures: tuple[tuple[Tensor, Tensor] | None, ...] = field(default=(), repr=False)

    @property
    def estimate(self) -> Tensor:
        """What was recovered, as one batch. Shape ``(N, *shape)``.

        Raises:
            ValueError: If the images differ in size; ``estimates`` has them one by one.
        """
        return _stacked(self.estimates, "estimates")

    @property
    def reference(self) -> Tensor:
        """What it should be, as one batch. Shape ``(N, *shape)``.

        Raises:
            ValueError: If the images differ in size; ``references`` has them one by one.
        """
        return _stacked(self.references, "references")

    def __repr__(self) -> str:
        return (
            f"InvertResult({self._title()}: {len(self.files)} images, "
            f"mean relative error {self.relative_error.nanmean().item():.3g})"
        )

    def _title(self) -> str:
        what = "the image" if self.way.recovered == "image" else "its input"
        code = "" if self.way.code == "network" else ", the paper's code"
        return f"{what} from {self.stage} by {self.way.method}, side information {self.way.side_info}{code}"

    def _repr_html_(self) -> str:
        header = ("image", "true", "recovered", "relative error", "PSNR", "SSIM", "status")
        rows = []
        for i, name in enumerate(self.files[:SHOWN]):
            numbers = (self._number(values, i) for values in (self.relative_error, self.psnr, self.ssim))
            rows.append((name, *self._shown(i), *numbers, self.status[i]))
        rest = len(self.files) - len(rows)
        mean = tuple(self._mean(values) for values in (self.relative_error, self.psnr, self.ssim))
        rows.append(("mean", None, None, *mean, f"and {rest} more images" if rest > 0 else ""))
        return f"<p>{html_repr.escape(self._title())}</p>{html_repr.grid(header, rows)}"

    def _shown(self, i: int) -> tuple[html_repr.Markup | None, html_repr.Markup | None]:
        pair = self.pictures[i] if self.pictures else None
        if pair is not None and html_repr.is_picture(pair[0][None]):
            return html_repr.picture(pair[0], "original"), html_repr.picture(pair[1], "reconstruction")
        if self.references[i].ndim != 3:
            return None, None
        true, recovered = (x[i][:SHOWN].unsqueeze(1) for x in (self.references, self.estimates))
        return html_repr.mosaic(true, "first channels of the truth"), html_repr.mosaic(recovered, "and of the estimate")

    @staticmethod
    def _number(values: Tensor, i: int) -> float | None:
        return None if values[i].isnan() else values[i].item()

    @staticmethod
    def _mean(values: Tensor) -> float | None:
        return None if values.isnan().all() else values.nanmean().item()


@dataclass(frozen=True, eq=False)
class ReportResult:
    """A report that has been written.

    Attributes:
        page: The page, one file that opens from disk.
        run: The run directory that holds it, with ``results.parquet`` and the pictures.
        stages: What was found of each stage, as ``unconv report --json`` prints it.
        rows: One row per image, stage and way.
        skipped_modules: ``{"module", "reason"}`` of what was left out of the network.
        skipped_images: ``{"file", "reason"}`` of images that were left out.
    """

    page: Path
    run: Path
    stages: list[dict[str, Any]]
    rows: list[dict[str, Any]] = field(repr=False)
    skipped_modules: list[dict[str, str]]
    skipped_images: list[dict[str, str]]

    def __repr__(self) -> str:
        return f"ReportResult({len(self.stages)} stages, page {self.page})"

    def _repr_html_(self) -> str:
        header = ("stage", "parts", "code", "% non-zero", "image recovered", "best error, image", "best error, layer")
        body = []
        for stage in self.stages:
            best = {of: self._best(stage, of) for of in ("image", "layer")}
            said = (
                None if b is None else f"{b['relative_error']:.3g} ({b['method']}, {b['side_info']})"
                for b in best.values()
            )
            picture = self._picture(stage["stage"], best["image"])
            body.append((stage["stage"], stage["kind"], stage["code_shape"], stage["pooled"], picture, *said))
        page = html_repr.escape(str(self.page))
        address = html_repr.escape(self.page.resolve().as_uri())
        return f'<p>Report: <a href="{address}">{page}</a></p>{html_repr.grid(header, body)}'

    @staticmethod
    def _best(stage: dict[str, Any], of: str) -> dict[str, Any] | None:
        found = [i for i in stage["inversion"] if i["from"] == of and i["relative_error"] is not None]
        return min(found, key=lambda i: i["relative_error"], default=None)

    def _picture(self, stage: str, way: dict[str, Any] | None) -> html_repr.Markup | None:
        if way is None:
            return None
        of_way = {key: way[key] for key in ("from", "code", "method", "side_info")} | {"stage": stage}
        for row in self.rows:
            if row["picture"] and all(row[key] == value for key, value in of_way.items()):
                with Image.open(self.run / row["picture"]) as opened:
                    opened.thumbnail((EDGE, EDGE))
                    pixels = TF.pil_to_tensor(opened.convert("RGB")).double() / 255
                return html_repr.picture(pixels, f"{row['file']} from the code of {stage}")
        return None


def _stacked(tensors: Sequence[Tensor], name: str) -> Tensor:
    if len({t.shape for t in tensors}) > 1:
        raise ValueError(f"the images differ in size, so they are no batch; use {name}, or give size")
    return torch.stack(list(tensors))
