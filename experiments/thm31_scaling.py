"""Theorems 3.1 and 3.3 measured: ``python experiments/thm31_scaling.py --out FOLDER``.

How the model-RIP constant of Gaussian filters scales with ``k, M, l, D, K`` (one dimension, whole maps as regions),
beside the theorem's ``sqrt(k D / (M l^2) (log K + log n - log eps))``; where ``delta_2k < 1`` is proven, refuted or
open; and one-step IHT's error beside Theorem 3.3's bound. Writes ``thm31.json`` and three figures.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from tqdm import tqdm

from unconv.certify.lower_bound import lower_bound
from unconv.certify.upper_bound import upper_bound
from unconv.evaluate.run_directory import environment
from unconv.io import write_json
from unconv.measure.rip import RatioSummary, sample_ratios
from unconv.paper.thm31 import FAILURE, THEOREM, VARIABLES, Sizes
from unconv.paper.thm33 import one_step
from unconv.sparsity import Pooled

MEASURES = {"sampled": ("sampled", "o"), "lower": ("lower bound", "^"), "upper": ("upper bound", "v")}
CENTRE = Sizes()
SWEEPS: dict[str, tuple[int, ...]] = {
    "k": (2, 4, 8, 16, 32),
    "M": (8, 16, 32, 64, 128, 256),
    "l": (2, 3, 5, 8, 12),
    "D": (16, 32, 64, 128),
    "K": (24, 48, 96, 192),
}
PHASE_K, PHASE_M = (1, 2, 4, 8, 16), (16, 64, 256, 1024)
TICKS = (0.1, 0.2, 0.5, 1, 2, 5)
IHT_K, IHT_M = 2, (32, 128, 512, 2048)


def measure(sizes: Sizes, seed: int, *, draws: int, effort: float) -> dict[str, float]:
    """One layer's ``delta_k``: sampled, lower and upper bound, and promised with ``C = 1``."""
    operator = sizes.operator(seed)
    sampled = RatioSummary.of(sample_ratios(operator, Pooled("map"), sizes.k, draws, seed=seed)).delta
    lower = lower_bound(operator, "map", sizes.k, effort=effort, seed=seed).delta
    upper = upper_bound(operator, "map", sizes.k).value
    measured = {"seed": seed, "sampled": sampled, "lower": lower, "upper": upper, "promised": sizes.promise()}
    return asdict(sizes) | measured


def fit(rows: Sequence[dict[str, float]], measure: str, *, resamples: int = 2000) -> dict[str, Any]:
    """Exponents of ``delta = c k^a M^b l^c D^d K^e`` by least squares on logarithms."""
    x = np.array([[1.0, *(math.log(row[v]) for v in VARIABLES)] for row in rows])
    y = np.log([row[measure] for row in rows])
    solution = np.linalg.lstsq(x, y)[0]
    generator = np.random.default_rng(0)
    draws = []
    for _ in range(resamples):
        chosen = generator.integers(len(y), size=len(y))
        draws.append(np.linalg.lstsq(x[chosen], y[chosen])[0])
    low, high = np.percentile(draws, [2.5, 97.5], axis=0)
    exponents = {
        name: {"exponent": float(solution[i]), "interval": [float(low[i]), float(high[i])], "theorem": THEOREM[name]}
        for i, name in enumerate(VARIABLES, start=1)
    }
    return {"exponents": exponents, "residual": float(np.sqrt(np.mean((y - x @ solution) ** 2)))}


def constants(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """What the theorem's unnamed constant must be at least, and what would be enough, on these layers."""
    lower, upper = (max((row[name] / row["promised"]) ** 2 for row in rows) for name in ("lower", "upper"))
    return {"refuted_below": lower, "enough": upper}


def phase(sizes: Sizes, seed: int, *, effort: float) -> dict[str, float | str]:
    """Whether ``delta_2k < 1`` is proven, refuted or open for one layer."""
    operator = sizes.operator(seed)
    lower = lower_bound(operator, "map", sizes.k, twice=True, effort=effort, seed=seed).delta
    upper = upper_bound(operator, "map", sizes.k, twice=True).value
    verdict = "proven" if upper < 1 else "refuted" if lower >= 1 else "open"
    return {"k": sizes.k, "M": sizes.M, "lower": lower, "upper": upper, "verdict": verdict}


def run(*, seeds: int = 3, draws: int = 2000, effort: float = 0.1) -> dict[str, Any]:
    """The whole experiment."""
    layers = {replace(CENTRE, **{name: value}) for name, values in SWEEPS.items() for value in values}
    ordered = sorted(layers, key=lambda s: tuple(asdict(s).values()))
    began = time.perf_counter()
    rows = [
        measure(s, seed, draws=draws, effort=effort) for s in tqdm(ordered, desc="scaling") for seed in range(seeds)
    ]
    cells = [replace(CENTRE, k=k, M=m) for k in PHASE_K for m in PHASE_M]
    diagram = [phase(s, 0, effort=effort) for s in tqdm(cells, desc="phase diagram")]
    iht = [
        one_step(replace(CENTRE, k=IHT_K, M=m), 0, draws=min(draws, 200), effort=effort)
        for m in tqdm(IHT_M, desc="one step")
    ]
    return {
        "name": "thm31",
        "paper": {"exponents": THEOREM, "condition": "M l^2 / D >= C k / delta_k^2 (log K + log n - log eps)"},
        "ours": {
            "fits": {name: fit(rows, name) for name in MEASURES},
            "C": constants(rows),
            "scaling": rows,
            "phase": diagram,
            "one_step": iht,
        },
        "notes": [
            f"Centre {CENTRE}; one size varies at a time, {seeds} draws of the filters each; Gaussian filters of "
            "variance 1 / (M l), not normalised; one region per channel; full boundary.",
            "'sampled' is the largest deviation of random codes, 'lower' is attained by a witness, 'upper' is proven; "
            "delta_k lies between the last two.",
            f"The promise takes C = 1 and a failure probability of {FAILURE}.",
        ],
        "settings": {"seeds": seeds, "draws": draws, "effort": effort, "seconds": time.perf_counter() - began},
    }


def draw_scaling(result: dict[str, Any]) -> Figure:
    """One panel per size: sampled ``delta_k``, its lower and upper bound, and the theorem's slope."""
    figure = Figure(figsize=(13, 4), layout="constrained")
    panels = figure.subplots(1, len(VARIABLES), sharey=True)
    for panel, name in zip(panels, VARIABLES, strict=True):
        rows = [r for r in result["ours"]["scaling"] if all(r[v] == getattr(CENTRE, v) for v in VARIABLES if v != name)]
        values = sorted({row[name] for row in rows})
        for kind, (label, marker) in MEASURES.items():
            means = [np.mean([row[kind] for row in rows if row[name] == value]) for value in values]
            slope = result["ours"]["fits"][kind]["exponents"][name]["exponent"]
            panel.plot(values, means, marker=marker, label=f"{label}: {slope:+.2f}")
        promised = [next(row["promised"] for row in rows if row[name] == value) for value in values]
        panel.plot(values, promised, "k--", linewidth=1, label=f"theorem, C = 1: {THEOREM[name]:+.1f}")
        panel.set(xscale="log", yscale="log", xlabel=name)
        panel.set_xticks(values, [str(value) for value in values])
        panel.minorticks_off()
        panel.legend(
            fontsize=7, title="exponent", title_fontsize=7, loc="lower center", bbox_to_anchor=(0.5, 1), frameon=False
        )
    panels[0].set_ylabel(r"$\delta_k$")
    panels[0].set_yticks(TICKS, [f"{tick:g}" for tick in TICKS])
    return figure


def draw_phase(result: dict[str, Any]) -> Figure:
    """Where ``delta_2k < 1`` is proven, refuted or open."""
    figure = Figure(figsize=(6, 4.6), layout="constrained")
    panel = figure.subplots()
    colours = {"proven": "#2a7f62", "open": "#e0b23c", "refuted": "#b03a2e"}
    for verdict, colour in colours.items():
        cells = [cell for cell in result["ours"]["phase"] if cell["verdict"] == verdict]
        panel.scatter([c["M"] for c in cells], [c["k"] for c in cells], s=1700, marker="s", color=colour, label=verdict)
        for cell in cells:
            label = f"{cell['lower']:.3f}\n{cell['upper']:.3f}"
            ink = "black" if verdict == "open" else "white"
            panel.annotate(label, (cell["M"], cell["k"]), ha="center", va="center", fontsize=9, color=ink)
    panel.set(xscale="log", yscale="log", xlabel="M, input channels", ylabel="k", title=r"is $\delta_{2k} < 1$?")
    panel.set_xticks(PHASE_M, [str(m) for m in PHASE_M])
    panel.set_yticks(PHASE_K, [str(k) for k in PHASE_K])
    panel.minorticks_off()
    panel.margins(0.15)
    panel.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=3, markerscale=0.25, frameon=False)
    return figure


def draw_one_step(result: dict[str, Any]) -> Figure:
    """One-step IHT's largest error beside Theorem 3.3's bound."""
    figure = Figure(figsize=(5.5, 4), layout="constrained")
    panel = figure.subplots()
    rows = result["ours"]["one_step"]
    for key, label, style in (
        ("bound_upper", r"bound, from the upper $\delta$", "v-"),
        ("bound_lower", r"bound, from the lower $\delta$", "^--"),
        ("error_found_switches", "largest error, found switches", "s-"),
        ("error_true_switches", "largest error, true switches", "o-"),
    ):
        known = [row for row in rows if row[key] is not None]
        panel.plot([row["M"] for row in known], [row[key] for row in known], style, label=label)
    panel.axhline(1, color="k", linewidth=0.8, linestyle=":")
    panel.set(xscale="log", yscale="log", xlabel="M, input channels", ylabel=r"$\|\hat x - x\| / \|x\|$")
    sizes = [row["M"] for row in rows]
    panel.set_xticks(sizes, [str(size) for size in sizes])
    panel.minorticks_off()
    panel.legend(fontsize=8)
    return figure


def main() -> None:
    """Run the experiment and write its data and figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True, help="folder for thm31.json and the figures")
    parser.add_argument("--data", type=Path, help="draw the figures of this thm31.json again, and measure nothing")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--effort", type=float, default=0.1)
    chosen = parser.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    if chosen.data is None:
        result = run(seeds=chosen.seeds, draws=chosen.draws, effort=chosen.effort)
        result |= {"command": shlex.join(["python", *sys.argv]), "environment": environment()}
        write_json(chosen.out / "thm31.json", result)
    else:
        result = json.loads(chosen.data.read_text())
    drawings = {"thm31-scaling": draw_scaling, "thm31-phase": draw_phase, "thm33-one-step": draw_one_step}
    with rc_context({"svg.hashsalt": "unconv"}):
        for name, draw in drawings.items():
            draw(result).savefig(chosen.out / f"{name}.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
