"""
The theory in one page
======================

A convolution ``W`` followed by a pooling that keeps the largest entry of each region leaves a few values and
their places. *Towards Understanding the Invertibility of Convolutional Neural Networks* (Gilbert, Zhang, Lee,
Zhang, Lee; IJCAI 2017) reads this as one step of model-based iterative hard thresholding: the layer computes ``z =
M(W x, k)``, its decoder ``W^T z``. Here every claim is measured while the page is built, in the setting of the
paper's Figure 2.
"""

# %%
# A random layer
# --------------
#
# 96 Gaussian filters of 5 taps on 32 channels, signals of length 32. Codes have at most one non-zero per channel
# (*model* ``"map"``), ``k = 10`` in all. If ``W^T`` kept all of them at their length, decoding would be safe: that
# is the **model-RIP**, and the histogram (a) of Figure 2.

import matplotlib.pyplot as plt
import torch

from unconv.certify.bracket import delta_bracket
from unconv.certify.upper_bound import upper_bound
from unconv.linalg import relative_norm
from unconv.measure.rip import draw_codes, sample_ratios
from unconv.measure.theorems import theorem_33_bound
from unconv.operators import ConvOperator, gaussian_like
from unconv.recover import iht, niht
from unconv.sparsity import Pooled


def gaussian_layer(channels: int) -> ConvOperator:
    """96 filters of 5 taps, each of expected unit norm."""
    return ConvOperator(gaussian_like(torch.zeros(96, channels, 5, dtype=torch.float64), seed=0), (channels, 32))


k, samples = 10, 1000
operator, model = gaussian_layer(32), Pooled("map", 10)
ratios = sample_ratios(operator, Pooled("map"), k, samples)
codes = next(draw_codes(operator, Pooled("map"), k, samples))
back = operator.forward(operator.adjoint(codes.dense())).flatten(1)  # W W^T z
on_support = back.gather(1, codes.index).norm(dim=1) / codes.norms
everywhere = back.norm(dim=1) / codes.norms

# %%
# One step, and its error
# -----------------------
#
# ``x = W^T z`` for random codes ``z``; ``iht`` with its default of one step is the layer and its decoder. Three
# readings of "pooling": the switches are those of ``z`` itself, those that the pooling of ``W x`` finds (what a
# network has), or lost, every value put at the first place of its region.

z = codes.dense()
x = operator.adjoint(z)
h = operator.forward(x)
one_step = iht(operator, x, model)
lost = operator.adjoint(one_step.value.code.with_fixed_switches().dense())
errors = {
    "true switches": relative_norm(operator.adjoint(h * (z != 0)) - x, x),
    "switches found in Wx": one_step.residual,
    "switches lost": relative_norm(lost - x, x),
}

figure, panels = plt.subplots(1, 3, figsize=(11, 3.2), layout="constrained")
panels[0].hist(ratios, bins=50)
panels[0].set_title(r"(a)  $\|W^T z\| \, / \, \|z\|$")
panels[1].hist(on_support, bins=50, alpha=0.7, label="on the support of z")
panels[1].hist(everywhere, bins=50, alpha=0.7, label="all entries")
panels[1].set_title(r"(b)  $\|W W^T z\| \, / \, \|z\|$")
panels[1].legend(fontsize=8, loc="upper center")
for label, values in errors.items():
    panels[2].hist(values, bins=50, alpha=0.7, label=label)
panels[2].set_title(r"(c)  error of one step")
panels[2].legend(fontsize=8, loc="upper center")
for panel in panels:
    panel.set_yticks([])

# %%
# (a) and (b, on the support) are what the paper shows: typical codes keep their length. (c) shows what its figure
# leaves out: with the switches that a network has, one step leaves twice the error that the true ones leave, and
# without switches the answer is worse than zero.

for label, values in errors.items():
    print(f"{label:22} median error {values.median().item():.2f}")

# %%
# Is the rest lost? No: one step is just not the end of the algorithm. Normalised IHT, the same iteration with steps
# of the right length, finds the codes of the same inputs.

solved = niht(operator, x[:50], model)
print(f"after {solved.steps} steps: largest error {solved.residual.max().item():.1e}")

# %%
# What is proven
# --------------
#
# ``delta_k`` is about the *worst* code, not the typical one. A search attains its lower bound by a code that you
# get and can check; the upper bound is proven.

single = delta_bracket(operator, "map", k, effort=0.05)
double = delta_bracket(operator, "map", k, twice=True, effort=0.05)
print(f"largest deviation of {samples} random codes: {(ratios.square() - 1).abs().max().item():.2f}")
print(f"delta_k  between {single.lower:.2f} (attained) and {single.upper:.2f} (proven)")
print(f"delta_2k between {double.lower:.2f} (attained) and {double.upper:.2f} (proven)")
bound = theorem_33_bound(single.upper, max(single.upper, double.upper))
print(f"Theorem 3.3 bounds the error by {bound}")

# %%
# On the paper's own example ``delta_2k`` is above 1, so Theorem 3.3 is **silent** there. Where does it speak? With
# two non-zeros, and many channels. An answer of zero has error 1, so a bound above 1 is **vacuous**; here it
# becomes useful at about two thousand channels, and one step is far better than it all along.

widths = (32, 64, 128, 256, 512, 1024, 2048)
found, bounds = [], []
for width in widths:
    layer = gaussian_layer(width)
    sparse = next(draw_codes(layer, Pooled("map"), 2, 50)).dense()
    found.append(iht(layer, layer.adjoint(sparse), Pooled("map", 2)).residual.max().item())
    proven = [upper_bound(layer, "map", 2, twice=twice, refine=False).value for twice in (False, True)]
    bounds.append(theorem_33_bound(proven[0], max(proven)))

figure, panel = plt.subplots(figsize=(6.5, 4), layout="constrained")
spoken = [(width, value) for width, value in zip(widths, bounds, strict=True) if value < float("inf")]
panel.loglog(*zip(*spoken, strict=True), "v-", label="Theorem 3.3, from proven constants")
panel.loglog(widths, found, "s-", label="largest of 50 errors, switches found")
panel.axhspan(1, max(value for _, value in spoken) * 2, color="0.9", zorder=0)
panel.text(widths[0], 1.15, "vacuous: zero does as well", fontsize=9)
panel.set_ylim(top=max(value for _, value in spoken) * 2)
panel.set_xlabel("channels M")
panel.set_ylabel("relative error of one-step IHT, k = 2")
panel.set_xticks(widths, [str(width) for width in widths])
panel.minorticks_off()
panel.legend()

# %%
# Real networks are further from the theorem still: their filters are coherent, and with the thousands of regions
# that images have in use every bracket is vacuous (:doc:`/theory`). What carries over is the algorithm, not
# its bound: the values at the switches are linear equations about the input, and solving these gives far more back
# than one step does (:doc:`/information`).
