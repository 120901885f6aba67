"""Table 3, activation space: one-step IHT with learned filters, with Gaussian filters, and random activations.

Macro layer ``i``: ``x`` is the output of the ``i``-th pooling, ``W`` the convolution that reads it, and
``x^ = W^T M_known(W x, k)`` with unit filters, 2x2 regions and ``k`` from the measured sparsity, rescaled to ``||x||``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from unconv.batched import column, norms, relative_norm
from unconv.decode.layer import paper_stage
from unconv.decode.transpose import transpose
from unconv.errors import UnconvError
from unconv.experiments.paper_values import SETTING, TABLE_3, TABLE_3_CHECKED
from unconv.experiments.subject import Subject, blocks
from unconv.measure.activity import Activity
from unconv.runs.network import CapturedStream
from unconv.runs.survey import paper_k
from unconv.sparsity import Pooled, Window
from unconv.stage import Stage

METHODS = ("learned", "random_filters", "random_activations")
BANKS = ("learned", "random_filters")
READINGS = {
    "measured": "magnitude pooling, k from the measured sparsity",
    "half": "magnitude pooling, k at half of the regions",
    "signed": "ReLU and signed pooling, k from the measured sparsity",
}


@dataclass
class MacroLayer:
    """One row of the table, as it fills up.

    Attributes:
        number: ``i`` of the pooling ``pool(i)`` whose output is recovered.
        reads: The stage that pools.
        stage: The stage that reads it.
        learned: Whether the weights reach that stage; otherwise only Gaussian filters are measured.
        errors: Relative error of each image, by method and reading.
    """

    number: int
    reads: str
    stage: str
    learned: bool
    errors: dict[tuple[str, str], list[float]] = field(default_factory=dict)

    def add(self, method: str, reading: str, errors: Tensor) -> None:
        """Note the errors of some images.

        Args:
            method: One of ``METHODS``.
            reading: One of ``READINGS``.
            errors: Shape ``(N,)``.
        """
        self.errors.setdefault((method, reading), []).extend(errors.tolist())


def macro_layers(subject: Subject) -> list[MacroLayer]:
    """The stages that read a pooled stage's output.

    Args:
        subject: The network.

    Returns:
        Macro layers whose input can be computed, in execution order.
    """
    numbering = blocks(subject.stages)
    found = []
    for stage in subject.stages:
        if stage.source in subject.names and subject.stages.get(stage.source).pooling is not None:
            number = numbering[stage.source][0]
            found.append(MacroLayer(number, stage.source, stage.name, stage.name in subject.names))
    return found


def run(subject: Subject) -> dict[str, Any]:
    """Measure the sparsity, then recover every macro layer over the images.

    Args:
        subject: The network and the images.

    Returns:
        ``name``, ``paper``, ``ours`` and ``notes``, fit for JSON.

    Raises:
        UnconvError: If the network has no macro layer.
    """
    layers = macro_layers(subject)
    if not layers:
        raise UnconvError(
            f"no stage of {subject.model} that the weights reach reads the output of a pooled stage; "
            "Table 3 needs a network with one, such as vgg16"
        )
    stream = CapturedStream(subject.network, subject.images, lambda _: [layer.stage for layer in layers])
    shares = _shares(subject, stream, layers)
    generator = torch.Generator().manual_seed(subject.seed)
    for captured in stream:
        for layer in layers:
            x = captured.inputs[layer.stage]
            for bank in BANKS if layer.learned else BANKS[1:]:
                stage = subject.pooled(captured.stages.get(layer.stage))
                k = paper_k(stage, shares[layer.stage])
                stage = paper_stage(stage) if bank == "learned" else stage.with_gaussian(subject.seed)
                for reading, errors in one_step_errors(stage, x, k).items():
                    layer.add(bank, reading, errors)
            noise = torch.randn(x.shape, generator=generator).to(x)
            layer.add(
                "random_activations", "measured", relative_norm(noise * column(norms(x) / norms(noise), x) - x, x)
            )
            subject.progress(f"macro layer {layer.number}", len(x))
    return {
        "name": "table3",
        "paper": {"activation space": TABLE_3, "checked": TABLE_3_CHECKED},
        "ours": {str(layer.number): _document(subject, layer, shares[layer.stage]) for layer in layers},
        "notes": _notes(subject, layers),
    }


def one_step_errors(stage: Stage, x: Tensor, k: int) -> dict[str, Tensor]:
    """Relative errors of one-step IHT under each reading of the table's setting.

    Args:
        stage: The stage with its regions; its filters are used as they are, without bias.
        x: Its true inputs. Shape ``(N, M, *spatial)``.
        k: Number of regions kept where the sparsity decides.

    Returns:
        Shape ``(N,)`` per name in ``READINGS``.
    """
    regions = stage.pooling if isinstance(stage.pooling, Window) else 1
    h = stage.operator.forward(x)
    codes = {
        "measured": Pooled(regions, k).project(h),
        "half": Pooled(regions, paper_k(stage, 0.5)).project(h),
        "signed": Pooled(regions, k, signed=True).project(h.relu()),
    }
    norm = norms(x)
    return {name: relative_norm(transpose(stage.operator, code, norm=norm) - x, x) for name, code in codes.items()}


def _shares(subject: Subject, stream: CapturedStream, layers: Sequence[MacroLayer]) -> dict[str, float]:
    """Share of regions that are not zero behind the network's own bias and activation, by stage."""
    activity = Activity()
    for captured in stream:
        for layer in layers:
            stage = subject.pooled(captured.stages.get(layer.stage))
            stage = stage if layer.learned else stage.with_gaussian(subject.seed)
            activated = stage.activate(stage.preactivation(captured.inputs[layer.stage]))
            activity.update(layer.stage, activated, stage.pool(activated).values)
            subject.progress(f"counting macro layer {layer.number}", len(activated))
    return {name: activity[name].pooled.fraction for name in activity}


def _document(subject: Subject, layer: MacroLayer, share: float) -> dict[str, Any]:
    stage = subject.pooled(subject.stages.get(layer.stage))
    means = {key: sum(errors) / len(errors) for key, errors in layer.errors.items()}
    spread = {
        method: _deviation(layer.errors[method, "measured"])
        for method in METHODS
        if len(layer.errors.get((method, "measured"), ())) > 1
    }
    return {
        "reads": layer.reads,
        "stage": layer.stage,
        "images": len(layer.errors["random_activations", "measured"]),
        "share": share,
        "k": paper_k(stage, share),
        "regions": paper_k(stage, 1.0),
        **{method: means.get((method, "measured")) for method in METHODS},
        "standard_deviation": spread,
        "readings": {
            reading: {bank: means[bank, reading] for bank in BANKS if (bank, reading) in means} for reading in READINGS
        },
    }


def _deviation(errors: Sequence[float]) -> float:
    mean = sum(errors) / len(errors)
    return math.sqrt(sum((error - mean) ** 2 for error in errors) / (len(errors) - 1))


def _notes(subject: Subject, layers: Sequence[MacroLayer]) -> list[str]:
    notes = [
        f"Ours: {subject.model}, mean over images; the paper: {SETTING}. Activation space only.",
        "k is the measured share of regions that are not zero after bias, ReLU and pooling, times their number. "
        "'readings' holds the same with k at half of the regions, and with ReLU and signed pooling.",
        "Learned filters are scaled to unit norm, Gaussian ones have variance 1 / (M l^2); the transposed convolution "
        "is cropped to x, and x^ rescaled to the norm of x.",
    ]
    for layer in layers:
        if not layer.learned:
            notes.append(
                f"The weights end before {layer.stage}: macro layer {layer.number} has Gaussian filters only, and k "
                "from their own sparsity."
            )
        own = subject.stages.get(layer.stage).pooling
        if own is not None:
            overlap = ", overlapping," if isinstance(own, Window) and own.overlapping else ""
            notes.append(f"{layer.stage} pools itself: its own regions{overlap} are used as they are.")
    return notes


def work(subject: Subject) -> int:
    """Units of work, for a progress bar.

    Args:
        subject: The network and the images.

    Returns:
        The number.
    """
    return 2 * len(macro_layers(subject)) * len(subject.images)


def table(result: dict[str, Any]) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
    """Ours beside the paper's.

    Args:
        result: What ``run`` returned.

    Returns:
        Header and rows.
    """
    header = (
        "macro layer",
        "stage",
        "k",
        *(m.replace("_", " ") for m in METHODS),
        *(f"paper, {m.replace('_', ' ')}" for m in METHODS),
    )
    rows = []
    for number, row in result["ours"].items():
        theirs = result["paper"]["activation space"].get(number, {})
        rows.append((number, row["stage"], row["k"], *(row[m] for m in METHODS), *(theirs.get(m) for m in METHODS)))
        for reading in ("half", "signed"):
            found = row["readings"][reading]
            rows.append((number, READINGS[reading], None, *(found.get(b) for b in BANKS), *[None] * 4))
    return header, rows
