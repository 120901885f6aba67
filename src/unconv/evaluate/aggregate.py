"""Means over images, of rows that come one at a time: what is kept of a row are its numbers."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from unconv.inversion.methods import InversionMethod

MEANS = ("relative_error", "psnr", "ssim", "seconds")
Key = tuple[str, str, str, str, str]


@dataclass
class Numbers:
    """What one way gave at one stage, over the images so far.

    Attributes:
        values: By field, the values of the images that have one.
        good: Number of images with a relative error.
        failed: Number of images without.
        unfinished: Number of images whose solver stopped before its tolerance.
        reasons: Why images failed.
    """

    values: dict[str, array[float]] = field(default_factory=lambda: {name: array("d") for name in MEANS})
    good: int = 0
    failed: int = 0
    unfinished: int = 0
    reasons: set[str] = field(default_factory=set)


@dataclass
class MetricAggregator:
    """The numbers of every stage and way: 32 bytes for each row.

    Attributes:
        numbers: By stage, what was recovered, code, method and side information.
        files: Names of the images that have a row.
    """

    numbers: dict[Key, Numbers] = field(default_factory=dict)
    files: set[str] = field(default_factory=set)

    def add(self, row: Mapping[str, Any]) -> None:
        """Count one row.

        Args:
            row: With the fields of ``results.parquet`` and ``seconds``.
        """
        self.files.add(row["file"])
        found = self.numbers.setdefault(_key(row["stage"], row), Numbers())
        if row["relative_error"] is None:
            found.failed += 1
            found.reasons.add(row["status"])
            return
        found.good += 1
        found.unfinished += row["status"] != "converged"
        for name in MEANS:
            if row[name] is not None:
                found.values[name].append(row[name])

    def summary(self, stage: str, ways: Sequence[InversionMethod]) -> list[dict[str, Any]]:
        """Means over the images, way by way.

        Args:
            stage: The stage.
            ways: The ways, in the order wanted.

        Returns:
            One document per way that has rows.
        """
        documents = []
        for way in ways:
            found = self.numbers.get(_key(stage, way.fields()))
            if found is None:
                continue
            notes = sorted(found.reasons)
            if found.unfinished:
                notes.append(f"{found.unfinished} of {found.good} images ended before the tolerance")
            means = {name: mean(found.values[name]) for name in MEANS}
            counts = {"images": found.good, "failed": found.failed, "note": "; ".join(notes) or None}
            documents.append(way.fields() | means | counts)
        return documents

    def overall(self) -> dict[str, float | None]:
        """Means over all rows."""
        return {name: mean(v for found in self.numbers.values() for v in found.values[name]) for name in MEANS}


def mean(values: Iterable[float | None]) -> float | None:
    """Mean of what is there; ``None`` of nothing."""
    there = [v for v in values if v is not None]
    return math.fsum(there) / len(there) if there else None


def _key(stage: str, way: Mapping[str, str]) -> Key:
    return stage, way["from"], way["code"], way["method"], way["side_info"]
