"""Sparse codes from inputs: given ``x``, find ``z`` in a union of subspaces with ``W^T z`` near ``x``."""

from unconv.recover.activation import activation_recovery
from unconv.recover.cosamp import cosamp
from unconv.recover.fista import fista
from unconv.recover.htp import htp
from unconv.recover.iht import SparseRecovery, iht
from unconv.recover.niht import niht

__all__ = ["SparseRecovery", "activation_recovery", "cosamp", "fista", "htp", "iht", "niht"]
