"""What a page shows: series of results by layer, and pictures by image, from a report's document and its rows."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from unconv.errors import UnconvError
from unconv.images import psnr, ssim
from unconv.reporting.images import load

METRICS = ("relative_error", "psnr", "ssim")
MORE = ("same_class", "lpips")  # means that only tables show
FEW = 20  # images up to which a range goes from the smallest to the largest; above, 5th to 95th percentile
RECOGNISABLE = 1 / 3  # of the way from the mean colour to the image: what is called recognisable
MOST_IMAGES = 40


class Series(NamedTuple):
    """One line of the plot."""

    recover: str
    code: str
    method: str
    side_info: str

    @property
    def group(self) -> tuple[str, str]:
        """What its errors compare with."""
        return self.recover, self.code


@dataclass(frozen=True)
class Point:
    """Means over images of one series at one layer.

    Attributes:
        values: Mean by metric.
        spread: Range over images by metric, where there is more than one.
        images: Images in the means.
        converged: Of them, those whose solver met its stopping rule.
        failed: Images without a result.
        passes: Mean passes, where the solver counts in them.
        seconds: Mean seconds.
        note: Why images failed.
    """

    values: Mapping[str, float | None]
    spread: Mapping[str, tuple[float, float]]
    images: int
    converged: int
    failed: int
    passes: float | None
    seconds: float | None
    note: str | None

    @property
    def done(self) -> bool:
        """Whether every image has converged."""
        return self.converged >= self.images


@dataclass
class Picture:
    """One image with its reconstructions: rows by layer and series."""

    file: str
    original: str
    rows: dict[tuple[int, Series], dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """A report as its page and figures show it; texts are printable, paths are as in the rows.

    Attributes:
        document: The report's JSON document.
        config: Settings of the run.
        environment: Versions and machine.
        series: Points by series and place of the layer.
        pictures: The first images that have pictures.
        images: Number of images.
        ranged: Number of images that the ranges are of.
        expected: Place of the layer, file, expected and true relative error of the linear decoders' estimates.
        baseline: Mean over the pictured originals, by metric, of answering with the image's mean colour.
    """

    document: dict[str, Any]
    config: dict[str, Any]
    environment: dict[str, Any]
    series: dict[Series, dict[int, Point]]
    pictures: list[Picture]
    images: int
    ranged: int
    baseline: dict[str, float]
    expected: list[tuple[int, str, float, float]] = field(default_factory=list)

    @property
    def layers(self) -> list[dict[str, Any]]:
        """The layers' documents, in execution order."""
        return self.document["layers"]

    @property
    def names(self) -> list[str]:
        """The layers' names."""
        return [layer["layer"] for layer in self.layers]

    @property
    def blocks(self) -> dict[int, dict[str, Any]]:
        """Conv blocks by place of their layer."""
        return {i: layer["block"] for i, layer in enumerate(self.layers) if layer.get("block")}

    @property
    def model(self) -> str:
        """The network's name."""
        model = self.document.get("model") or self.config.get("model") or "the network"
        return str(model.get("name", "the network")) if isinstance(model, Mapping) else str(model)

    @property
    def weights(self) -> str:
        """Where the weights come from; empty where nothing says so."""
        model = self.document.get("model")
        source = (model.get("weights") if isinstance(model, Mapping) else None) or self.config.get("weights") or ""
        return str(source.get("source", "")) if isinstance(source, Mapping) else str(source)

    @property
    def random(self) -> bool:
        """Whether the weights are random."""
        return self.weights.lower().startswith("random")


def read_report(
    run: Path,
    document: Mapping[str, Any],
    rows: Iterable[Mapping[str, Any]],
    config: Mapping[str, Any],
    environment: Mapping[str, Any],
) -> Report:
    """Arrange a document and rows, as partial as they may be, for the page and its figures."""
    shown = printable(dict(document)) | {"layers": printable(list(document.get("layers") or []))}
    places = {layer["layer"]: i for i, layer in enumerate(document.get("layers") or [])}
    found: dict[tuple[int, Series], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    pictures: dict[int, Picture] = {}
    images = set()
    expected: list[Any] = []
    for row in rows:
        if row.get("layer") not in places or row.get("noise"):
            continue
        images.add(row["image"])
        key = places[row["layer"]], Series(row["recover"], row["code"], row["method"], row["side_info"])
        pair = [finite(row.get(name)) for name in ("expected_error", "relative_error")]
        if None not in pair:
            expected.append((key[0], printable(str(row["file"])), *pair))
        for metric in METRICS:
            if (value := finite(row.get(metric))) is not None:
                found[key][metric].append(value)
        if row.get("picture") and (row["image"] in pictures or len(pictures) < MOST_IMAGES):
            name = Path(row["picture"]).name.split("-")[0].split(".")[0]
            original = str(Path(row["picture"]).with_name(f"{name}.png").as_posix())
            picture = pictures.setdefault(row["image"], Picture(printable(str(row["file"])), original))
            picture.rows[key] = dict(row)
    series: dict[Series, dict[int, Point]] = {}
    for i, layer in enumerate(shown["layers"]):
        for record in layer.get("inversion") or []:
            key = Series(*(record[name] for name in Series._fields))
            series.setdefault(key, {})[i] = _point(record, found.get((i, key), {}))
    counted = max((p.images + p.failed for points in series.values() for p in points.values()), default=0)
    chosen = [pictures[i] for i in sorted(pictures)]
    baseline = mean_colour(run, chosen, config)
    settings, machine = printable(dict(config)), printable(dict(environment))
    return Report(shown, settings, machine, series, chosen, max(counted, len(images)), len(images), baseline, expected)


def mean_colour(run: Path, pictures: Iterable[Picture], config: Mapping[str, Any]) -> dict[str, float]:
    """Return the mean metrics of answering with each image's own mean colour, from the originals' pictures."""
    about = config.get("preprocessing")
    about = about if isinstance(about, Mapping) else {}
    found: dict[str, list[float]] = defaultdict(list)
    for picture in pictures:
        try:
            loaded = np.asarray(load(run, picture.original), dtype=np.float64) / 255
        except UnconvError:
            continue
        x = torch.from_numpy(loaded).permute(2, 0, 1)
        flat = x.mean((1, 2), keepdim=True).expand_as(x).contiguous()
        found["psnr"].append(psnr(x, flat))
        found["ssim"].append(ssim(x, flat))
        if isinstance(about.get("mean"), list) and isinstance(about.get("std"), list):
            mean, std = (torch.tensor(about[name], dtype=x.dtype).reshape(-1, 1, 1) for name in ("mean", "std"))
            y, guess = ((about.get("scale") or 1) * v / std - mean / std for v in (x, flat))
            found["relative_error"].append(((guess - y).norm() / y.norm()).item())
    return {name: sum(v) / len(v) for name, v in found.items() if all(map(math.isfinite, v))}


def _point(record: Mapping[str, Any], values: Mapping[str, list[float]]) -> Point:
    ends = {}
    for metric, numbers in values.items():
        if len(numbers) > 1:
            low, high = np.percentile(numbers, (0, 100) if len(numbers) <= FEW else (5, 95))
            ends[metric] = (float(low), float(high))
    images = record.get("images") or 0
    return Point(
        {metric: finite(record.get(metric)) for metric in (*METRICS, *MORE)},
        ends,
        images,
        record.get("converged", images),
        record.get("failed") or 0,
        finite(record.get("passes")),
        finite(record.get("seconds")),
        record.get("note"),
    )


def best_from_features(report: Report) -> dict[int, tuple[Series, Point]]:
    """Return, by layer, the series that comes closest to the image from features alone."""
    best: dict[int, tuple[Series, Point]] = {}
    for series, points in report.series.items():
        if (*series.group, series.side_info) != ("image", "network", "none"):
            continue
        for i, point in points.items():
            if _score(point) > (-math.inf if i not in best else _score(best[i][1])):
                best[i] = series, point
    return dict(sorted(best.items()))


def threshold(report: Report, metric: str) -> float:
    """Return the mean SSIM or relative error from which on an image is called recognisable."""
    perfect = {"ssim": 1.0, "relative_error": 0.0}[metric]
    if metric not in report.baseline:
        return 0.5
    return report.baseline[metric] + RECOGNISABLE * (perfect - report.baseline[metric])


def recognisable(report: Report, point: Point) -> bool:
    """Return whether the mean SSIM, or, where there is none, the relative error, reaches the threshold."""
    error, similarity = point.values["relative_error"], point.values["ssim"]
    if similarity is not None:
        return similarity >= threshold(report, "ssim")
    return error is not None and error <= threshold(report, "relative_error")


def _score(point: Point) -> float:
    error, similarity = point.values["relative_error"], point.values["ssim"]
    if similarity is not None:
        return similarity
    return -math.inf if error is None else 1 - error


def start_at(report: Report) -> tuple[Series, int] | None:
    """Return what the page opens with: the deepest layer that is recognisable from features alone, and the series."""
    best = best_from_features(report)
    if best:
        deepest = max((i for i, (_, point) in best.items() if recognisable(report, point)), default=min(best))
        return best[deepest][0], deepest
    return next(((series, max(points)) for series, points in report.series.items() if points), None)


def finite(value: Any) -> float | None:
    """Return a number, or ``None`` where there is none that can be drawn."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None


def printable(value: Any) -> Any:
    """Return texts, in whatever they are held, with what does not print spelt out."""
    if isinstance(value, str):
        return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in value)
    if isinstance(value, Mapping):
        return {printable(str(k)): printable(v) for k, v in value.items()}
    return [printable(v) for v in value] if isinstance(value, list | tuple) else value
