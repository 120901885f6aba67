"""
Quick start
===========

How much of a photograph is still in a layer, and what does it look like? This example needs nothing but the installed
package: the bundled network ``cifar-vgg`` and photographs that ship with scikit-image.
"""

# %%
# One call inverts one layer: it gives the image back from that layer's features alone. A *pass* is one forward and one
# backward pass up to the layer; ``passes`` bounds how many are made for an image.

import matplotlib.pyplot as plt

import unconv

shallow = unconv.invert("cifar-vgg", "features.6", size=32, passes=40, limit=2)
shallow

# %%
# The relative error is ``||x' - x|| / ||x||`` on what the network receives: 0 is the image itself, and an answer of
# all zeros gets 1. The tensors are there too:

print(shallow)
print(shallow.estimate.shape, shallow.relative_error, shallow.psnr)

# %%
# Which layers are there?
# -----------------------
#
# Any module is a layer, by its module path: its output can be inverted. Some of them end a *conv block*, a convolution
# with its batch norm, activation and pooling: the layer of the paper, where the theory applies.

unconv.layers("cifar-vgg", size=32)

# %%
# Deeper
# ------
#
# The same photographs from three poolings, each after more convolutions.

depths = ["features.6", "features.13", "features.20"]
by_depth = {"features.6": shallow} | {
    name: unconv.invert("cifar-vgg", name, size=32, passes=40, limit=2) for name in depths[1:]
}

figure, panels = plt.subplots(2, 4, figsize=(8, 4.4), layout="constrained")
for row in range(2):
    panels[row, 0].imshow(shallow.pictures[row][0].permute(1, 2, 0).clip(0, 1))
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
# Layers over the whole depth, with and without side information, sparsity, coherence and certificates, as one HTML file
# that opens from disk::
#
#     unconv report cifar-vgg --size 96
#
# or, in Python, ``unconv.report("cifar-vgg", size=96)``. More on the page :doc:`/python`.
