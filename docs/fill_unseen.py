"""Fill the tables of unseen.md from the committed results: ``python docs/fill_unseen.py``.

A table stands at ``<!-- NAME: MODEL CHOICE -->``; the names are those of ``TABLES``. ``CHOICE`` may name the layers,
``rows``, that the table shows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from tables import RESULTS, fill_page, markdown, read

HEADER = ("layer", "unbiased attackers", "any attacker", "ours", "gap")


def leakage(result: dict[str, Any], rows: Iterable[str] = ()) -> str:
    """The bracket by layer, as PSNR in dB; the gap with what two standard errors over the images are."""
    layers = {row["layer"]: row for row in result["leakage"]}
    shown = [layers[name] for name in rows or layers]
    lines = []
    for row in shown:
        psnr = row["psnr"]
        best = max(row["attained"], key=lambda name: psnr[name])
        numbers = (psnr["unbiased_bound"], psnr["bayesian_bound"], psnr[best])
        margin = 10 * math.log10(1 + row["attained_margin"][best] / row["attained"][best])
        lines.append((f"`{row['layer']}`", *(f"{n:.2f}" for n in numbers), f"{row['gap_db']:.2f}±{margin:.2f}"))
    config = result["config"]
    noise = f"noise {config['relative_sigma']} of the features' root mean square"
    more = {row["layer"]: row["images"] for row in shown if row["images"] != config["limit"]}
    others = f" ({max(more.values())} at {', '.join(f'`{layer}`' for layer in more)})" if more else ""
    images = f"{config['limit']} images{others} of {config['size']} pixels"
    return f"{markdown(HEADER, lines)}\n\n{images}; {noise}; {config['passes']} passes of the attack."


def uniqueness(result: dict[str, Any]) -> str:
    """Radius and smallest singular value by layer."""
    lines = []
    for layer, row in result["layers"].items():
        (near, far), (low, high) = row["radius"], row["sigma"]
        radius = f"{near:.3g}" if far < 1.001 * near else f"{near:.3g} to {far:.3g}"
        sigma = f"{high:.3g}" if low > 0.99 * high else f"{low:.2g} to {high:.3g}" if row["proven"] else f"<{high:.3g}"
        answer = {True: "yes", False: "no", None: "?"}[row["unique"]]
        lines.append((f"`{layer}`", f"{row['comparisons']:,}", radius, sigma, answer))
    table = markdown(("layer", "gates, switches", "radius", "smallest singular value", "only one"), lines)
    return (
        f"{table}\n\nscikit-image's astronaut at 32 pixels; distances are norms over all pixels, which lie in [0, 1]."
    )


def relu(result: dict[str, Any]) -> str:
    """The bracket of the first ReLU layer by radius."""
    radii = ", ".join(f"{row['radius']:g}" for row in result["relu"])
    lower = ", ".join(f"{row['lower']:.3g}" for row in result["relu"])
    upper = f"{result['relu'][0]['upper']:.3g}"
    return (
        f"If the middle of two images is within {radii} of the photograph, their features differ by at least {lower} "
        f"times their distance. Some pairs near the photograph differ by only {upper} times it."
    )


TABLES: dict[str, tuple[Callable[..., str], str]] = {
    "leakage": (leakage, "unseen"),
    "uniqueness": (uniqueness, "uniqueness"),
    "relu": (relu, "uniqueness"),
}


def made(kind: str, model: str, **choice: Any) -> str:
    """One table from its results, or that there are none."""
    table, study = TABLES[kind]
    file = RESULTS / f"{study}-{model}.json"
    return table(read(file), **choice) if file.exists() else "*Not run here.*"


if __name__ == "__main__":
    fill_page("unseen.md", made)
