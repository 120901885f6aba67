"""Fill the tables of unseen.md from the committed results: ``python docs/fill_unseen.py``.

A table stands between ``<!-- leakage: MODEL -->`` and ``<!-- end -->``.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

PAGE = Path(__file__).with_name("unseen.md")
RESULTS = Path(__file__).parents[1] / "experiments" / "results"
HEADER = ("layer", "unbiased attackers", "any attacker", "ours", "gap", "bits per pixel", "images")


def leakage(result: dict[str, Any]) -> str:
    """The bracket by layer, as PSNR in dB; the gap with what two standard errors over the images are."""
    lines = ["| " + " | ".join(HEADER) + " |", "|" + "---|" * len(HEADER)]
    for row in result["leakage"]:
        psnr = row["psnr"]
        best = max(row["attained"], key=lambda name: psnr[name])
        numbers = (psnr["unbiased_bound"], psnr["bayesian_bound"], psnr[best])
        margin = 10 * math.log10(1 + row["attained_margin"][best] / row["attained"][best])
        cells = [*(f"{n:.2f}" for n in numbers), f"{row['gap_db']:.2f} ± {margin:.2f}"]
        cells += [f"{row['bits_per_pixel_estimate']:.2f}", f"{row['images']}"]
        lines.append("| " + " | ".join([f"`{row['layer']}`", *cells]) + " |")
    config = result["config"]
    noise = f"noise {config['relative_sigma']} of the features' root mean square"
    lines += ["", f"{config['size']} pixels; {noise}; {config['passes']} passes of the attack."]
    return "\n".join(lines)


def fill(page: str) -> str:
    """The page with every table as the results have it."""

    def filled(found: re.Match[str]) -> str:
        file = RESULTS / f"unseen-{found[2]}.json"
        table = leakage(json.loads(file.read_text())) if file.exists() else "*Not run here.*"
        return f"{found[1]}{table}\n{found[3]}"

    return re.sub(r"(<!-- leakage: (\S+) -->\n).*?(<!-- end -->)", filled, page, flags=re.DOTALL)


if __name__ == "__main__":
    PAGE.write_text(fill(PAGE.read_text()))
