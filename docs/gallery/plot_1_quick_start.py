"""
Quick start
===========

How much of a photograph is still in a layer, and what does it look like? This example needs nothing but the installed
package: the bundled network ``cifar-vgg`` and photographs that ship with scikit-image.
"""

# %%
# One call inverts one layer. ``start="image"`` asks for the network's input (the default, ``"layer"``, for the
# layer's own); by default the switches of the poolings on the way are known. ``effort`` below 1 stops the solver
# early.

import matplotlib.pyplot as plt

import unconv

found = unconv.invert("cifar-vgg", "features.3", start="image", size=32, effort=0.25, limit=2, progress=False)
found

# %%
# The relative error is ``||x' - x|| / ||x||`` on what the network receives: 0 is the image itself, and an answer of
# all zeros gets 1. The tensors are there too:

print(found)
print(found.estimate.shape, found.relative_error, found.psnr)

# %%
# Which layers are there?
# -----------------------
#
# A *stage* is a convolution with its batch norm, activation and pooling. ConvBlocks are named by the module path of their
# convolution, and everything that is no stage is named with the reason.

loaded = unconv.load_model("cifar-vgg", size=32)
stages = unconv.find_conv_blocks(loaded.module, loaded.example())
stages

# %%
# Deeper
# ------
#
# The same photographs from three poolings, each after more convolutions.

depths = ["features.3", "features.10", "features.17"]
by_depth = {"features.3": found} | {
    name: unconv.invert("cifar-vgg", name, start="image", size=32, effort=0.25, limit=2, progress=False)
    for name in depths[1:]
}

figure, panels = plt.subplots(2, 4, figsize=(8, 4.4), layout="constrained")
for row in range(2):
    panels[row, 0].imshow(found.pictures[row][0].permute(1, 2, 0).clip(0, 1))
    for panel, result in zip(panels[row, 1:], by_depth.values(), strict=True):
        panel.imshow(result.pictures[row][1].permute(1, 2, 0).clip(0, 1))
        panel.set_xlabel(f"error {result.relative_error[row]:.2f}")
for panel, title in zip(panels[0], ["the photograph", *depths], strict=True):
    panel.set_title(title, fontsize=10)
for panel in panels.flat:
    panel.set_xticks([])
    panel.set_yticks([])

# %%
# A whole report
# --------------
#
# Every stage, several ways of inverting it, sparsity, coherence and certificates, as one HTML file that opens from
# disk::
#
#     unconv report cifar-vgg --size 96
#
# or, in Python, ``unconv.report("cifar-vgg", size=96)``. More on the page :doc:`/python`.
