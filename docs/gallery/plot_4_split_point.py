"""
Choose a split point by leakage
===============================

A device computes the first layers of a network and sends the features to a server. How much of the image does it send
with them? This example audits three split points of the bundled network with an attacker that needs no training: it
knows the weights and the features, and perhaps the switches of the poolings or the activation pattern.
"""

# %%
# The attacks
# -----------
#
# Two photographs at 32x32 pixels. ``passes`` bounds the work: a longer attack gets more. Each attack begins at the
# estimate of a linear decoder, which is fitted once for each split point and kept in the run directory.

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt

import unconv
from unconv.images import psnr

splits = ["features.6", "features.13", "features.20"]
knowledge = ["none", "switches", "gates"]
folder = Path(tempfile.mkdtemp())
attacks = {
    (split, known): unconv.invert(
        "cifar-vgg",
        split,
        side_info=known,
        size=32,
        limit=2,
        passes=25,
        out=folder / split / known,
        decoders=folder / split / "none" / "decoders",
    )
    for split in splits
    for known in knowledge
}

# %%
# What they get
# -------------

figure, panels = plt.subplots(len(splits), 4, figsize=(8, 6), layout="constrained")
titles = ["the photograph", *(f"features, {known}" if known != "none" else "features only" for known in knowledge)]
for row, split in zip(panels, splits, strict=True):
    row[0].imshow(attacks[split, "none"].pictures[0][0].permute(1, 2, 0).clip(0, 1))
    row[0].set_ylabel(split)
    for panel, known in zip(row[1:], knowledge, strict=True):
        attack = attacks[split, known]
        panel.imshow(attack.pictures[0][1].permute(1, 2, 0).clip(0, 1))
        panel.set_xlabel(f"{attack.psnr[0]:.0f} dB, error {attack.relative_error[0]:.2f}", fontsize=9)
for panel, title in zip(panels[0], titles, strict=True):
    panel.set_title(title, fontsize=10)
for panel in panels.flat:
    panel.set_xticks([])
    panel.set_yticks([])

# %%
# By layer and side information
# -----------------------------

figure, panel = plt.subplots(figsize=(6.5, 4), layout="constrained")
for known, marker in zip(knowledge, "ovs", strict=True):
    means = [attacks[split, known].psnr.nanmean().item() for split in splits]
    panel.plot(splits, means, marker + "-", label="features only" if known == "none" else f"features and {known}")
truths = [pair[0] for pair in attacks["features.6", "none"].pictures]
flat = [psnr(truth, truth.mean(dim=(1, 2), keepdim=True).expand_as(truth)) for truth in truths]
panel.axhline(sum(flat) / len(flat), color="0.6", linestyle=":", label="the mean colour alone")
panel.set_ylabel("PSNR in dB, mean of two images")
panel.set_xlabel("split point")
panel.legend(fontsize=8)

# %%
# Reading the curves
# ------------------
#
# What a defender **can** conclude:
#
# * An attack that succeeds is a proof of leakage: behind ``features.6`` the features alone give the picture back. No
#   attacker needs training data, only the weights.
# * Switches and gates are content, not bookkeeping: do not send them along, for an unpooling on the server, say.
#
# What a defender **cannot** conclude:
#
# * A high error is the failure of *this* attack with *this* many passes on *these* two images. It bounds nothing: a
#   longer run, a better prior or a decoder trained on the right data may do better.
# * An attack that ends below the dotted line has found less than the mean colour tells. That is no certificate either.
# * PSNR says nothing about what is recognisable. A face can be known at 15 dB, and a number plate lost at 25.
# * Two images are an illustration; ``unconv report cifar-vgg --images FOLDER`` gives the table over a folder.
#
# An attacker with images like those attacked may train a decoder: ``unconv train-decoder`` makes one, ``unconv invert
# --method decoder`` uses it (:doc:`/your-own-network`).
