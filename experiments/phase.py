"""Phase transitions of sparse recovery: ``python experiments/phase.py --out FOLDER``.

How often each solver of ``unconv.recover`` finds the code ``z`` behind ``x = W^T z``, against the number of non-zeros
``k`` and of channels ``M``, for Gaussian filters in one dimension (one region per channel, as in the theory) and in two
(2x2 regions, as in networks); and in the setting of the paper's Figure 2, where one step leaves a relative error of
0.3.
Writes ``phase.json`` and ``phase-transitions.svg``.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from unconv.evaluate.run_directory import environment
from unconv.io import write_json
from unconv.linalg import relative_norm
from unconv.measure.rip import draw_codes
from unconv.operators import ConvOperator, gaussian_like
from unconv.recover import SparseRecovery, activation_recovery, cosamp, htp, iht, niht
from unconv.recover.fista import default_weight
from unconv.solvers.solution import Solution
from unconv.sparsity import Pooled

EXACT, NEAR = 1e-4, 1e-2  # relative error of z at which it counts as recovered
SMALL_WEIGHT = 1e-3  # Algorithm 2's l1 weight, as a fraction of max |W x|: its bias has to stay below NEAR
BATCH = 50

Solver = Callable[[ConvOperator, Tensor, Pooled], Solution[SparseRecovery]]


def algorithm_2(operator: ConvOperator, x: Tensor, model: Pooled) -> Solution[SparseRecovery]:
    """The paper's Algorithm 2 with a weight small enough for exact codes."""
    weight = default_weight(operator, x, SMALL_WEIGHT)
    return activation_recovery(operator, x, model, weight=weight, tolerance=1e-5, max_steps=400)


SOLVERS: dict[str, Solver] = {"one step": iht, "NIHT": niht, "HTP": htp, "CoSaMP": cosamp, "Algorithm 2": algorithm_2}


@dataclass(frozen=True)
class Layer:
    """The sizes of a Gaussian layer, named as in the paper."""

    dims: int  # number of spatial axes
    D: int  # size of the input along each axis
    l: int  # size of a filter along each axis
    K: int  # number of filters
    region: int | Literal["map"]  # of the model, along each axis

    def operator(self, channels: int, seed: int) -> ConvOperator:
        """The layer, with filters of expected unit norm."""
        shape = torch.zeros(self.K, channels, *[self.l] * self.dims, dtype=torch.float64)
        return ConvOperator(gaussian_like(shape, seed), (channels, *[self.D] * self.dims))


FIGURE_2, FIGURE_2_M, FIGURE_2_K = Layer(1, 32, 5, 96, "map"), 32, 10
GRIDS: dict[str, tuple[Layer, tuple[int, ...], tuple[int, ...]]] = {
    "1-D": (Layer(1, 16, 5, 48, "map"), (1, 2, 4, 8, 16), (1, 2, 4, 8, 16, 24, 32, 48)),
    "2-D": (Layer(2, 8, 3, 16, 2), (1, 2, 4, 8), (2, 4, 8, 16, 32, 64, 96, 144)),
}


def errors(
    layer: Layer, channels: int, k: int, solver: Solver, *, draws: int, banks: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Relative errors of one solver on random codes, values uniform on [-1, 1]."""
    model = Pooled(layer.region, k)
    of_code, of_input = [], []
    for bank in range(seed * banks, (seed + 1) * banks):
        operator = layer.operator(channels, bank)
        for codes in draw_codes(operator, model, k, max(draws // banks, 1), seed=bank, batch=BATCH):
            z = codes.dense()
            x = operator.adjoint(z)
            found = solver(operator, x, model).value
            of_code.append(relative_norm(found.code.dense() - z, z))
            of_input.append(relative_norm(found.reconstruction - x, x))
    return torch.cat(of_code), torch.cat(of_input)


def figure_2(*, draws: int, banks: int = 10, seed: int = 0) -> list[dict[str, Any]]:
    """Every solver in the setting of the paper's Figure 2."""
    rows = []
    for name, solver in tqdm(SOLVERS.items(), desc="Figure 2"):
        of_code, of_input = errors(FIGURE_2, FIGURE_2_M, FIGURE_2_K, solver, draws=draws, banks=banks, seed=seed)
        rows.append({
            "solver": name,
            "draws": len(of_code),
            "recovered": (of_code <= EXACT).double().mean().item(),
            "median_error_z": of_code.median().item(),
            "largest_error_z": of_code.max().item(),
            "median_error_x": of_input.median().item(),
        })
    return rows


def transitions(*, draws: int, banks: int = 2, seed: int = 0) -> list[dict[str, Any]]:
    """Share of codes recovered by every solver, for every ``k`` and ``M`` of both grids."""
    cells = [(grid, layer, m, k) for grid, (layer, ms, ks) in GRIDS.items() for m in ms for k in ks]
    rows = []
    for grid, layer, channels, k in tqdm(cells, desc="phase transitions"):
        for name, solver in SOLVERS.items():
            of_code, _ = errors(layer, channels, k, solver, draws=draws, banks=banks, seed=seed)
            shares = {
                key: (of_code <= level).double().mean().item() for key, level in (("exact", EXACT), ("near", NEAR))
            }
            rows.append({"grid": grid, "M": channels, "k": k, "solver": name, "draws": len(of_code), **shares})
    return rows


def run(*, draws: int = 20, target_draws: int = 1000, seed: int = 0) -> dict[str, Any]:
    """The whole experiment."""
    began = time.perf_counter()
    ours = {"figure_2": figure_2(draws=target_draws, seed=seed), "cells": transitions(draws=draws, seed=seed)}
    return {
        "name": "phase",
        "paper": {"figure_2": "one step leaves a relative error of x of 0.1 to 0.2 with the true switches"},
        "ours": ours,
        "notes": [
            f"Figure 2: {asdict(FIGURE_2)}, M = {FIGURE_2_M}, k = {FIGURE_2_K}, 10 filter banks.",
            *(f"{grid}: {asdict(layer)}, 2 filter banks per cell." for grid, (layer, _, _) in GRIDS.items()),
            "Gaussian filters of expected unit norm, no padding, values uniform on [-1, 1], float64, solvers at their "
            f"defaults; Algorithm 2 with an l1 weight of {SMALL_WEIGHT} max |W x|.",
        ],
        "settings": {
            "draws": draws,
            "target_draws": target_draws,
            "seed": seed,
            "torch": torch.__version__,
            "seconds": time.perf_counter() - began,
        },
    }


def draw(result: dict[str, Any]) -> Figure:
    """One panel per grid and solver: the share of codes recovered, against ``M`` and ``k``."""
    figure = Figure(figsize=(12, 6.4), layout="constrained")
    panels = figure.subplots(len(GRIDS), len(SOLVERS), squeeze=False)
    shares = {(c["grid"], c["M"], c["k"], c["solver"]): c["near"] for c in result["ours"]["cells"]}
    image = None
    for row, (grid, (layer, ms, ks)) in zip(panels, GRIDS.items(), strict=True):
        measured = [m * layer.D**layer.dims for m in ms]
        for panel, solver in zip(row, SOLVERS, strict=True):
            table = [[shares[grid, m, k, solver] for m in ms] for k in ks]
            image = panel.imshow(table, origin="lower", aspect="auto", cmap="viridis", vmin=0, vmax=1)
            for i, line in enumerate(table):
                for j, share in enumerate(line):
                    colour = "white" if share < 0.6 else "black"
                    panel.text(j, i, f"{100 * share:.0f}", ha="center", va="center", fontsize=7, color=colour)
            panel.set_xticks(range(len(ms)), [f"{m}\n({n})" for m, n in zip(ms, measured, strict=True)], fontsize=8)
            panel.set_yticks(range(len(ks)), [str(k) for k in ks])
            panel.set_title(f"{solver}, {grid}", fontsize=10)
        row[0].set_ylabel("k, non-zeros")
    for panel in panels[-1]:
        panel.set_xlabel("M, channels (numbers in x)", fontsize=8)
    if image is not None:
        figure.colorbar(image, ax=panels, label=f"share of codes recovered to {NEAR:g}")
    return figure


def main() -> None:
    """Run the experiment and write its data and figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True, help="folder for phase.json and phase-transitions.svg")
    parser.add_argument("--draws", type=int, default=20, help="codes per cell")
    parser.add_argument("--target-draws", type=int, default=1000, help="codes in the setting of Figure 2")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    torch.set_num_threads(1)  # the tensors are tiny
    result = run(draws=chosen.draws, target_draws=chosen.target_draws, seed=chosen.seed)
    result |= {"command": shlex.join(["python", *sys.argv]), "environment": environment()}
    chosen.out.mkdir(parents=True, exist_ok=True)
    write_json(chosen.out / "phase.json", result)
    draw(result).savefig(chosen.out / "phase-transitions.svg")


if __name__ == "__main__":
    main()
