"""Our operators as those of SciPy, PyLops and deepinv, so that their solvers and tests run on them."""

from __future__ import annotations

import importlib
import math
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

    flat = _Flat(operator)
    directions: dict[str, Any] = {"matvec": flat.forward, "rmatvec": flat.adjoint}
    directions |= {"matmat": flat.forward, "rmatmat": flat.adjoint}
    return ScipyOperator(shape=flat.shape, dtype=flat.dtype, **directions)


def to_pylops(operator: LinearOperator) -> Any:
    """An operator for PyLops' solvers, its shapes as ``dims`` and ``dimsd``; UnconvError without PyLops."""
    pylops = _package("pylops")
    flat = _Flat(operator)
    made = pylops.LinearOperator(dtype=flat.dtype, dims=operator.input_shape, dimsd=operator.output_shape)
    made._matvec = lambda x: flat.forward(np.ravel(x))
    made._rmatvec = lambda z: flat.adjoint(np.ravel(z))
    return made


def to_deepinv(operator: LinearOperator) -> Any:
    """A ``LinearPhysics`` without noise, ``A`` being ``forward``, for deepinv; UnconvError without deepinv."""
    physics = _package("deepinv.physics")
    _, device = _kind(operator)

    def forward(x: Tensor, **_: object) -> Tensor:
        return operator.forward(x)

    def adjoint(z: Tensor, **_: object) -> Tensor:
        return operator.adjoint(z)

    return physics.LinearPhysics(A=forward, A_adjoint=adjoint, img_size=operator.input_shape, device=device)


class _Flat:
    """An operator on flat NumPy vectors, or on matrices with one input per column."""

    def __init__(self, operator: LinearOperator) -> None:
        self.operator = operator
        self.shape = (math.prod(operator.output_shape), math.prod(operator.input_shape))
        self.torch_dtype, self.device = _kind(operator)
        self.dtype = torch.zeros((), dtype=self.torch_dtype).numpy().dtype

    def forward(self, x: np.ndarray) -> np.ndarray:
        return self._flat(self.operator.forward(self._batch(x, self.operator.input_shape)), x)

    def adjoint(self, z: np.ndarray) -> np.ndarray:
        return self._flat(self.operator.adjoint(self._batch(z, self.operator.output_shape)), z)

    def _batch(self, columns: np.ndarray, shape: tuple[int, ...]) -> Tensor:
        rows = np.ascontiguousarray(columns.reshape(math.prod(shape), -1).T)
        return torch.from_numpy(rows).to(self.device, self.torch_dtype).reshape(-1, *shape)

    @staticmethod
    def _flat(batch: Tensor, like: np.ndarray) -> np.ndarray:
        columns = batch.flatten(1).T.cpu().numpy()
        return columns if like.ndim == 2 else columns.ravel()


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
