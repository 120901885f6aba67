"""
Reproduction: reading the committed results
===========================================

``unconv reproduce NAME`` computes a table or figure of the paper; what takes hours, or data that cannot be passed
on, is committed as JSON below ``experiments/results`` with its command, settings and environment. This example
reads it. All tables are on the page :doc:`/reproduction`.
"""

# %%
# Table 3: one-step IHT in activation space
# -----------------------------------------
#
# The paper's central measurement: relative error of a layer's input after one-step IHT, with learned filters, with
# Gaussian filters, and with random activations at the true switches. Ours is VGG-19 where the paper has VGG-16, and
# the small bundled network; so the comparison is in kind.

import json
from pathlib import Path

import matplotlib.pyplot as plt

import unconv

RESULTS = Path(unconv.__file__).parents[2] / "experiments" / "results"  # in a clone of the repository
results = {model: json.loads((RESULTS / model / "table3.json").read_text()) for model in ("vgg19", "cifar-vgg")}
print(results["vgg19"]["command"])
for note in results["vgg19"]["notes"]:
    print("-", note)

# %%
# Macro layers that a network does not have are empty in its document.

kinds = {"learned": "learned filters", "random_filters": "Gaussian filters", "random_activations": "random activations"}
paper = results["vgg19"]["paper"]["activation space"]
sources = {"the paper, VGG-16": paper} | {f"ours, {model}": result["ours"] for model, result in results.items()}

figure, panels = plt.subplots(1, 3, figsize=(10, 3.4), sharey=True, layout="constrained")
for panel, (kind, words) in zip(panels, kinds.items(), strict=True):
    for (source, rows), marker in zip(sources.items(), "sov", strict=True):
        points = [(layer, row[kind]) for layer, row in rows.items() if row is not None]
        panel.plot(*zip(*points, strict=True), marker + "-", label=source)
    panel.axhline(1, color="0.7", linewidth=1)
    panel.set_title(words)
    panel.set_xlabel("macro layer")
panels[0].set_ylabel("relative error")
panels[0].legend(fontsize=8)

# %%
# The grey line is what an all-zero answer gets. One step is mostly a little better than that, for both kinds of
# filters, and random activations are at the square root of 2, as two vectors without relation are.
#
# Figure 2: the model-RIP of a small Gaussian layer
# -------------------------------------------------
#
# Computed on 20,000 codes; quantiles beside the values that were checked independently (a largest value grows with
# the number of codes).

figure_2 = json.loads((RESULTS / "fig2.json").read_text())
for name, checked in figure_2["paper"]["checked"].items():
    for quantile, value in checked.items():
        print(f"{name:22} {quantile:4} checked {value:5.2f}, ours {figure_2['ours'][name][quantile]:6.3f}")

# %%
# Run any of them yourself::
#
#     unconv reproduce fig2                                    # a minute, no data
#     unconv reproduce all --model cifar-vgg                   # photographs that ship with scikit-image
#     unconv reproduce table3 --model vgg16 --weights IMAGENET1K_FEATURES --images photos/
