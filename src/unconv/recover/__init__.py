"""Sparse codes from inputs: given ``x``, find ``z`` in a union of subspaces with ``W^T z`` near ``x``."""

from unconv.recover.iht import SparseRecovery, iht

__all__ = ["SparseRecovery", "iht"]
