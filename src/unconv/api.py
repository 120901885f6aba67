"""What ``import unconv`` offers, in one place: the verbs of the command line as plain functions, and ``linear``."""

from unconv.api_blocks import coherence, rip, sparsity, train_decoder
from unconv.api_invert import invert, layers, linear
from unconv.api_options import ModelOptions, ReportOptions, RunOptions
from unconv.api_report import audit, report

__all__ = [
    "ModelOptions",
    "ReportOptions",
    "RunOptions",
    "audit",
    "coherence",
    "invert",
    "layers",
    "linear",
    "report",
    "rip",
    "sparsity",
    "train_decoder",
]
