"""Table 3: one-step IHT with learned filters, with Gaussian filters, and random activations, in two spaces.

Macro layer ``i``: ``x`` is the output of the ``i``-th pooling, ``W`` the convolution that reads it, and
``x^ = W^T M_known(W x, k)`` with unit filters, 2x2 regions and ``k`` from the measured sparsity, rescaled to ``||x||``.
In image space both go through one trained what-where decoder, with the switches of the true image.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from unconv.conv_block import ConvBlock
from unconv.decode.block_input import paper_stage
from unconv.decode.transpose import transpose
from unconv.decode.what_where import encode_chain
from unconv.errors import UnconvError
from unconv.evaluate.decoders import OpenedDecoder, decoder_chain
from unconv.evaluate.network import Captured, CapturedStream
from unconv.evaluate.sparsity_stats import paper_k
from unconv.inversion.methods import decoder_missing
from unconv.linalg import column, norms, relative_norm
from unconv.measure.sparsity import SparsityStatistics
from unconv.paper.experiment_context import Subject, blocks
from unconv.paper.paper_values import SETTING, TABLE_3, TABLE_3_CHECKED, TABLE_3_IMAGE
from unconv.sparsity import Pooled, Window

METHODS = ("learned", "random_filters", "random_activations")
TRUE = "true_activations"
COMPARED = {
    "decoded": "decoded true activation",
    "decoded_in_pixels": "the same in pixels, mean not subtracted",
    "original": "original image",
}
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
        decoded: Relative error of each decoded image, by method and what it is compared with, a key of ``COMPARED``.
    """

    number: int
    reads: str
    stage: str
    learned: bool
    errors: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    decoded: dict[tuple[str, str], list[float]] = field(default_factory=dict)

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


def run(subject: Subject, decoders: Mapping[str, OpenedDecoder] | None = None) -> dict[str, Any]:
    """Measure the sparsity, then recover every macro layer over the images.

    Args:
        subject: The network and the images.
        decoders: Decoders by the stage that they decode, for image space; layers without one have none.

    Returns:
        ``name``, ``paper``, ``ours`` and ``notes``, fit for JSON.
    """
    decoders = decoders or {}
    layers = macro_layers(subject)
    stream = captured_macro_layers(subject, layers)
    shares = measured_shares(subject, stream, layers)
    generator = torch.Generator().manual_seed(subject.seed)
    for captured in stream:
        for layer in layers:
            x = captured.inputs[layer.stage]
            estimates = macro_estimates(subject, captured, layer, shares[layer.stage], generator)
            for (method, reading), estimate in estimates.items():
                layer.add(method, reading, relative_norm(estimate - x, x))
            if layer.reads in decoders:
                measured = {method: x for (method, reading), x in estimates.items() if reading == "measured"}
                images = decoded_images(captured, layer, decoders[layer.reads], measured)
                original = captured.batch.inputs.to(x)
                pixels = {m: subject.network.preprocess.to_pixels(image, original) for m, image in images.items()}
                for method, image in images.items():
                    compared = {
                        "decoded": (image, images[TRUE]),
                        "original": (image, original),
                        "decoded_in_pixels": (pixels[method], pixels[TRUE]),
                    }
                    for against, (found, reference) in compared.items():
                        errors = relative_norm(found - reference, reference).tolist()
                        layer.decoded.setdefault((method, against), []).extend(errors)
            subject.progress(f"macro layer {layer.number}", len(x))
    return {
        "name": "table3",
        "paper": {"activation space": TABLE_3, "image space": TABLE_3_IMAGE, "checked": TABLE_3_CHECKED},
        "ours": {
            str(layer.number): _document(subject, layer, shares[layer.stage], decoders.get(layer.reads))
            for layer in layers
        },
        "notes": _notes(subject, layers, decoders),
    }


def captured_macro_layers(subject: Subject, layers: Sequence[MacroLayer]) -> CapturedStream:
    """The images with what the macro layers read.

    Args:
        subject: The network and the images.
        layers: From ``macro_layers``.

    Returns:
        The stream.

    Raises:
        UnconvError: If the network has no macro layer.
    """
    if not layers:
        raise UnconvError(
            f"no stage of {subject.model} that the weights reach reads the output of a pooled stage; "
            "Table 3 and Figure 4 need a network with one, such as vgg16"
        )
    return CapturedStream(subject.network, subject.images, lambda _: [layer.stage for layer in layers])


def macro_estimates(
    subject: Subject, captured: Captured, layer: MacroLayer, share: float, generator: torch.Generator
) -> dict[tuple[str, str], Tensor]:
    """What each method makes of a macro layer's input, for a batch.

    Args:
        subject: The network.
        captured: The batch.
        layer: The macro layer.
        share: Share of its regions that are not zero.
        generator: Draws the random activations.

    Returns:
        By method and reading, shape ``(N, M, *spatial)``.
    """
    x = captured.inputs[layer.stage]
    estimates: dict[tuple[str, str], Tensor] = {}
    for bank in BANKS if layer.learned else BANKS[1:]:
        stage = subject.pooled(captured.stages.get(layer.stage))
        k = paper_k(stage, share)
        stage = paper_stage(stage) if bank == "learned" else stage.with_gaussian(subject.seed)
        for reading, estimate in one_step_estimates(stage, x, k).items():
            estimates[bank, reading] = estimate
    noise = torch.randn(x.shape, generator=generator).to(x)
    estimates["random_activations", "measured"] = noise * column(norms(x) / norms(noise), x)
    return estimates


@torch.no_grad()
def decoded_images(
    captured: Captured, layer: MacroLayer, opened: OpenedDecoder, estimates: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Activations put through a decoder, with the switches of the true images.

    Args:
        captured: The batch.
        layer: The macro layer.
        opened: The decoder of the stage that it reads.
        estimates: Activations in place of the true ones, by method. Shape ``(N, M, *spatial)``.

    Returns:
        Images by method, and under ``TRUE`` those of the true activations. Shape ``(N, C, H, W)``.
    """
    images = captured.batch.inputs.to(captured.inputs[layer.stage])
    codes = encode_chain(decoder_chain(captured.stages, layer.reads), images)
    every = {TRUE: codes[-1].values, **estimates}
    return {method: opened.decoder(values, codes, images.shape[2:]) for method, values in every.items()}


def one_step_errors(stage: ConvBlock, x: Tensor, k: int) -> dict[str, Tensor]:
    """Relative errors of one-step IHT under each reading of the table's setting.

    Args:
        stage: The stage with its regions; its filters are used as they are, without bias.
        x: Its true inputs. Shape ``(N, M, *spatial)``.
        k: Number of regions kept where the sparsity decides.

    Returns:
        Shape ``(N,)`` per name in ``READINGS``.
    """
    return {name: relative_norm(estimate - x, x) for name, estimate in one_step_estimates(stage, x, k).items()}


def one_step_estimates(stage: ConvBlock, x: Tensor, k: int) -> dict[str, Tensor]:
    """One-step IHT's estimates under each reading of the table's setting, rescaled to the norm of ``x``.

    Args:
        stage: The stage with its regions; its filters are used as they are, without bias.
        x: Its true inputs. Shape ``(N, M, *spatial)``.
        k: Number of regions kept where the sparsity decides.

    Returns:
        The shape of ``x`` per name in ``READINGS``.
    """
    regions = stage.pooling if isinstance(stage.pooling, Window) else 1
    h = stage.operator.forward(x)
    codes = {
        "measured": Pooled(regions, k).project(h),
        "half": Pooled(regions, paper_k(stage, 0.5)).project(h),
        "signed": Pooled(regions, k, signed=True).project(h.relu()),
    }
    norm = norms(x)
    return {name: transpose(stage.operator, code, norm=norm) for name, code in codes.items()}


def measured_shares(subject: Subject, stream: CapturedStream, layers: Sequence[MacroLayer]) -> dict[str, float]:
    """Share of regions that are not zero behind the network's own bias and activation.

    Args:
        subject: The network.
        stream: From ``captured_macro_layers``.
        layers: The macro layers.

    Returns:
        The share by stage.
    """
    activity = SparsityStatistics()
    for captured in stream:
        for layer in layers:
            stage = subject.pooled(captured.stages.get(layer.stage))
            stage = stage if layer.learned else stage.with_gaussian(subject.seed)
            activated = stage.activate(stage.preactivation(captured.inputs[layer.stage]))
            activity.update(layer.stage, activated, stage.pool(activated).values)
            subject.progress(f"counting macro layer {layer.number}", len(activated))
    return {name: activity[name].pooled.fraction for name in activity}


def _document(subject: Subject, layer: MacroLayer, share: float, opened: OpenedDecoder | None) -> dict[str, Any]:
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
        "image_space": None if opened is None else _image_space(layer, opened),
    }


def _image_space(layer: MacroLayer, opened: OpenedDecoder) -> dict[str, Any]:
    means = {key: sum(errors) / len(errors) for key, errors in layer.decoded.items()}
    return {
        "decoder": opened.describe(),
        **{
            f"against_{against}": {method: mean for (method, other), mean in means.items() if other == against}
            for against in COMPARED
        },
    }


def _deviation(errors: Sequence[float]) -> float:
    mean = sum(errors) / len(errors)
    return math.sqrt(sum((error - mean) ** 2 for error in errors) / (len(errors) - 1))


def _notes(subject: Subject, layers: Sequence[MacroLayer], decoders: Mapping[str, OpenedDecoder]) -> list[str]:
    notes = [
        f"Ours: {subject.model}, mean over images; the paper: {SETTING}.",
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
    if any(layer.reads in decoders for layer in layers):
        notes.append(
            "Image space: activations put through one what-where decoder with the true image's switches, compared with "
            "the decoded true activation, after preprocessing and in pixels, and with the original. Each decoder was "
            "trained by us on true activations (unconv train-decoder), the paper's by Zhang et al. 2016."
        )
    notes += [without_decoder(layer) for layer in layers if layer.reads not in decoders]
    return notes


def without_decoder(layer: MacroLayer) -> str:
    """What to say where a macro layer has no decoder.

    Args:
        layer: The macro layer.

    Returns:
        One line with the command that makes one.
    """
    return f"Macro layer {layer.number}: {decoder_missing(layer.reads)}"


def work(subject: Subject) -> int:
    """Units of work, for a progress bar.

    Args:
        subject: The network and the images.

    Returns:
        The number.
    """
    return 2 * len(macro_layers(subject)) * len(subject.images)


def tables(result: dict[str, Any]) -> dict[str, tuple[tuple[str, ...], list[tuple[Any, ...]]]]:
    """The two spaces; image space where there were decoders.

    Args:
        result: What ``run`` returned.

    Returns:
        Header and rows by space.
    """
    found = {"activation space": table(result)}
    if any(row.get("image_space") for row in result["ours"].values()):
        found["image space"] = image_table(result)
    return found


def image_table(result: dict[str, Any]) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
    """Image space, ours beside the paper's.

    Args:
        result: What ``run`` returned.

    Returns:
        Header and rows.
    """
    named = [method.replace("_", " ") for method in METHODS]
    header = ("macro layer", "compared with", TRUE.replace("_", " "), *named, *(f"paper, {name}" for name in named))
    rows = []
    for number, row in result["ours"].items():
        found = row["image_space"]
        if found is None:
            continue
        theirs = result["paper"]["image space"].get(number, {})
        for against, words in COMPARED.items():
            ours = found.get(f"against_{against}")
            if ours is None:  # a result from before this comparison was made
                continue
            printed = theirs if against == "decoded" else {}
            cells = (*(ours.get(m) for m in METHODS), *(printed.get(m) for m in METHODS))
            rows.append((number, words, ours[TRUE], *cells))
    return header, rows


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
