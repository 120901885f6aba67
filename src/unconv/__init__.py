"""How much of the input is still in a layer of a CNN, and what does it look like?

``unconv.invert`` and ``unconv.report`` are the command line's verbs as functions; ``ConvOperator``, ``Code``, ``Stage``
and the sparsity models (``Pooled``, ``TopK``) are the nouns that they are made of. Nothing here imports torch before it
is used.
"""

from __future__ import annotations

import importlib
import inspect
from types import ModuleType
from typing import TYPE_CHECKING, Any

from unconv import invert as _invert
from unconv import report as _report

if TYPE_CHECKING:
    from unconv.adapters import to_deepinv, to_pylops, to_scipy
    from unconv.api import invert, report
    from unconv.errors import UnconvError, UsageError
    from unconv.operators import ConvOperator
    from unconv.results import InvertResult, ReportResult
    from unconv.solution import Solution
    from unconv.sparsity import Code, Pooled, SparsityModel, TopK
    from unconv.stage import Stage
    from unconv.stages import Stages, capture, find_stages
    from unconv.zoo import LoadedModel, load_model

__all__ = [
    "Code",
    "ConvOperator",
    "InvertResult",
    "LoadedModel",
    "Pooled",
    "ReportResult",
    "Solution",
    "SparsityModel",
    "Stage",
    "Stages",
    "TopK",
    "UnconvError",
    "UsageError",
    "capture",
    "find_stages",
    "invert",
    "load_model",
    "report",
    "to_deepinv",
    "to_pylops",
    "to_scipy",
]

_HOMES = {
    "adapters": ("to_deepinv", "to_pylops", "to_scipy"),
    "errors": ("UnconvError", "UsageError"),
    "operators": ("ConvOperator",),
    "results": ("InvertResult", "ReportResult"),
    "solution": ("Solution",),
    "sparsity": ("Code", "Pooled", "SparsityModel", "TopK"),
    "stage": ("Stage",),
    "stages": ("Stages", "capture", "find_stages"),
    "zoo": ("LoadedModel", "load_model"),
}
_HOME = {name: f"unconv.{home}" for home, names in _HOMES.items() for name in names}


class _CallablePackage(ModuleType):
    """A package that shares its name with a function, and can be called as that."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """See ``unconv.api``."""
        return self._function(*args, **kwargs)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self._function)

    @property
    def _function(self) -> Any:
        return getattr(importlib.import_module("unconv.api"), self.__name__.rpartition(".")[2])


# loaded here, so that importing unconv.invert.ways later does not put a plain module in the function's place
for _package in (_invert, _report):
    _package.__class__ = _CallablePackage


def __getattr__(name: str) -> Any:
    if name in _HOME:
        found = getattr(importlib.import_module(_HOME[name]), name)
        globals()[name] = found
        return found
    raise AttributeError(f"module 'unconv' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
