"""What a report is made of, and the curves that its page and its figures draw."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

RECOVERED = ("image", "layer")
CODES = ("network", "paper")
SIDE_INFO = ("none", "switches", "gates")
METRICS = ("relative_error", "psnr", "ssim")
FEW = 30


@dataclass(frozen=True)
class ReportData:
    """Everything that a report shows.

    Attributes:
        model: Name of the model, as the user gave it.
        weights: Where the weights come from, with their SHA-256.
        command: The command that makes this run again.
        config: Settings of the run; may nest.
        environment: Versions and machine; may nest.
        stages: In execution order, each ``{"stage", "kind", "input_shape", "code_shape"}`` and, where measured,
            ``"activation"`` and ``"pooled"`` (% of non-zeros), ``"coherence"`` (``{"learned": {"signed", "absolute",
            "shifted"}, "random": {...}}``), ``"rip"`` (list of ``{"filters", "boundary", "k", "p01", "p50", "p99"}``),
            ``"inversion"`` (list of ``{"from", "code", "method", "side_info", "relative_error", "psnr", "ssim",
            "seconds", "images", "failed", "note"}``; means over ``images`` images, ``failed`` others have no result)
            and ``"certificate"`` (see ``unconv.evaluate.certificates.certificate_document``; all of it may be missing).
        skipped_modules: ``{"module", "reason"}`` of whatever is no stage.
        skipped_images: ``{"file", "reason"}`` of whatever was not used.
        pictures: Per image ``{"file", "original", "reconstructions"}``; ``original`` and each reconstruction's
            ``path`` are relative to the run directory, and ``None`` where no picture was kept. A reconstruction
            also has ``"stage", "from", "code", "method", "side_info", "relative_error", "psnr", "ssim"``. Where
            there are no ``ranges`` they come from here, so images without pictures belong here as well then.
        ranges: Per stage and series ``{"stage", "from", "code", "method", "side_info"}`` and, by metric, the low and
            high end over all images.
    """

    model: str
    weights: str
    command: str
    config: dict[str, Any]
    environment: dict[str, Any]
    stages: list[dict[str, Any]]
    skipped_modules: list[dict[str, Any]]
    skipped_images: list[dict[str, Any]]
    pictures: list[dict[str, Any]]
    ranges: list[dict[str, Any]] = field(default_factory=list)

    def printable(self) -> ReportData:
        """Escape control, direction and undecodable characters, so that every string is fit to be shown.

        Returns:
            The same data, its strings printable.
        """
        return ReportData(**{each.name: printable(getattr(self, each.name)) for each in fields(self)})


@dataclass(frozen=True)
class Series:
    """One way of recovering: what, from which code, how, knowing what. One line in a plot.

    Attributes:
        recovered: ``"image"`` (the network's input) or ``"layer"`` (the stage's own input).
        code: ``"network"`` or ``"paper"``.
        method: Name of the decoder.
        side_info: ``"none"``, ``"switches"`` or ``"gates"``.
    """

    recovered: str
    code: str
    method: str
    side_info: str

    @staticmethod
    def of(record: Mapping[str, Any]) -> Series:
        """The series that an inversion or a reconstruction belongs to.

        Args:
            record: A mapping with ``"from"``, ``"code"``, ``"method"`` and ``"side_info"``.

        Returns:
            The series.
        """
        return Series(record["from"], record["code"], record["method"], record["side_info"])

    @property
    def group(self) -> tuple[str, str]:
        """What is recovered and from which code; errors compare only within one group."""
        return self.recovered, self.code


@dataclass(frozen=True)
class Point:
    """One series at one stage.

    Attributes:
        values: Mean over the images by metric, ``None`` where there is none.
        spread: Low and high end over the images by metric (see ``spread_words``); empty below two images.
        seconds: Mean time per image.
        images: Number of images in the mean.
        failed: Number of images that gave no result.
        note: A remark, or ``None``.
    """

    values: dict[str, float | None]
    spread: dict[str, tuple[float, float]]
    seconds: float | None
    images: int
    failed: int
    note: str | None

    @property
    def error(self) -> float | None:
        """Mean relative error."""
        return self.values["relative_error"]


def curves(data: ReportData) -> dict[Series, dict[int, Point]]:
    """All series with their points.

    Args:
        data: The report.

    Returns:
        Points by stage index, by series; what is recovered first (image before layer), then the code, the method
        in order of appearance, and the side information from least to most.
    """
    index = {stage["stage"]: i for i, stage in enumerate(data.stages)}
    seen: dict[tuple[Series, int, str], list[float]] = {}
    for record in (r for picture in data.pictures for r in picture["reconstructions"] if r["stage"] in index):
        for metric in METRICS:
            value = finite(record.get(metric))
            if value is not None:
                seen.setdefault((Series.of(record), index[record["stage"]], metric), []).append(value)
    spreads = {key: range_of(values) for key, values in seen.items() if len(values) > 1 and not data.ranges}
    for record in (r for r in data.ranges if r["stage"] in index):
        spreads |= {(Series.of(record), index[record["stage"]], m): tuple(record[m]) for m in METRICS if m in record}
    result: dict[Series, dict[int, Point]] = {}
    for i, stage in enumerate(data.stages):
        for record in stage.get("inversion") or ():
            series = Series.of(record)
            values = {metric: finite(record.get(metric)) for metric in METRICS}
            spread = {m: spreads[series, i, m] for m in METRICS if (series, i, m) in spreads}
            result.setdefault(series, {})[i] = Point(
                values,
                spread,
                finite(record.get("seconds")),
                int(record.get("images") or 0),
                int(record.get("failed") or 0),
                record.get("note") or None,
            )
    for picture in data.pictures:
        for record in picture["reconstructions"]:
            result.setdefault(Series.of(record), {})
    methods = list(dict.fromkeys(series.method for series in result))

    def order(series: Series) -> tuple[tuple[int, str], tuple[int, str], int, tuple[int, str]]:
        return (
            _rank(series.recovered, RECOVERED),
            _rank(series.code, CODES),
            methods.index(series.method),
            _rank(series.side_info, SIDE_INFO),
        )

    return {series: result[series] for series in sorted(result, key=order)}


def range_of(values: Sequence[float]) -> tuple[float, float]:
    """The range that is shown beside a mean; see ``spread_words``.

    Args:
        values: At least one.

    Returns:
        Smallest and largest, or percentiles where there are more than ``FEW``.
    """
    ends = (0, 100) if len(values) <= FEW else (5, 95)
    low, high = np.percentile(values, ends)
    return float(low), float(high)


def main_series(lines: Mapping[Series, Mapping[int, Point]]) -> Series | None:
    """The series that a report opens with.

    Args:
        lines: From ``curves``.

    Returns:
        Of the group that reaches most stages (the first of equals), the series that covers most stages, and
        of these the one with the smallest mean error; ``None`` where nothing was inverted.
    """
    if not lines:
        return None
    errors = {s: {i: p.error for i, p in points.items() if p.error is not None} for s, points in lines.items()}
    reached: dict[tuple[str, str], set[int]] = {}
    for series, found in errors.items():
        reached.setdefault(series.group, set()).update(found)
    group = max(reached, key=lambda g: len(reached[g]))
    members = [series for series in lines if series.group == group]
    return min(members, key=lambda s: (-len(errors[s]), sum(errors[s].values()) / max(1, len(errors[s]))))


def worst_stage(points: Mapping[int, Point], *, from_image: bool) -> int | None:
    """The stage that loses most.

    Args:
        points: Of one series.
        from_image: Whether the image is recovered, so that errors add up along the network and the largest rise
            counts; otherwise each stage stands for itself and the largest error counts.

    Returns:
        Its index, the first of equals; ``None`` where there is no error.
    """
    errors = {i: p.error for i, p in sorted(points.items()) if p.error is not None}
    before = dict(zip(errors, [0.0, *errors.values()])) if from_image else dict.fromkeys(errors, 0.0)
    return max(errors, key=lambda i: errors[i] - before[i], default=None)


def image_count(data: ReportData) -> int:
    """Number of images that took part.

    Args:
        data: The report.

    Returns:
        The largest number that any inversion counts, or the number of pictures where that is larger.
    """
    counts = [(r.get("images") or 0) + (r.get("failed") or 0) for s in data.stages for r in s.get("inversion") or ()]
    return max([len(data.pictures), *counts])


def short_names(names: list[str]) -> tuple[str, list[str]]:
    """ConvBlock names without the path that they all share.

    Args:
        names: Module paths.

    Returns:
        The shared path with its closing dot (or ``""``), and what is left of each name.
    """
    parts = [name.split(".") for name in names]
    levels = zip(*(p[:-1] for p in parts)) if len(names) > 1 else ()
    shared = itertools.takewhile(lambda level: len(set(level)) == 1, levels)
    prefix = "".join(f"{level[0]}." for level in shared)
    return prefix, [name[len(prefix) :] for name in names]


def rows(settings: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """A nested mapping as pairs of a dotted key and a value.

    Args:
        settings: The mapping.
        path: What to put before each key.

    Yields:
        Key and value; lists stay whole.
    """
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from rows(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def finite(value: Any) -> float | None:
    """A number as a float, and ``None`` for everything that is none: ``None``, NaN, infinities.

    Args:
        value: A number or ``None``.

    Returns:
        The float, or ``None``.
    """
    return float(value) if value is not None and math.isfinite(value) else None


def printable(value: Any) -> Any:
    """Escape control, direction and undecodable characters in every string of a value.

    Args:
        value: A string, or mappings and lists that hold strings.

    Returns:
        The value, fit to be shown and to be encoded.
    """
    if isinstance(value, str):
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in value)
    if isinstance(value, Mapping):
        return {printable(str(k)): printable(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [printable(v) for v in value]
    return printable(str(value)) if isinstance(value, os.PathLike) else value


def _rank(value: str, known: tuple[str, ...]) -> tuple[int, str]:
    return (known.index(value) if value in known else len(known), value)
