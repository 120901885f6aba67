"""
Choose a split point by leakage
===============================

A device computes the first layers of a network and sends the features to a server. How much of the image does it send
with them? This example audits three split points of the bundled network with two attackers:

* a **training-free** one, Gauss-Newton on the network itself, that knows the weights and the features, and perhaps
  the switches of the poolings or the on/off pattern of the units;
* a **trained** one, a what-where decoder that learned from CIFAR-10 images for a few hundred steps, and knows the
  switches.
"""

# %%
# The training-free attacker
# --------------------------
#
# Two photographs at 32x32 pixels. ``effort`` below 1 stops the attack early: a stronger attacker gets more.

import matplotlib.pyplot as plt

import unconv
from unconv.images import psnr

splits = ["features.3", "features.10", "features.17"]
knowledge = ["none", "switches", "gates"]
attacks = {
    (split, known): unconv.invert(
        "cifar-vgg",
        split,
        start="image",
        side_info=known,
        size=32,
        limit=2,
        effort=0.3,
        progress=False,
    )
    for split in splits
    for known in knowledge
}

# %%
# The trained attacker
# --------------------
#
# Decoders of two of the split points are committed with the repository (``unconv train-decoder`` makes one). They
# name the encoder that they belong to, and are refused for any other.

trained = {
    split: unconv.invert("cifar-vgg", split, method="decoder", size=32, limit=2, progress=False)
    for split in ("features.3", "features.10")
}

# %%
# What they get
# -------------

figure, panels = plt.subplots(len(splits), 5, figsize=(9, 6), layout="constrained")
titles = ["the photograph", *(f"features, {known}" if known != "none" else "features only" for known in knowledge)]
for row, split in zip(panels, splits, strict=True):
    shown = [(attacks[split, "none"].pictures[0][0], "")]
    for known in knowledge:
        attack = attacks[split, known]
        shown.append((attack.pictures[0][1], f"{attack.psnr[0]:.0f} dB, error {attack.relative_error[0]:.2f}"))
    if split in trained:
        attack = trained[split]
        shown.append((attack.pictures[0][1], f"{attack.psnr[0]:.0f} dB, error {attack.relative_error[0]:.2f}"))
    for panel, (picture, words) in zip(row, shown, strict=False):
        panel.imshow(picture.permute(1, 2, 0).clip(0, 1))
        panel.set_xlabel(words, fontsize=9)
    row[0].set_ylabel(split)
    for panel in row[len(shown) :]:
        panel.set_axis_off()
        panel.text(0.5, 0.5, "no decoder\nwas trained", ha="center", va="center", transform=panel.transAxes)
for panel, title in zip(panels[0], [*titles, "trained, switches"], strict=True):
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
    panel.plot(splits, means, marker + "-", label=f"Gauss-Newton, {known if known != 'none' else 'features only'}")
means = [attack.psnr.nanmean().item() for attack in trained.values()]
panel.plot(list(trained), means, "*--", markersize=10, label="trained decoder, switches")
truths = [pair[0] for pair in attacks["features.3", "none"].pictures]
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
# * An attack that succeeds is a proof of leakage: behind ``features.3`` the features alone give the picture back,
#   whatever the intention was. No attacker needs training data, only the weights.
# * Switches and gates are content, not bookkeeping. Behind ``features.10`` the switches alone are worth seven
#   decibels and more to the same attacker; do not send them along, for an unpooling on the server, say.
#
# What a defender **cannot** conclude:
#
# * A high error is the failure of *this* attack with *this* effort on *these* two images. It is an upper bound on
#   nothing: another start, a prior on images or a decoder trained on the right data may do better. The numbers show
#   it: behind ``features.17`` the attacker who knows the switches does *worse* on one photograph than the one who
#   has the features alone, though more knowledge cannot hurt: both end at an image with nearly these features, and
#   it is another one.
# * An attack that ends below the dotted line has found less than the mean colour tells. That is no certificate
#   either.
# * PSNR says nothing about what is recognisable. A face can be known at 15 dB, and a number plate lost at 25.
# * Two images are an illustration; ``unconv invert cifar-vgg --images FOLDER --from image`` gives the table over a
#   folder.
#
# ``certify`` (:doc:`/certificates`) counts the directions of the image that no equation sees; only where that
# number is large, and the side information known, is something *provably* not in the features.
