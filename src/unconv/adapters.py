"""Our operators as those of SciPy, PyLops and deepinv, so that their solvers and tests run on them."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from unconv.errors import UnconvError
from unconv.operators import LinearOperator

if TYPE_CHECKING:
    import scipy.sparse.linalg


def to_scipy(operator: LinearOperator) -> scipy.sparse.linalg.LinearOperator:
    """An operator on flat NumPy vectors, for ``scipy.sparse.linalg`` (``lsqr``, ``svds``, ``cg``).

    Args:
        operator: Any linear operator of ours.

    Returns:
        A SciPy operator of shape ``(prod(output_shape), prod(input_shape))``. Several columns go through as one
        batch.

    Example:
        >>> import torch
        >>> from scipy.sparse.linalg import svds
        >>> from unconv import ConvOperator, to_scipy
        >>> W = ConvOperator(torch.tensor([[[1.0, 1.0]]], dtype=torch.float64), (1, 3))
        >>> singular_value = svds(to_scipy(W), k=1, return_singular_vectors=False)
        >>> round(float(singular_value[0]) ** 2, 6)
        3.0
    """
    from scipy.sparse.linalg import LinearOperator as ScipyOperator

    dtype, device = _kind(operator)
    m, n = math.prod(operator.output_shape), math.prod(operator.input_shape)

    def on_columns(map_batch: Callable[[Tensor], Tensor], shape: Sequence[int]) -> Callable[[np.ndarray], np.ndarray]:
        def apply(columns: np.ndarray) -> np.ndarray:
            rows = np.ascontiguousarray(columns.reshape(math.prod(shape), -1).T)
            images = map_batch(torch.from_numpy(rows).to(device, dtype).reshape(-1, *shape))
            return images.flatten(1).T.cpu().numpy()

        return apply

    forward = on_columns(operator.forward, operator.input_shape)
    adjoint = on_columns(operator.adjoint, operator.output_shape)
    directions: dict[str, Any] = {"matvec": forward, "rmatvec": adjoint, "matmat": forward, "rmatmat": adjoint}
    return ScipyOperator(shape=(m, n), dtype=torch.zeros((), dtype=dtype).numpy().dtype, **directions)


def to_pylops(operator: LinearOperator) -> Any:
    """An operator for PyLops' solvers, its shapes as ``dims`` and ``dimsd``; UnconvError without PyLops."""
    pylops = _package("pylops")
    return pylops.LinearOperator(to_scipy(operator), dims=operator.input_shape, dimsd=operator.output_shape)


def to_deepinv(operator: LinearOperator) -> Any:
    """A ``LinearPhysics`` without noise, ``A`` being ``forward``, for deepinv; UnconvError without deepinv."""
    physics = _package("deepinv.physics")
    _, device = _kind(operator)

    def forward(x: Tensor, **_: object) -> Tensor:
        return operator.forward(x)

    def adjoint(z: Tensor, **_: object) -> Tensor:
        return operator.adjoint(z)

    return physics.LinearPhysics(A=forward, A_adjoint=adjoint, img_size=operator.input_shape, device=device)


def _kind(operator: LinearOperator) -> tuple[torch.dtype, torch.device]:
    # the protocol promises neither; an operator without them computes in float64 on the CPU
    dtype = getattr(operator, "dtype", torch.float64)
    return dtype, torch.device(getattr(operator, "device", "cpu"))


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        root = name.partition(".")[0]
        if isinstance(error, ModuleNotFoundError) and error.name == root:
            raise UnconvError(f"{root} is not installed; get it with: pip install 'unconv[adapters]'") from None
        raise UnconvError(f"{root} cannot be imported: {' '.join(str(error).split())}") from error
