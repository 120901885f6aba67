"""Fill the tables of unseen.md from the committed results: ``python docs/fill_unseen.py``.

A table stands between ``<!-- NAME: MODEL CHOICE -->`` and ``<!-- end -->``; the names are those of ``TABLES``.
``CHOICE``, a JSON object, may name the layers, ``rows``, that the table shows; all are in the results.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

PAGE = Path(__file__).with_name("unseen.md")
RESULTS = Path(__file__).parents[1] / "experiments" / "results"
HEADER = ("layer", "unbiased attackers", "any attacker", "ours", "gap")


def leakage(result: dict[str, Any], rows: Iterable[str] = ()) -> str:
    """The bracket by layer, as PSNR in dB; the gap with what two standard errors over the images are."""
    lines = ["| " + " | ".join(HEADER) + " |", "|" + "---|" * len(HEADER)]
    layers = {row["layer"]: row for row in result["leakage"]}
    shown = [layers[name] for name in rows or layers]
    for row in shown:
        psnr = row["psnr"]
        best = max(row["attained"], key=lambda name: psnr[name])
        numbers = (psnr["unbiased_bound"], psnr["bayesian_bound"], psnr[best])
        margin = 10 * math.log10(1 + row["attained_margin"][best] / row["attained"][best])
        cells = [*(f"{n:.2f}" for n in numbers), f"{row['gap_db']:.2f}±{margin:.2f}"]
        lines.append("| " + " | ".join([f"`{row['layer']}`", *cells]) + " |")
    config = result["config"]
    noise = f"noise {config['relative_sigma']} of the features' root mean square"
    more = {row["layer"]: row["images"] for row in shown if row["images"] != config["limit"]}
    others = f" ({max(more.values())} at {', '.join(f'`{layer}`' for layer in more)})" if more else ""
    images = f"{config['limit']} images{others} of {config['size']} pixels"
    lines += ["", f"{images}; {noise}; {config['passes']} passes of the attack."]
    return "\n".join(lines)


def uniqueness(result: dict[str, Any]) -> str:
    """Radius and smallest singular value by layer."""
    lines = ["| layer | gates, switches | radius | smallest singular value | only one |", "|---|---|---|---|---|"]
    for layer, row in result["layers"].items():
        (near, far), (low, high) = row["radius"], row["sigma"]
        radius = f"{near:.3g}" if far < 1.001 * near else f"{near:.3g} to {far:.3g}"
        sigma = f"{high:.3g}" if low > 0.99 * high else f"{low:.2g} to {high:.3g}" if row["proven"] else f"<{high:.3g}"
        answer = {True: "yes", False: "no", None: "?"}[row["unique"]]
        lines.append(f"| `{layer}` | {row['comparisons']:,} | {radius} | {sigma} | {answer} |")
    lines += ["", "scikit-image's astronaut at 32 pixels; distances are norms over all pixels, which lie in [0, 1]."]
    return "\n".join(lines)


def relu(result: dict[str, Any]) -> str:
    """The bracket of the first ReLU layer by radius."""
    radii = ", ".join(f"{row['radius']:g}" for row in result["relu"])
    lower = ", ".join(f"{row['lower']:.3g}" for row in result["relu"])
    upper = f"{result['relu'][0]['upper']:.3g}"
    return f"Middle within {radii} of the photograph: at least {lower} times the distance. Some: by only {upper}."


TABLES: dict[str, tuple[Callable[..., str], str]] = {
    "leakage": (leakage, "unseen"),
    "uniqueness": (uniqueness, "uniqueness"),
    "relu": (relu, "uniqueness"),
}


def fill(page: str) -> str:
    """The page with every table as the results have it."""

    def filled(found: re.Match[str]) -> str:
        table, study = TABLES[found[2]]
        file = RESULTS / f"{study}-{found[3]}.json"
        choice = json.loads(found[4] or "{}")
        text = table(json.loads(file.read_text()), **choice) if file.exists() else "*Not run here.*"
        return f"{found[1]}{text}\n{found[5]}"

    return re.sub(r"(<!-- (\w+): (\S+)(?: ({[^\n]*}))? -->\n).*?(<!-- end -->)", filled, page, flags=re.DOTALL)


if __name__ == "__main__":
    PAGE.write_text(fill(PAGE.read_text()))
