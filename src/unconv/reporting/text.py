"""What a report says in words: names, definitions, and the summary that opens it."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from unconv.reporting.data import FEW, Point, ReportData, Series, curves, image_count, main_series, worst_stage

METHODS = {
    "iht": "one-step IHT",
    "transpose": "transpose",
    "min-norm": "minimum norm",
    "convex": "convex",
    "gauss-newton": "Gauss–Newton",
    "gradient": "gradient descent",
    "decoder": "trained decoder",
}
SIDES = {"none": "values only", "switches": "switches known", "gates": "switches and gates known"}
RECOVERED = {"image": "the image", "layer": "the stage’s own input"}
CODES = {"network": "the network’s own code", "paper": "code in the paper’s setting"}
FILTERS = {"learned": "learned", "normalised": "learned, unit norm", "gaussian": "Gaussian"}
BOUNDARIES = {"full": "full output", "cropped": "cropped output"}
METRIC_NAMES = {"relative_error": "relative error", "psnr": "PSNR (dB)", "ssim": "SSIM"}

METHOD_MEANINGS = {
    "iht": "One step of model-based iterative hard thresholding from zero, as in the paper: the code, put back at its "
    "places, goes through the transposed convolution and is rescaled to the true norm of the input, so that the "
    "error measures direction only.",
    "transpose": "The code, put back at its places, goes through the transposed convolution and is rescaled to the "
    "true norm of the input, so that the error measures direction only.",
    "min-norm": "Of all inputs that would give these values at these places, the one of smallest norm.",
    "convex": "An input that satisfies every equation and inequality that the code implies, a smooth one where several "
    "do.",
    "gauss-newton": "Gauss–Newton steps on the whole network until its output matches the code, from smooth images to "
    "detailed ones; pixels outside of their range count as violations.",
    "gradient": "Gradient descent on the image until the network’s output matches the code.",
    "decoder": "A decoding network trained for this stage.",
}
SIDE_MEANINGS = {
    "none": "The pooled values are known, but not the places that they come from.",
    "switches": "Known as well: the place of the largest value in each max-pooling region, at every stage on the way.",
    "gates": "Known as well: the switches, and which ReLUs were on, at every stage on the way.",
}
UNSEEN = 1e-5  # of the largest singular value: what a change may move a code in single precision
CERTIFICATE_MEANINGS = [
    (
        "δₖ, δ₂ₖ",
        "The smallest δ with (1 − δ) ‖z‖² ≤ ‖Wᵀz‖² ≤ (1 + δ) ‖z‖² for all codes z with at most one non-zero per"
        " region and k in all, for filters of unit norm; δ₂ₖ for sums of two such codes. The lower end is attained by a"
        " code that was found, the upper end is proven. From 1 on, δ does not exclude that some code is sent to zero:"
        " as a certificate it is vacuous.",
    ),
    (
        "σ",
        "The smallest singular value of the linear map that a code fixes, on what the map sees. An error of e in the"
        " code moves the least-norm, least-squares answer by at most e / σ. The upper end is attained; the lower end"
        " comes from the residual of an iteration, which could only have missed a smaller value altogether.",
    ),
    (
        "Undetermined dimensions",
        "Directions of the input that no equation of the code sees: unknowns less equations, more where equations"
        " repeat each other.",
    ),
]


def series_name(series: Series) -> str:
    """A line's name within its group.

    Args:
        series: The series.

    Returns:
        Method and side information.
    """
    return f"{METHODS.get(series.method, series.method)}, {SIDES.get(series.side_info, series.side_info)}"


def group_name(group: tuple[str, str]) -> str:
    """What is recovered, and from which code.

    Args:
        group: ``Series.group``.

    Returns:
        The name.
    """
    recovered, code = group
    return f"{RECOVERED.get(recovered, recovered)} from {CODES.get(code, code)}"


def spread_words(data: ReportData) -> str:
    """What the range beside a mean spans.

    Args:
        data: The report.

    Returns:
        A noun phrase.
    """
    total = image_count(data)
    n = total if data.ranges else len(data.pictures)
    of = "image" if n == total else f"of the first {n} images"
    many = "the images" if n == total else f"the first {n} images"
    return f"smallest to largest {of}" if n <= FEW else f"5th to 95th percentile of {many}"


def shape(sizes: Sequence[int]) -> str:
    """A shape as ``3 × 32 × 32``.

    Args:
        sizes: The sizes.

    Returns:
        The text.
    """
    return " × ".join(str(n) for n in sizes)


def number(value: float | None, digits: int = 3) -> str:
    """A number of ordinary size with fixed decimals, a small one with two significant digits.

    Args:
        value: The number, or ``None``.
        digits: Decimals.

    Returns:
        The text; a dash where there is no number.
    """
    if value is None:
        return "–"
    if value == 0 or abs(value) >= 10 ** (1 - digits):
        return f"{value:.{digits}f}".replace("-", "−")
    mantissa, exponent = f"{value:.1e}".split("e")
    if int(exponent) >= -4:
        return f"{value:.{1 - int(exponent)}f}".replace("-", "−")
    return f"{mantissa}e{int(exponent)}".replace("-", "−")


def cell(value: Any, nothing: str = "–") -> str:
    """One cell of a table of anything: floats with four significant digits, shapes as 3x32x32.

    Args:
        value: What it holds.
        nothing: What stands for ``None``.

    Returns:
        The text.
    """
    if value is None:
        return nothing
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return "x".join(map(str, value))
    return str(value)


def count(number: int) -> str:
    """A whole number with its thousands apart.

    Args:
        number: The number.

    Returns:
        The text.
    """
    return f"{number:,}"


def significant(value: float | None) -> str:
    """A number with three significant digits.

    Args:
        value: The number, or ``None``.

    Returns:
        The text; a dash where there is no number.
    """
    if value is None:
        return "–"
    text = count(round(value)) if abs(value) >= 1000 else f"{value:#.3g}".removesuffix(".")
    mantissa, _, exponent = text.partition("e")
    return f"{mantissa}e{int(exponent)}".replace("-", "−") if exponent else text.replace("-", "−")


def direction(found: Mapping[str, Any]) -> str:
    """What the picture of a direction that a code hardly shows is.

    Args:
        found: ``direction`` of a stage's certificate.

    Returns:
        A sentence; empty where its numbers are missing.
    """
    gain, largest = found.get("gain"), found.get("largest")
    image, code = found.get("share_of_image"), found.get("share_of_code")
    if gain is None or largest is None:
        return ""
    if found.get("undetermined") and gain <= UNSEEN * largest:
        return "The picture is an undetermined direction: a change of the image that no equation of its code sees."
    if found.get("undetermined") and image is not None and code is not None:
        return (
            f"Hardly held by the code: the part of the first image that is pictured has {number(100 * image, 0)} % of"
            f" its length and makes up {number(100 * code, 1)} % of its code."
        )
    return (
        f"The change pictured moves the code by {significant(gain)} per unit of its length, the most visible one by"
        f" {significant(largest)}."
    )


def capital(text: str) -> str:
    """A text as it begins a sentence; the rest stays as it is.

    Args:
        text: The text.

    Returns:
        The text with its first letter in upper case.
    """
    return text[:1].upper() + text[1:]


def summary(data: ReportData) -> list[str]:
    """The answer in a few sentences.

    Args:
        data: The report.

    Returns:
        Sentences.
    """
    lines = curves(data)
    best = main_series(lines)
    if not data.stages:
        return [f"No stage of {data.model} was measured."]
    if best is None or all(point.error is None for point in lines[best].values()):
        return [f"{_count(len(data.stages), 'stage')} of {data.model} measured; nothing was inverted in this run."]
    group = {series: points for series, points in lines.items() if series.group == best.group and points}
    names = [stage["stage"] for stage in data.stages]
    said = [_setting(data, best, len({i for points in group.values() for i in points}))]
    errors = {i: p.error for i, p in sorted(lines[best].items()) if p.error is not None}
    said += _image_story(best, errors, names, group) if best.recovered == "image" else _layer_story(best, errors, names)
    ranges = _ranges(group)
    if len(ranges) > 1:
        said.append(f"Over all stages, mean errors are {_and(ranges)}.")
    return said + _left_out(data)


def definitions(data: ReportData, series: Sequence[Series]) -> list[tuple[str, str]]:
    """Definitions of what a report shows.

    Args:
        data: The report.
        series: Its series; only what these need is defined.

    Returns:
        Terms with a sentence or two each.
    """
    terms = [
        (
            "ConvBlock",
            "A convolution with the batch norm, activation and pooling that follow it, named by its module path.",
        ),
        ("Code", "What a stage hands on: its values after the activation and the pooling."),
    ]
    if series:
        recovered, codes = {s.recovered for s in series}, {s.code for s in series}
        terms.append((
            "Relative error",
            "‖x̂ − x‖ / ‖x‖ for an input x and its reconstruction x̂: 0 is exact, 1 is what x̂ = 0 gets.",
        ))
        if "image" in recovered:
            terms.append((
                "The image",
                "Recovered is the tensor that the network receives, after preprocessing, so an all-zero answer is"
                " a flat picture of the mean that preprocessing subtracts. Methods that invert a single stage go back"
                " stage by stage, each estimate standing for the code of the stage before.",
            ))
        if "layer" in recovered:
            terms.append((
                "The stage’s own input",
                "Recovered is the tensor that the stage receives from the stages before it.",
            ))
        terms += [
            ("Range", f"Beside a mean over images: {spread_words(data)}."),
            ("PSNR, SSIM", "Peak signal-to-noise ratio in decibels and structural similarity, on pixels in [0, 1]."),
        ]
        if "network" in codes:
            terms.append((
                "The network’s own code",
                "The code as the network computes it, with its bias, batch norm, activation and own pooling.",
            ))
        if "paper" in codes:
            terms.append((
                "The paper’s setting",
                "Filters of unit norm, no bias, pooling by magnitude, and the k largest values kept, with k from"
                " the measured sparsity.",
            ))
        for side in dict.fromkeys(s.side_info for s in series):
            if side in SIDE_MEANINGS:
                terms.append((capital(SIDES[side]), SIDE_MEANINGS[side]))
        for method in dict.fromkeys(s.method for s in series):
            if method in METHOD_MEANINGS:
                terms.append((capital(METHODS[method]), METHOD_MEANINGS[method]))
    if any(stage.get("certificate") for stage in data.stages):
        terms += CERTIFICATE_MEANINGS
    return terms


def _setting(data: ReportData, best: Series, stages: int) -> str:
    what = "the network’s input" if best.recovered == "image" else "each stage’s own input"
    setting = "" if best.code == "network" else ", in the paper’s setting"
    images = _count(image_count(data), "image")
    return f"From the code that each of {_count(stages, 'stage')} leaves{setting}, {what} was recovered for {images}."


def _image_story(
    best: Series, errors: dict[int, float], names: list[str], group: Mapping[Series, Mapping[int, Point]]
) -> list[str]:
    first, last = min(errors), max(errors)
    closest = f"{METHODS.get(best.method, best.method)} with {SIDES.get(best.side_info, best.side_info)}"
    nothing = "where 0 is the image itself and 1 is what an all-zero answer gets"
    comes = f"{capital(closest)} comes closest on average: its mean" if len(group) > 1 else f"With {closest}, the mean"
    if first == last:
        return [f"{comes} relative error at {names[first]} is {number(errors[first])}, {nothing}."]
    story = [
        f"{comes} relative error goes from {number(errors[first])} at {names[first]}"
        f" to {number(errors[last])} at {names[last]}, {nothing}."
    ]
    worst = worst_stage(group[best], from_image=True)
    if worst is None or worst == first:
        story.append(f"The stage that loses most is the first, {names[first]}.")
    else:
        story.append(
            f"The stage that loses most is {names[worst]}, where the error rises from"
            f" {number(errors[max(i for i in errors if i < worst)])} to {number(errors[worst])}."
        )
    blank = _no_better_than_blank(group)
    if blank is not None:
        story.append(f"From {names[blank]} on, no mean error is below 1.")
    known: dict[str, tuple[float, str]] = {}
    for series, points in group.items():
        error = points[last].error if last in points else None
        if error is not None and error < known.get(series.side_info, (float("inf"), ""))[0]:
            known[series.side_info] = (error, METHODS.get(series.method, series.method))
    if len(known) > 1:
        sides = [side for side in SIDES if side in known] + [side for side in known if side not in SIDES]
        each = [f"{number(known[s][0])} with {SIDES.get(s, s)} ({known[s][1]})" for s in sides]
        story.append(f"The smallest mean errors at {names[last]} are {_and(each)}.")
    return story


def _no_better_than_blank(group: Mapping[Series, Mapping[int, Point]]) -> int | None:
    # the stage from which on no series does better than an all-zero answer
    smallest: dict[int, float] = {}
    for points in group.values():
        for i, point in points.items():
            if point.error is not None:
                smallest[i] = min(point.error, smallest.get(i, point.error))
    lost = list(itertools.takewhile(lambda i: smallest[i] >= 1, sorted(smallest, reverse=True)))
    return min(lost, default=None)


def _layer_story(best: Series, errors: dict[int, float], names: list[str]) -> list[str]:
    hardest, easiest = max(errors, key=lambda i: errors[i]), min(errors, key=lambda i: errors[i])
    by = f"{METHODS.get(best.method, best.method)} with {SIDES.get(best.side_info, best.side_info)}"
    unit = "where 0 is the input itself and 1 is what an all-zero answer gets"
    if hardest == easiest:
        return [f"By {by}, the mean relative error at {names[hardest]} is {number(errors[hardest])}, {unit}."]
    return [
        f"By {by}, the stage that loses most is {names[hardest]}, with a mean relative error of"
        f" {number(errors[hardest])}, and {names[easiest]} loses least, with {number(errors[easiest])}, {unit}."
    ]


def _ranges(group: Mapping[Series, Mapping[int, Point]]) -> list[str]:
    # of each method, over stages and side information
    errors: dict[str, list[float]] = {}
    for series, points in group.items():
        errors.setdefault(series.method, []).extend(p.error for p in points.values() if p.error is not None)
    return [
        f"{number(min(values))} to {number(max(values))} by {METHODS.get(method, method)}"
        for method, values in errors.items()
        if values
    ]


def _left_out(data: ReportData) -> list[str]:
    parts = []
    if data.skipped_images:
        parts.append(_count(len(data.skipped_images), "image"))
    if data.skipped_modules:
        parts.append(f"{_count(len(data.skipped_modules), 'module')} of the network")
    return [f"Left out, for the reasons given below: {_and(parts)}."] if parts else []


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def _and(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
