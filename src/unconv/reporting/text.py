"""What a report says in words: names, numbers, definitions, and the answer that opens it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from unconv.reporting.data import (
    FEW,
    Record,
    Report,
    Series,
    best_from_features,
    done,
    out_of_time,
    recognisable,
    threshold,
)

METHODS = {
    "linear": "linear decoder",
    "gauss-newton": "Gauss-Newton",
    "gradient": "gradient descent",
    "decoder": "trained decoder",
    "iht": "one-step IHT",
    "transpose": "transpose",
    "min-norm": "minimum norm",
    "convex": "convex",
}
SIDES = {"none": "features alone", "switches": "with switches", "gates": "with switches and gates"}
RECOVERED = {"image": "the image", "input": "the block's own input"}
CODES = {"network": "the network's features", "paper": "the paper's code"}
METRIC_NAMES = {"relative_error": "relative error", "psnr": "PSNR (dB)", "ssim": "SSIM"}
METHOD_MEANINGS = {
    "linear": "The best affine map from features to pixels, fitted in closed form to reference images. It shows what is"
    " there to be read off; a nonlinear method can find more.",
    "gauss-newton": "Gauss-Newton steps on the network, from the linear decoder's answer, until the features agree.",
    "gradient": "Gradient descent on the image until the features agree.",
    "decoder": "A decoding network trained for this layer.",
    "iht": "One step of model-based iterative hard thresholding, as in the paper, scaled to fit the code.",
    "transpose": "The code through the transposed convolution, scaled to fit the code.",
    "min-norm": "Of all inputs that give this code, the one of smallest norm.",
    "convex": "A smooth input that satisfies all that the code implies.",
}
SIDE_MEANINGS = {
    "none": "Only the layer's output is given.",
    "switches": "Given besides: where each max pooling found its maximum, at every layer on the way.",
    "gates": "Given besides: the switches, and which branch each ReLU is on, at every layer on the way.",
}
THEORY = {
    "sparsity": "Non-zeros: how many values of the code are not zero, in percent.",
    "coherence": "Coherence: the largest inner product of two filters at unit norm (0 orthogonal, 1 parallel), beside"
    " Gaussian filters of the same size.",
    "rip": "RIP (restricted isometry property) ratio: ‖Wᵀz‖ / ‖z‖ of sampled codes z with k non-zeros, 1st percentile,"
    " median and 99th percentile; near 1, the transposed convolution keeps lengths.",
    "typical": "Typical: how many of all random codes keep their length ‖Wᵀz‖ within which share, at 95 % confidence.",
    "certificate": "δₖ: how far ‖Wᵀz‖² / ‖z‖² strays from 1 over all such codes, as lower to upper bound; from 1 on,"
    " nothing is promised.",
    "sigma": "σ: the smallest singular value of the linear map that the code fixes, as lower to upper bound; an error e"
    " in the code moves the answer by at most e over the lower bound; where that is 0, nothing is promised.",
    "null": "Null space: dimensions of the image that the code leaves open, even with switches and gates given.",
}


def number(value: Any) -> str:
    """Return a value as text: floats with three digits, whole numbers with their thousands apart, shapes."""
    if value is None:
        return "–"
    if isinstance(value, list | tuple):
        return " × ".join(map(str, value))
    if isinstance(value, int) or (isinstance(value, float) and abs(value) >= 999.5):
        return f"{round(value):,}".replace("-", "−")
    if not isinstance(value, float):
        return str(value)
    mantissa, _, exponent = f"{value:#.3g}".removesuffix(".").partition("e")
    text = f"{mantissa}e{int(exponent)}" if exponent else mantissa
    return text.replace("-", "−") if value else "0"


def typical(found: Mapping[str, Any]) -> str:
    """Return how many codes keep their norm within which share; see ``TypicalRatio``."""
    within = f"within {100 * found['within']:.2g} %"
    if found["within"] >= 0.5:
        within = f"times {number(found['low'])} to {number(found['high'])}"
    return f"{100 * found['share']:.3g} % {within}"


def series_name(series: Series) -> str:
    """Return a line's name within its group."""
    return f"{METHODS.get(series.method, series.method)}, {SIDES.get(series.side_info, series.side_info)}"


def group_name(group: tuple[str, str]) -> str:
    """Return what is recovered, and from what."""
    return f"{RECOVERED.get(group[0], group[0])} from {CODES.get(group[1], group[1])}"


def spread_name(report: Report) -> str:
    """Return what the range beside a mean spans."""
    return "smallest to largest image" if report.ranged <= FEW else "5th to 95th percentile of the images"


def state(record: Record) -> str:
    """Return how far a mean can be trusted; empty where all images converged."""
    if done(record):
        return ""
    passes = "" if record["passes"] is None else f" after {number(round(record['passes']))} passes"
    if out_of_time(record):
        return f"{record['images'] - record['converged']} of {record['images']} not converged{passes}"
    ended = f", it ended{passes}" if record["passes"] else ""
    return f"more refinement gains nothing on reference images{ended}"


def budget_name(report: Report) -> str:
    """Return the budget of passes and seconds as the settings have it; empty where there is none."""
    passes, seconds = report.config.get("passes") or {}, report.config.get("budget")
    most = f"{number(min(passes.values()))} to {number(max(passes.values()))}" if passes else ""
    if len(set(passes.values())) == 1:
        most = number(max(passes.values()))
    return ", ".join([f"at most {most} passes"] * bool(most) + [f"{number(seconds)} s"] * bool(seconds))


def answer(report: Report) -> list[str]:
    """Return the answer: up to where the image is recognisable, where it fails, how far to trust that."""
    best = best_from_features(report)
    if not best:
        what = "no image was recovered from features alone" if report.series else "nothing was inverted"
        return [f"{len(report.names)} layers of {report.model} were measured; {what} in this run."]
    metric = "ssim" if all(record["ssim"] is not None for _, record in best.values()) else "relative_error"
    name = "SSIM" if metric == "ssim" else "relative error"
    flat = report.baseline.get(metric)
    third = "" if flat is None else f", a third of the way from the mean colour's {number(flat)} to the image"
    limit = f"threshold: {name} {number(threshold(report, metric))}{third}"
    good = [i for i, (_, record) in best.items() if recognisable(report, record)]
    bad = [i for i in best if not good or i > max(good)]
    sentences = [f"From features alone, the image is recognisable at no layer looked at ({limit})."]
    if good:
        deepest = max(good)
        gaps = [report.names[i] for i in best if i < deepest and i not in good]
        which = f"up to {report.names[deepest]}{f' (but not at {_and(gaps)})' if gaps else ''}"
        if not bad and not gaps:
            which = f"at every layer looked at, up to {report.names[deepest]}"
        by = METHODS.get(best[deepest][0].method, best[deepest][0].method)
        at = f"{_values(best[deepest][1])} there by {by}"
        sentences = [f"From features alone, the image is recognisable {which}: {at} ({limit})."]
    if bad:
        first, last = bad[0], bad[-1]
        end = f", {_values(best[last][1])} at {report.names[last]}" if last != first else ""
        within = " within the budget" if set(bad) & set(_alone(report, best, out_of_time)) else ""
        sentences.append(
            f"{'From' if last != first else 'At'} {report.names[first]}{' on' if last != first else ''}, it was not"
            f" recovered{within}: {_values(best[first][1])} there{end}."
        )
    else:
        sentences.append(f"None of the {len(best)} layers falls below that.")
    return [*sentences, _trust(report, best)]


def _trust(report: Report, best: dict[int, tuple[Series, Record]]) -> str:
    """Return how far the best results go: converged, linear only, or stopped by the budget."""
    images = "one image" if report.images == 1 else f"{report.images} images"
    stopped = [report.names[i] for i in _alone(report, best, out_of_time)]
    vain = [report.names[i] for i in _alone(report, best, lambda record: not done(record) and not out_of_time(record))]
    linear = [i for i, (series, _) in best.items() if series.method == "linear"]
    bound = "what is read from a layer bounds from below what it holds"
    clauses = [f"means over {images}"]
    if stopped:
        most, planned = report.config.get("most_passes"), report.config.get("passes") or {}
        if most and not report.document.get("stopped") and all(planned.get(name, 0) >= most for name in stopped):
            clause = f"refinement had not converged after {number(most)} passes, the most that a budget buys (--passes"
            clauses.append(f"at {_and(stopped)} {clause} makes more): that is no limit of the network")
        else:
            budget = f" ({name})" if (name := budget_name(report)) else ""
            clauses.append(
                f"at {_and(stopped)} the budget{budget} ended before refinement converged: its limit, not the network's"
            )
    if vain:
        clauses.append(f"at {_and(vain)} more refinement gained nothing on reference images")
    if len(clauses) > 1:
        return f"How far to trust that: {'; '.join(clauses if stopped else [*clauses, bound])}."
    if len(linear) == len(best):
        planned, budget = (report.config.get("passes") or {}).values(), report.config.get("budget")
        if budget and planned and not any(planned):
            bound = f"the budget ({number(budget)} s) left no time for refinement; {bound}"
        return f"How far to trust that: means over {images} by linear decoders, which see only what is linear; {bound}."
    return f"How far to trust that: means over {images}, all converged; {bound}."


def _alone(report: Report, layers: Iterable[int], wanted: Callable[[Record], bool]) -> list[int]:
    """Return the layers at which the record of a method that knows the features alone is one of those wanted."""
    alone = [records for series, records in report.series.items() if series.features_alone]
    return [i for i in layers if any(i in records and wanted(records[i]) for records in alone)]


def _values(record: Record) -> str:
    if record["ssim"] is None:
        return f"relative error {number(record['relative_error'])}"
    return f"SSIM {number(record['ssim'])}" + ("" if record["psnr"] is None else f" and {number(record['psnr'])} dB")


def definitions(report: Report) -> list[tuple[str, str]]:
    """Return the terms that the page uses, with a sentence or two each."""
    terms = [
        ("Layer", "Any module of the network, by its path; its output is what an image is recovered from."),
        ("Relative error", "‖x̂ − x‖ / ‖x‖ on the tensor that the network receives; 0 is exact, 1 is what x̂ = 0 gets."),
        ("PSNR, SSIM", "Peak signal-to-noise ratio and structural similarity, on pixels in [0, 1]."),
        ("Mean colour", "What answering with the image's own mean colour gets: the trivial answer."),
        ("Converged", "The solver met its stopping rule. Hollow: it did not for every image, so more passes may help."),
        ("Pass", "One forward and one backward pass of one image up to the layer."),
        ("Range", f"Beside a mean: {spread_name(report)}."),
    ]
    for names, meanings, field in ((SIDES, SIDE_MEANINGS, "side_info"), (METHODS, METHOD_MEANINGS, "method")):
        for value in dict.fromkeys(getattr(series, field) for series in report.series):
            if value in meanings:
                terms.append((names[value][:1].upper() + names[value][1:], meanings[value]))
    return terms


def _and(parts: Sequence[str]) -> str:
    """Join names, the middle of a long list left out."""
    if len(parts) > 4:
        return f"{parts[0]} to {parts[-1]} ({len(parts)} layers)"
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
