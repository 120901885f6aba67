"""
Invert your own ResNet
======================

Any ``nn.Module`` goes in as it is; nothing has to be registered or rewritten. Here a ResNet-18 without trained
weights, so that the example needs no download. With weights of your own::

    net = torchvision.models.resnet18(weights=None)
    net.load_state_dict(torch.load("my-resnet18.pth", weights_only=True))

or, on the command line, ``unconv report resnet18 --weights my-resnet18.pth --images photos/``.
"""

# %%
# How images become tensors is said by ``preprocess`` (or ``size``, ``mean`` and ``std``); its normalisation is
# undone for PSNR and pictures where it is one of torchvision's.

import matplotlib.pyplot as plt
import torch
import torchvision
from torchvision.transforms import v2

import unconv
from unconv.images import read_image, sample_photographs

torch.manual_seed(0)
net = torchvision.models.resnet18(weights=None).eval()
preprocess = v2.Compose([
    v2.Resize(64),
    v2.CenterCrop(64),
    v2.ToImage(),
    v2.ToDtype(torch.float32, scale=True),
    v2.Normalize(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
])
photographs = sample_photographs()

# %%
# A network fresh from its constructor has no biases and batch norms that do nothing, so that an image of zeros switches
# every unit off, and Gauss-Newton, which starts there, has no derivative to follow. One pass over photographs gives the
# batch norms statistics, as training does. A trained network needs none of this.

for module in net.modules():
    if isinstance(module, torch.nn.BatchNorm2d):
        module.momentum = None  # the average over all that has been seen
with torch.no_grad():
    net.train()(torch.stack([preprocess(read_image(path)) for path in photographs]))
net.eval()

# %%
# What is in it?
# --------------
#
# The graph is traced, batch norms are folded, and where a residual sum comes between, a stage says that it reads
# *something that is not the output of one stage*.

stages = unconv.find_conv_blocks(net, torch.zeros(1, 3, 64, 64))
print(f"{len(stages)} stages, traced by {stages.traced_by}; {len(stages.skipped)} left out")
stages.get("conv1")

# %%
# From a block back to the photograph
# -----------------------------------
#
# Gauss-Newton differentiates the network itself, so residual sums need no special case. ``"none"``: only the
# features are known. ``"gates"``: also which units were on and which places won, so that the rest is linear.

ways = [("conv1", "none"), ("layer1.0.conv2", "none"), ("layer1.0.conv2", "gates"), ("layer2.0.conv1", "gates")]
found = [
    unconv.invert(
        net,
        layer,
        photographs[:2],
        start="image",
        side_info=known,
        preprocess=preprocess,
        effort=0.15,
        progress=False,
    )
    for layer, known in ways
]

figure, panels = plt.subplots(2, 1 + len(ways), figsize=(11, 5.2), layout="constrained")
for row in range(2):
    panels[row, 0].imshow(found[0].pictures[row][0].permute(1, 2, 0).clip(0, 1))
    for panel, result in zip(panels[row, 1:], found, strict=True):
        panel.imshow(result.pictures[row][1].permute(1, 2, 0).clip(0, 1))
        panel.set_xlabel(f"error {result.relative_error[row]:.2f}, {result.psnr[row]:.0f} dB")
for panel, title in zip(panels[0], ["the photograph", *(f"{layer}, {known}" for layer, known in ways)], strict=True):
    panel.set_title(title, fontsize=9)
for panel in panels.flat:
    panel.set_xticks([])
    panel.set_yticks([])

# %%
# The weights here are random, so this says what the *architecture* keeps: strides and poolings leave fewer numbers
# than the image has, and the picture loses detail where they do.

pixels = 3 * 64 * 64
for stage in stages:
    if stage.name in {layer for layer, _ in ways}:
        values = torch.tensor(stage.code_shape).prod().item()
        print(f"{stage.name:16} {values:6} values for {pixels} pixels")

# %%
# Sparsity and coherence
# ----------------------
#
# The measures take a stage too. Coherence is the largest cosine between two filters. Here both columns are random;
# a trained network's filters are far more alike (Table 4 on the page :doc:`/reproduction`).

from unconv.measure.coherence import coherence_pair

for name in ("conv1", "layer1.0.conv1", "layer2.0.conv1"):
    pair = coherence_pair(stages.get(name).operator.weight, seed=0)
    print(f"{name:16} these {pair.learned.absolute:.2f}, Gaussian {pair.random.absolute:.2f}")
