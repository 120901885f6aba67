"""The audit of a split point: what each attacker gets out of a layer's features, and what may be concluded from it."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from scipy.stats import t

from unconv.evaluate.evaluation import count, mean
from unconv.evaluate.reconstruction import DECODER, Task
from unconv.images import ImageStream, psnr, ssim
from unconv.io import finite
from unconv.preprocessing import Preprocessing

ATTACKERS = {
    ("linear", "none"): "linear decoder",
    ("gauss-newton", "none"): "refined",
    ("gauss-newton", "switches"): "refined, with switches",
    (DECODER, "switches"): "trained decoder, with switches",
}
LARGER_IS_MORE = ("psnr", "ssim")  # exposed; of the others the smallest value is
LIMITS = {"psnr": (-math.inf, math.inf), "ssim": (-1, 1), "relative_error": (0, math.inf), "lpips": (0, math.inf)}
LEVEL = 0.95
Row = Mapping[str, Any]


def audit_tasks(tasks: Iterable[Task], noise: Sequence[float], trained: Iterable[str]) -> tuple[Task, ...]:
    """Return the attackers among tasks, those of features alone also at every level of noise."""
    trained = set(trained)
    found = [t for t in tasks if (t.method, t.side_info) in ATTACKERS and (t.method != DECODER or t.layer in trained)]
    levels = sorted({float(level) for level in noise if level})
    noisy = [Task(t.layer, method=t.method, noise=level) for level in levels for t in found if t.side_info == "none"]
    for task in noisy:
        task.check()
    return (*found, *noisy)


def mean_colours(images: ImageStream, preprocess: Preprocessing) -> list[dict[str, Any]]:
    """Return PSNR and SSIM of answering each image with its own mean colour: what knowing nothing else gets."""
    found = []
    for batch in images:
        pixels = preprocess.to_pixels(batch.inputs, batch.inputs).clamp(0, 1)
        for index, x in zip(batch.indices, pixels, strict=True):
            flat = x.mean((1, 2), keepdim=True).expand_as(x).contiguous()
            found.append({"image": index, "psnr": finite(psnr(x, flat)), "ssim": finite(ssim(x, flat))})
    return found


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Return the 95 % Student t interval of the mean; none of fewer than two values."""
    if len(values) < 2:
        return None
    x = torch.tensor(values, dtype=torch.float64)
    # mean -+ t_{n-1} s / sqrt(n)
    half = float(t.ppf((1 + LEVEL) / 2, len(x) - 1)) * x.std().item() / math.sqrt(len(x))
    return x.mean().item() - half, x.mean().item() + half


def audit_document(rows: Iterable[Row], tasks: Sequence[Task], flat: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the audit as JSON: an entry per layer, attacker and level of noise, the mean colour, and conclusions."""
    by_task: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        by_task[row["layer"], row["method"], row["side_info"], row["noise"]].append(row)
    found = [(task, by_task.get((task.layer, task.method, task.side_info, task.noise), [])) for task in tasks]
    table = [
        {"layer": task.layer, "attacker": ATTACKERS[task.method, task.side_info], "noise": task.noise} | _entry(mine)
        for task, mine in found
        if mine
    ]
    baseline = {name: mean(f[name] for f in flat) for name in LARGER_IS_MORE}
    document = {
        "interval": "95 % Student t interval of the mean over images",
        "mean_colour": baseline,
        "attackers": list(dict.fromkeys(entry["attacker"] for entry in table)),
        "noise": sorted({entry["noise"] for entry in table if entry["noise"]}),
        "table": table,
    }
    places = [task.layer for task in tasks]
    names = list(ATTACKERS.values())
    table.sort(key=lambda e: (places.index(e["layer"]), names.index(e["attacker"]), e["noise"]))
    missing = dict.fromkeys(task.layer for task, mine in found if task.method == "gauss-newton" and not mine)
    return document | conclusions(document, list(missing))


def _entry(rows: Sequence[Row]) -> dict[str, Any]:
    done, counts = [row for row in rows if row["relative_error"] is not None], count(rows)
    no_gain, stopped = counts["no_gain"], len(done) - counts["converged"] - counts["no_gain"]
    passes = mean(row["passes"] for row in done)
    texts = [f"{stopped} of {len(done)} stopped before convergence"] if stopped else []
    if texts and passes is not None:
        texts[0] += f", after {passes:.0f} passes"
    if no_gain:
        texts.append(f"{no_gain} of {len(done)} ended where more refinement gains nothing on reference images")
    reasons = sorted({row["status"] for row in rows if row["relative_error"] is None})
    texts += [f"{counts['failed']} failed: {'; '.join(reasons)}"] if reasons else []
    same_class = mean(row.get("same_class") for row in done)
    entry: dict[str, Any] = counts | {"status": "; ".join(texts) or "converged", "same_class": same_class}
    for name, (least, most) in LIMITS.items():
        found = [(row[name], row["file"]) for row in done if row.get(name) is not None]
        if not found:
            entry[name] = None
            continue
        values = [value for value, _ in found]
        worst, file = (max if name in LARGER_IS_MORE else min)(found)
        # few images give intervals beyond what a mean can be
        ends = interval(values)
        low, high = (min(max(end, least), most) for end in ends) if ends else (None, None)
        entry[name] = {"mean": mean(values), "low": low, "high": high, "worst": worst, "worst_file": file}
    return entry


def strongest(document: Mapping[str, Any], noise: float = 0.0) -> dict[str, dict[str, Any]]:
    """Return, by layer, the entry whose attacker comes closest to the images without anything but the features."""
    best: dict[str, dict[str, Any]] = {}
    for entry in document["table"]:
        if entry["noise"] == noise and "switches" not in entry["attacker"] and entry["ssim"] is not None:
            old = best.get(entry["layer"])
            if old is None or entry["ssim"]["mean"] > old["ssim"]["mean"]:
                best[entry["layer"]] = entry
    return best


def conclusions(document: Mapping[str, Any], unrefined: Sequence[str] = ()) -> dict[str, list[str]]:
    """Return what a defender can and cannot conclude, in sentences; ``unrefined``: layers that miss such an attack."""
    best, flat = strongest(document), document["mean_colour"]["ssim"]
    can, cannot = [], []
    if layers := list(best):
        ends = ". ".join(_sentence(best[layer]) for layer in dict.fromkeys((layers[0], layers[-1])))
        can.append(f"What an attack gets is proof of a leak: whoever holds the weights gets at least this. {ends}.")
    if best and flat is not None:
        least = {n: e["ssim"]["mean"] if e["ssim"]["low"] is None else e["ssim"]["low"] for n, e in best.items()}
        above, rest = ([n for n in best if (least[n] > flat) is wanted] for wanted in (True, False))
        if above:
            sure = "the whole interval lies" if best[above[0]]["images"] > 1 else "one image, so no interval, lies"
            can.append(f"More than the mean colour (SSIM {flat:.2f}) leaks at {', '.join(above)}: {sure} above it.")
        if rest:
            can.append(
                f"At {', '.join(rest)} it is not shown that they get more than the mean colour (SSIM {flat:.2f})."
            )
    for level in document["noise"][-1:]:
        noisy = strongest(document, level)
        pairs = [f"from {best[n]['ssim']['mean']:.3f} to {e['ssim']['mean']:.3f} at {n}" for n, e in noisy.items()]
        can.append(
            f"Noise of {level:g} of the features' size, its level known, takes the best attack's mean SSIM"
            f" {', '.join(pairs)}."
        )
    cannot.append(
        "That a layer is private: attacks bound a leak from below. A decoder trained on many images, a generative model"
        " of such images or more passes may get more. What no attacker gets of noisy features: unconv unseen."
    )
    stopped = [e for e in document["table"] if e["converged"] + e["no_gain"] < e["images"]]
    if stopped:
        names = ", ".join(dict.fromkeys(e["layer"] for e in stopped))
        cannot.append(f"What refinement would reach at {names}: its passes ended first, and the number is theirs.")
    if unrefined:
        names = ", ".join(unrefined)
        cannot.append(f"What refinement gets at {names}: not all of it was run. A larger budget goes on with that.")
    cannot.append(
        "What happens to other images: the interval is for the mean of images like these, and the most exposed image"
        " seen is not the most exposed there is."
    )
    cannot.append("Whether somebody is recognised: PSNR and SSIM know no faces or number plates; look at the pictures.")
    if document["noise"]:
        cannot.append(
            "That noise protects what is sent twice: n sendings of one image, averaged, have a noise smaller by √n. It"
            " is no differential privacy either; nothing here bounds what one image changes."
        )
    return {"can_conclude": can, "cannot_conclude": cannot}


def _sentence(entry: Mapping[str, Any]) -> str:
    found, worst = entry["ssim"], entry["ssim"]["worst"]
    among = "" if found["low"] is None else f" ({found['low']:.2f} to {found['high']:.2f})"
    decibels = "" if entry["psnr"] is None else f", {entry['psnr']['mean']:.1f} dB"
    return (
        f"At {entry['layer']}, {entry['attacker']}: mean SSIM {found['mean']:.2f}{among}{decibels} over"
        f" {entry['images']} image{'s' * (entry['images'] != 1)}, {worst:.2f} for the most exposed one"
    )
