"""Operators with ``W^T`` given as a matrix, and the lasso of scikit-learn."""

import numpy as np
import torch
from sklearn.linear_model import Lasso

from unconv.testing import MatrixOperator


def of_columns(matrix):
    """The operator whose adjoint is the matrix."""
    return MatrixOperator(matrix.T.contiguous())


def lasso(matrix, x, weight):
    """The minimiser by scikit-learn, whose objective is ours divided by the number of rows."""
    model = Lasso(alpha=weight / len(x), fit_intercept=False, tol=1e-12, max_iter=100000)
    return torch.from_numpy(np.array(model.fit(matrix.numpy(), x.numpy()).coef_))
