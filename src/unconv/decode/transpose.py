"""The paper's decoder: unpooling and the transposed convolution."""

from __future__ import annotations

import torch
from torch import Tensor

from unconv.errors import UsageError
from unconv.linalg import column, norms, tiny
from unconv.operators import LinearOperator
from unconv.sparsity import Code


def transpose(operator: LinearOperator, code: Code, *, norm: Tensor | None = None) -> Tensor:
    """``W^T`` of the unpooled code (paper, section 1), ``(N, *input_shape)``, rescaled to norms ``(N,)``.

    Table 3 uses the true ``||x||``, which the code does not tell, so its error is one of direction only.
    """
    estimate = operator.adjoint(code.dense())
    if norm is None:
        return estimate
    size = norms(estimate)
    if norm.shape != size.shape:
        raise UsageError(f"norm has shape {tuple(norm.shape)}; expected {tuple(size.shape)}, one number per input")
    # a code of zeros has no direction to be rescaled; it stays the estimate zero
    return estimate * column(torch.where(size > tiny(size), norm / size, 0), estimate)
