"""The model-RIP constant by plain itertools and numpy."""

from itertools import combinations

import numpy as np


def brute_force(matrix, labels, size, most):
    """The constant over all supports of some size with so many of one block (-1: none), and the number of supports."""
    gram, worst, count = (matrix @ matrix.T).numpy(), 0.0, 0
    inside = [i for i, label in enumerate(labels) if label >= 0]
    for support in combinations(inside, size):
        if max(sum(labels[i] == block for i in support) for block in set(labels)) <= most:
            values = np.linalg.eigvalsh(gram[np.ix_(support, support)])
            worst, count = max(worst, values[-1] - 1, 1 - values[0]), count + 1
    return worst, count
