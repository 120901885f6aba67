"""
Phase diagrams of sparse recovery
=================================

How sparse must a code be for each algorithm to find it? A code ``z`` is drawn, its input ``x = W^T z`` computed,
and a solver gets ``x`` and the model: at most ``k`` non-zeros, one per region. This is a small version of the
committed experiment on the page :doc:`/phase-transitions`, with ten codes per cell.
"""

# %%
# Gaussian layers in one dimension: 48 filters of 5 taps, signals of length 16 with ``M`` channels, and one region per
# channel. More channels are more numbers about the same code.

import matplotlib.pyplot as plt
import torch

from unconv.linalg import relative_norm
from unconv.measure.rip import draw_codes
from unconv.operators import ConvOperator, gaussian_like
from unconv.recover import cosamp, iht, niht
from unconv.sparsity import Pooled

widths, sparsities = (1, 2, 4, 8, 16), (1, 2, 4, 8, 16, 32)
solvers = {
    "one step (the layer)": iht,
    "NIHT": lambda *problem: niht(*problem, max_steps=100),
    "CoSaMP": lambda *problem: cosamp(*problem, max_steps=20),
}


def recovered(solver, channels: int, k: int, codes: int = 10) -> float:
    """Share of codes found to one per cent."""
    weight = gaussian_like(torch.zeros(48, channels, 5, dtype=torch.float64), seed=channels)
    operator, model = ConvOperator(weight, (channels, 16)), Pooled("map", k)
    z = next(draw_codes(operator, Pooled("map"), k, codes, seed=k)).dense()
    found = solver(operator, operator.adjoint(z), model).value.code.dense()
    return (relative_norm(found - z, z) <= 1e-2).double().mean().item()


shares = {
    name: [[recovered(solver, channels, k) for channels in widths] for k in sparsities]
    for name, solver in solvers.items()
}

# %%
figure, panels = plt.subplots(1, len(solvers), figsize=(10, 3.8), sharey=True, layout="constrained")
for panel, (name, table) in zip(panels, shares.items(), strict=True):
    image = panel.imshow(table, origin="lower", aspect="auto", vmin=0, vmax=1)
    panel.set_title(name)
    panel.set_xticks(range(len(widths)), [str(width) for width in widths])
    panel.set_xlabel("channels M")
    for row, line in enumerate(table):
        for column, share in enumerate(line):
            colour = "white" if share < 0.6 else "black"
            panel.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=8, color=colour)
panels[0].set_yticks(range(len(sparsities)), [str(k) for k in sparsities])
panels[0].set_ylabel("non-zeros k")
figure.colorbar(image, ax=panels, label="share of codes recovered")

# %%
# The first panel is not a mistake: one step, which is what a layer and its decoder do, finds next to no code to one
# per cent, however easy. The information is there all the same, and the iterations find it, up to a line that moves
# with ``M``. With ten codes per cell a share of one half has a standard error of 16 points.
