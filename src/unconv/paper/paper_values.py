"""The paper's numbers (Gilbert et al., IJCAI 2017), as printed, and those that were checked independently."""

from __future__ import annotations

from typing import Any

MODEL = "vgg16"
WEIGHTS = {"vgg16": "IMAGENET1K_FEATURES", "alexnet": "IMAGENET1K_V1"}
SETTING = "VGG-16 (Caffe's weights), ILSVRC-2012 validation set, 224x224"

# percent of CIFAR-10's test set classified rightly, by number of blocks
TABLE_1 = {
    "random": {"1": 66.5, "2": 74.6, "3": 74.8},
    "learned": {"1": 68.1, "2": 83.3, "3": 89.3},
}
TABLE_1_SEARCH = {"sizes": [3, 5, 7], "channels": [64, 128, 256, 1024, 2048]}

# percent of non-zeros: c11 is conv(1,1) after ReLU, p1 the pooling behind block 1
TABLE_2 = {
    "c11": 49.1, "c12": 69.7, "p1": 80.8,
    "c21": 67.4, "c22": 49.7, "p2": 70.7,
    "c31": 53.4, "c32": 51.9, "c33": 28.7, "p3": 45.9,
    "c41": 35.6, "c42": 29.6, "c43": 12.6, "p4": 23.1,
    "c51": 23.9, "c52": 20.6, "c53": 7.3, "p5": 13.1,
}  # fmt: skip

# relative errors in activation space, by macro layer
TABLE_3 = {
    "1": {"learned": 0.895, "random_filters": 0.872, "random_activations": 1.414},
    "2": {"learned": 0.961, "random_filters": 0.926, "random_activations": 1.414},
    "3": {"learned": 0.912, "random_filters": 0.862, "random_activations": 1.414},
    "4": {"learned": 1.051, "random_filters": 0.992, "random_activations": 1.414},
}
# relative errors in image space: the same activations put through one decoding network
TABLE_3_IMAGE = {
    "1": {"learned": 0.423, "random_filters": 0.380, "random_activations": 0.610},
    "2": {"learned": 0.692, "random_filters": 0.438, "random_activations": 0.864},
    "3": {"learned": 0.326, "random_filters": 0.345, "random_activations": 0.652},
    "4": {"learned": 0.379, "random_filters": 0.357, "random_activations": 0.436},
}

# coherence, by the label that the paper prints
TABLE_4 = {
    "c11": {"learned": 0.9427, "random": 0.6701},
    "c12": {"learned": 0.7340, "random": 0.1218},
    "c21": {"learned": 0.6435, "random": 0.1546},
    "c22": {"learned": 0.7465, "random": 0.1053},
    "c31": {"learned": 0.5838, "random": 0.1099},
    "c32": {"learned": 0.4844, "random": 0.0895},
    "c33": {"learned": 0.5194, "random": 0.0802},
    "c41": {"learned": 0.4596, "random": 0.0920},
    "c42": {"learned": 0.4574, "random": 0.0619},
    "c43": {"learned": 0.4043, "random": 0.0617},
    "c51": {"learned": 0.4099, "random": 0.0696},
    "c52": {"learned": 0.4099, "random": 0.0674},
    "c53": {"learned": 0.4046, "random": 0.0674},
}

FIGURE_2 = {
    "|W'z|/|z|": {"range": [0.91, 1.09], "centre": 1.0},
    "|WW'z|/|z|": {"centre": 1.0},
    "|x^-x|/|x|": {"mode": [0.1, 0.2], "below": 0.5},
}
FIGURE_2_CHECKED: dict[str, dict[str, float]] = {
    "ratio": {"p01": 0.93, "p99": 1.08},
    "gram_on_support": {"p01": 0.87, "p99": 1.17},
    "gram_everywhere": {"p50": 1.96},
    "error_true_switches": {"p50": 0.14},
    "error_known_switches": {"p50": 0.30},
    "error_fixed_switches": {"p50": 1.44},
}

FIGURE_3: dict[str, Any] = {
    "stage": "conv(5,2) in the paper, conv(5,1) in its slides",
    "random codes": {"range": [0.98, 1.03], "centre": 1.0},
    "codes before ReLU": {"centre": [0.95, 1.05], "slides": 0.99},
    "codes after ReLU": {"centre": [0.95, 1.05], "slides": 0.95},
}
FIGURE_3_CHECKED = {
    "gaussian, full": {"mean": 1.000, "std": 0.002},
    "gaussian, cropped": {"mean": 0.951},
}
