"""How much of the input is still in a layer of a CNN, and what does it look like?

``unconv.invert``, ``unconv.report``, ``unconv.audit`` and ``unconv.layers`` are the command line's verbs as functions
(``unconv.api`` has the others), ``unconv.linear`` gives the linear decoders of layers; ``ConvOperator``, ``Code``,
``ConvBlock`` and the sparsity models (``Pooled``, ``TopK``) are the nouns of the theory, whose functions are in modules
of their own: ``unconv.measure.coherence.coherence``, ``unconv.certify.bracket.delta_bracket``, ``unconv.recover.iht``.
Nothing here imports torch before it is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unconv.adapters import to_deepinv, to_pylops, to_scipy
    from unconv.api_invert import invert, layers, linear
    from unconv.api_report import audit, report
    from unconv.api_unseen import leakage, metamers, uniqueness
    from unconv.block_extraction import find_conv_blocks
    from unconv.conv_block import ConvBlock, ConvBlocks
    from unconv.errors import UnconvError, UsageError
    from unconv.inversion.linear import LinearDecoder
    from unconv.models import LoadedModel, load_model
    from unconv.operators import ConvOperator
    from unconv.results import InvertResult, ReportResult
    from unconv.solvers.solution import Solution
    from unconv.sparsity import Code, Pooled, SparsityModel, TopK
    from unconv.tracing import Layers, capture, capture_inputs
    from unconv.unseen.leakage import Leakage
    from unconv.unseen.metamers import Metamer
    from unconv.unseen.uniqueness import Uniqueness

__all__ = [
    "Code",
    "ConvBlock",
    "ConvBlocks",
    "ConvOperator",
    "InvertResult",
    "Layers",
    "Leakage",
    "LinearDecoder",
    "LoadedModel",
    "Metamer",
    "Pooled",
    "ReportResult",
    "Solution",
    "SparsityModel",
    "TopK",
    "UnconvError",
    "Uniqueness",
    "UsageError",
    "audit",
    "capture",
    "capture_inputs",
    "find_conv_blocks",
    "invert",
    "layers",
    "leakage",
    "linear",
    "load_model",
    "metamers",
    "report",
    "to_deepinv",
    "to_pylops",
    "to_scipy",
    "uniqueness",
]

_HOMES = {
    "api_invert": ("invert", "layers", "linear"),
    "inversion.linear": ("LinearDecoder",),
    "api_report": ("audit", "report"),
    "api_unseen": ("leakage", "metamers", "uniqueness"),
    "adapters": ("to_deepinv", "to_pylops", "to_scipy"),
    "errors": ("UnconvError", "UsageError"),
    "operators": ("ConvOperator",),
    "results": ("InvertResult", "ReportResult"),
    "solvers.solution": ("Solution",),
    "sparsity": ("Code", "Pooled", "SparsityModel", "TopK"),
    "block_extraction": ("find_conv_blocks",),
    "conv_block": ("ConvBlock", "ConvBlocks"),
    "tracing": ("Layers", "capture", "capture_inputs"),
    "unseen.leakage": ("Leakage",),
    "unseen.metamers": ("Metamer",),
    "unseen.uniqueness": ("Uniqueness",),
    "models": ("LoadedModel", "load_model"),
}
_HOME = {name: f"unconv.{home}" for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        found = getattr(importlib.import_module(_HOME[name]), name)
        globals()[name] = found
        return found
    raise AttributeError(f"module 'unconv' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
