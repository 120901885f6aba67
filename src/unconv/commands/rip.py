"""``unconv rip``: the model-RIP of a stage's transposed convolution, sampled (Figure 3) and bracketed."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Any

from unconv.certify.supports import Region
from unconv.certify.upper_bound import Bracket, delta_bracket
from unconv.commands.loading import choose_stages, open_model, rows_of_text
from unconv.commands.options import Rip
from unconv.commands.progress import progress_bar, say_skipped
from unconv.commands.sparsity import measured_fractions
from unconv.conv_block import ConvBlock
from unconv.errors import UnconvError, UsageError
from unconv.evaluate.sparsity_stats import paper_k
from unconv.inversion.methods import coded_stage, fitting_region
from unconv.measure.rip import RatioSummary, sample_ratios
from unconv.operators import ConvOperator
from unconv.sparsity import Pooled, Window

LEGEND = """\
k active regions; p01, p50, p99: percentiles of ||W^T z|| / ||z|| over random codes z with k.
delta_k is the smallest d with (1 - d) ||z||^2 <= ||W^T z||^2 <= (1 + d) ||z||^2 for all such z: at least as large as a
found z shows, at most as large as proven, by the arguments under "how" (docs/certificates.md). From 1 on it promises
nothing."""


def run(options: Rip) -> tuple[dict[str, Any], str]:
    """Sample ratios ``||W^T z|| / ||z||`` of every stage, and bracket ``delta_k``.

    Args:
        options: The options.

    Returns:
        The JSON document and its text.
    """
    check(options)
    loaded, network = open_model(options)
    found = network.stages(loaded.example().shape[1:])
    names, _ = choose_stages(loaded, found, options.stages)
    fractions: dict[str, dict[str, float]] = {}
    if options.k is None:
        fractions, skipped = measured_fractions(loaded, network, options, options.region)
        say_skipped(skipped)
    stages = []
    with progress_bar(len(names), shown=sys.stderr.isatty()) as progress:
        for name in names:
            stages.append(measure(found.get(name), options, fractions))
            progress(f"bracketing {name}", 1)
    header = ("stage", "k", "p01", "p50", "p99", "delta at least", "at most", "how")
    rows = [(s["stage"], s["k"], *s["ratio"].values(), *s["delta"].values(), s["delta_how"]) for s in stages]
    return {"stages": stages}, f"{rows_of_text(header, rows)}\n{LEGEND}"


def check(options: Rip) -> None:
    """Refuse numbers that are out of range.

    Args:
        options: The options.

    Raises:
        UsageError: If one is.
    """
    if options.samples < 1 or options.region < 1 or (options.k is not None and options.k < 1):
        raise UsageError("--samples, --region and --k count things, so they are at least 1")
    if not 0 <= options.effort < math.inf:
        raise UsageError(f"--effort is {options.effort}; it multiplies work, so it is finite and at least 0")


def measure(stage: ConvBlock, options: Rip, fractions: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """Sample one stage, and bracket its ``delta_k``.

    Args:
        stage: A stage of the network.
        options: The options.
        fractions: From ``measured_fractions``; not read where the options give ``k``.

    Returns:
        What ``rip --json`` prints of a stage.

    Raises:
        UnconvError: If ``k`` is larger than the number of regions of the stage, or a filter that is to be bracketed is
            zero.
    """
    name, stage = stage.name, coded_stage(stage, "network", fitting_region(stage, options.region))
    region = stage.pooling if isinstance(stage.pooling, Window) else 1
    regions = paper_k(stage, 1.0)
    k = options.k or paper_k(stage, fractions[name]["pooled"])
    if k > regions:
        raise UnconvError(f"--k is {k}, but stage {name!r} has {regions} regions; give at most that")
    op = stage.operator
    if options.filters != "learned":
        op = op.normalised() if options.filters == "normalised" else op.gaussian(options.seed)
    ratios = sample_ratios(op, Pooled(region), k, options.samples, seed=options.seed, boundary=options.boundary)
    summary = RatioSummary.of(ratios)
    bracket = _bracket(name, op.to("cpu"), region, k, options) if options.effort > 0 else None
    return {
        "stage": name,
        "k": k,
        "ratio": {"p01": summary.p01, "p50": summary.p50, "p99": summary.p99},
        "delta": {
            "lower": summary.delta if bracket is None else min(max(summary.delta, bracket.lower), bracket.upper),
            "upper": None if bracket is None else bracket.upper,
        },
        "delta_how": "sampled" if bracket is None else bracket.how,
    }


def _bracket(name: str, operator: ConvOperator, region: Region, k: int, options: Rip) -> Bracket:
    try:
        return delta_bracket(operator, region, k, boundary=options.boundary, effort=options.effort, seed=options.seed)
    except UnconvError as error:
        raise UnconvError(f"stage {name!r}: {error}; name other --stages, or sample only with --effort 0") from None
