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
from unconv.images import sample_photographs

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
# What is in it?
# --------------
#
# Every module whose output depends on the image is a layer: convolutions and batch norms, the sums of residual blocks
# (``layer1.0``), whole stages of them (``layer1``), the pooled embedding (``avgpool``) and the logits.

found = unconv.layers(net, torch.zeros(1, 3, 64, 64))
for name in ("conv1", "maxpool", "layer1", "layer2", "avgpool", "fc"):
    layer = found.get(name)
    print(f"{name:10} {layer.kind:22} {layer.shape}")

# %%
# From a layer back to the photograph
# -----------------------------------
#
# The gradient is that of the network itself, so residual sums need no special case. Only the features are known here;
# ``side_info="gates"`` would add on which branch each ReLU was, and where each maximum stood.

layers = ["layer1", "layer2"]
results = [unconv.invert(net, layer, photographs[:2], preprocess=preprocess, passes=20) for layer in layers]

figure, panels = plt.subplots(2, 1 + len(layers), figsize=(7, 5.2), layout="constrained")
for row in range(2):
    panels[row, 0].imshow(results[0].pictures[row][0].permute(1, 2, 0).clip(0, 1))
    for panel, result in zip(panels[row, 1:], results, strict=True):
        panel.imshow(result.pictures[row][1].permute(1, 2, 0).clip(0, 1))
        panel.set_xlabel(f"error {result.relative_error[row]:.2f}, {result.psnr[row]:.0f} dB")
for panel, title in zip(panels[0], ["the photograph", *layers], strict=True):
    panel.set_title(title, fontsize=9)
for panel in panels.flat:
    panel.set_xticks([])
    panel.set_yticks([])

# %%
# The weights here are random, so this says what the *architecture* keeps: strides and poolings leave fewer numbers
# than the image has, and the picture loses detail where they do. And twenty passes are few: what a longer run would
# still find is not lost.

# %%
# Sparsity and coherence
# ----------------------
#
# The paper's measures are about conv blocks. Coherence is the largest cosine between two filters. Here both columns are
# random; a trained network's filters are far more alike (Table 4 on the page :doc:`/reproduction`).

from unconv.measure.coherence import coherence

blocks = unconv.find_conv_blocks(net, torch.zeros(1, 3, 64, 64))
for name in ("conv1", "layer1.0.conv1", "layer2.0.conv1"):
    operator = blocks.get(name).operator
    these, gaussian = coherence(operator), coherence(operator.gaussian(seed=0))
    print(f"{name:16} these {these.absolute:.2f}, Gaussian {gaussian.absolute:.2f}")
