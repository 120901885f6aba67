"""What a page shows: means by series and layer, and pictures by image, from a report's document and its rows."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from unconv.conv_block import SIDE_INFO
from unconv.errors import UnconvError
from unconv.images import psnr, ssim
from unconv.io import finite, one_line
from unconv.reporting.images import load

METRICS = ("relative_error", "psnr", "ssim")
FEW = 20  # images up to which a range goes from the smallest to the largest; above, 5th to 95th percentile
RECOGNISABLE = 1 / 3  # of the way from the mean colour to the image: what is called recognisable
MOST_IMAGES = 40
Record = dict[str, Any]  # means of a series at a layer, as the document has them, with their "spread" by metric


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

    @property
    def features_alone(self) -> bool:
        """Whether it recovers the image from the network's features and nothing else."""
        return (*self.group, self.side_info) == ("image", "network", "none")


@dataclass
class Picture:
    """One image with its reconstructions: rows by layer and series."""

    file: str
    original: str
    rows: dict[tuple[int, Series], dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """A report as its page and figures show it; texts are printable, paths are as in the rows."""

    document: dict[str, Any]
    config: dict[str, Any]
    environment: dict[str, Any]
    series: dict[Series, dict[int, Record]]  # records by series and place of the layer
    pictures: list[Picture]  # the first images that have pictures
    images: int
    ranged: int  # number of images that the ranges are of
    # place of the layer, file, expected and true relative error of the linear decoders' estimates
    expected: list[tuple[int, str, float, float]]
    baseline: dict[str, float]  # mean over the pictured originals, by metric, of answering with the image's mean colour

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
        return (self.document.get("model") or {}).get("name", "the network")

    @property
    def weights(self) -> str:
        """Where the weights come from; empty where nothing says so."""
        return (self.document.get("model") or {}).get("weights", "")

    @property
    def random(self) -> bool:
        """Whether the weights are random."""
        return self.weights.startswith("random")


def read_report(
    run: Path,
    document: Mapping[str, Any],
    rows: Iterable[Mapping[str, Any]],
    config: Mapping[str, Any],
    environment: Mapping[str, Any],
) -> Report:
    """Arrange a document and rows, as partial as they may be, for the page and its figures."""
    shown, settings = printable(dict(document)), printable(dict(config))
    places = {layer["layer"]: i for i, layer in enumerate(document["layers"])}
    found: dict[tuple[int, Series], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    pictures: dict[int, Picture] = {}
    images = set()
    expected: list[tuple[int, str, float, float]] = []
    for row in rows:
        if row["layer"] not in places or row.get("noise"):
            continue
        images.add(row["image"])
        key = places[row["layer"]], Series(*(row[name] for name in Series._fields))
        if row.get("expected_error") is not None:
            expected.append((key[0], printable(row["file"]), row["expected_error"], row["relative_error"]))
        for metric in METRICS:
            if row[metric] is not None:
                found[key][metric].append(row[metric])
        if row["picture"] and (row["image"] in pictures or len(pictures) < MOST_IMAGES):
            name = Path(row["picture"]).name.split("-")[0].split(".")[0]
            original = str(Path(row["picture"]).with_name(f"{name}.png").as_posix())
            picture = pictures.setdefault(row["image"], Picture(printable(row["file"]), original))
            picture.rows[key] = dict(row)
    series: dict[Series, dict[int, Record]] = {}
    for i, layer in enumerate(shown["layers"]):
        for record in layer.get("inversion") or []:
            key = Series(*(record[name] for name in Series._fields))
            spread = {metric: ends(v) for metric, v in found[i, key].items() if len(v) > 1}
            series.setdefault(key, {})[i] = record | {"spread": spread}
    # layers without switches would bring gates first
    kinds = list(dict.fromkeys((*key.group, key.method) for key in series))
    order = {key: (kinds.index((*key.group, key.method)), SIDE_INFO.index(key.side_info)) for key in series}
    series = {key: series[key] for key in sorted(series, key=order.__getitem__)}
    counted = max((r["images"] + r["failed"] for records in series.values() for r in records.values()), default=0)
    chosen = [pictures[i] for i in sorted(pictures)]
    preprocessing = settings.get("preprocessing") or {}
    baseline = mean_colour(run, chosen, preprocessing.get("inverse") or preprocessing)
    number = max(counted, len(images))
    return Report(
        shown, settings, printable(dict(environment)), series, chosen, number, len(images), expected, baseline
    )


def ends(values: list[float]) -> list[float]:
    """Return the range of values over images."""
    return np.percentile(values, (0, 100) if len(values) <= FEW else (5, 95)).tolist()


def done(record: Record) -> bool:
    """Return whether every image has converged."""
    return record["converged"] >= record["images"]


def out_of_time(record: Record) -> bool:
    """Return whether passes ran out for an image before it converged, or before more of them gained nothing."""
    return record["converged"] + record.get("no_gain", 0) < record["images"]


def mean_colour(run: Path, pictures: Iterable[Picture], preprocessing: Mapping[str, Any]) -> dict[str, float]:
    """Return the mean metrics of answering with each image's own mean colour, from the originals' pictures."""
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
        if "mean" in preprocessing:
            mean, std = (torch.tensor(preprocessing[n], dtype=x.dtype).reshape(-1, 1, 1) for n in ("mean", "std"))
            y, guess = ((preprocessing["scale"] * v - mean) / std for v in (x, flat))
            found["relative_error"].append(((guess - y).norm() / y.norm()).item())
    return {name: sum(v) / len(v) for name, v in found.items() if all(map(math.isfinite, v))}


def best_from_features(report: Report) -> dict[int, tuple[Series, Record]]:
    """Return, by layer, the series that comes closest to the image from features alone."""
    best: dict[int, tuple[Series, Record]] = {}
    for series, records in report.series.items():
        for i, record in records.items() if series.features_alone else ():
            if i not in best or _score(record) > _score(best[i][1]):
                best[i] = series, record
    return dict(sorted(best.items()))


def _score(record: Record) -> float:
    error, similarity = record["relative_error"], record["ssim"]
    return similarity if similarity is not None else -math.inf if error is None else 1 - error


def threshold(report: Report, metric: str) -> float:
    """Return the mean SSIM or relative error from which on an image is called recognisable."""
    perfect = {"ssim": 1.0, "relative_error": 0.0}[metric]
    if metric not in report.baseline:
        return 0.5
    return report.baseline[metric] + RECOGNISABLE * (perfect - report.baseline[metric])


def recognisable(report: Report, record: Record) -> bool:
    """Return whether the mean SSIM, or, where there is none, the relative error, reaches the threshold."""
    error, similarity = record["relative_error"], record["ssim"]
    if similarity is not None:
        return similarity >= threshold(report, "ssim")
    return error is not None and error <= threshold(report, "relative_error")


def start_at(report: Report) -> tuple[Series, int] | None:
    """Return what the page opens with: the deepest layer that is recognisable from features alone, and the series."""
    best = best_from_features(report)
    if best:
        deepest = max((i for i, (_, record) in best.items() if recognisable(report, record)), default=min(best))
        return best[deepest][0], deepest
    return next(((series, max(records)) for series, records in report.series.items()), None)


def printable(value: Any) -> Any:
    """Return texts with what does not print spelt out, and ``None`` for numbers that are not finite."""
    if isinstance(value, str):
        return one_line(value)
    if isinstance(value, float):
        return finite(value)
    if isinstance(value, Mapping):
        return {printable(str(k)): printable(v) for k, v in value.items()}
    return [printable(v) for v in value] if isinstance(value, list | tuple) else value
