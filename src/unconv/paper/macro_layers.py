"""Macro layers of Table 3 and Figure 4: one-step IHT on the output of a pooling, and images of what it gives.

Macro layer ``i``: ``x`` is the output of the ``i``-th pooling, ``W`` the convolution that reads it, and
``x^ = W^T M_known(W x, k)`` with unit filters, 2x2 regions and ``k`` from the measured sparsity, rescaled to ``||x||``:
the paper's setting, in which the true norm is given, so that these are errors of direction only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unconv.conv_block import ConvBlock, ConvBlocks
from unconv.decode.block_input import paper_block, paper_code
from unconv.decode.transpose import transpose
from unconv.decode.what_where import encode_chain
from unconv.errors import UnconvError
from unconv.evaluate.block_reconstruction import paper_k
from unconv.evaluate.decoders import OpenedDecoder, decoder_chain
from unconv.evaluate.linear_fit import BATCH, references_for
from unconv.evaluate.network import Captured
from unconv.inversion.linear import LinearDecoder, fit_linear_decoders
from unconv.linalg import column, norms
from unconv.measure.sparsity import SparsityStatistics
from unconv.paper.context import Context, numbering
from unconv.sparsity import Code, Window
from unconv.tracing import capture_inputs

METHODS = ("learned", "random_filters", "random_activations")
TRUE = "true_activations"
DECODERS = {
    "trained": "trained, all switches",
    "linear": "linear, no switches",
    "linear_switches": "linear, switches of pool(i)",
}


@dataclass(frozen=True)
class MacroLayer:
    """The pooling ``pool(i)`` of block ``reads``, ``i`` its ``number``, whose output is recovered from block ``name``.

    ``learned``: whether the weights reach that block; otherwise only Gaussian filters are measured.
    """

    number: int
    reads: str
    name: str
    learned: bool


def macro_layers(context: Context) -> list[MacroLayer]:
    """List the blocks that read the output of a pooled block, in execution order."""
    numbers = numbering(context.blocks)
    layers = [
        MacroLayer(numbers[block.source][0], block.source, block.name, block.name in context.names)
        for block in context.blocks
        if block.source in context.names and context.blocks.get(block.source).pooling is not None
    ]
    if not layers:
        raise UnconvError(
            f"no conv block of {context.model} that the weights reach reads the output of a pooled block; "
            "Table 3 and Figure 4 need a network with one, such as vgg16"
        )
    return layers


def inputs_of(layers: Sequence[MacroLayer]) -> list[str]:
    """Return the blocks whose inputs are read."""
    return sorted({name for layer in layers for name in (layer.reads, layer.name)})


def measured_shares(context: Context, layers: Sequence[MacroLayer]) -> dict[str, float]:
    """Return by block the share of regions that are not zero behind the network's own bias and activation."""
    counts = SparsityStatistics()
    for captured in context.captured([layer.name for layer in layers]):
        for layer in layers:
            block = context.pooled(captured.blocks.get(layer.name))
            block = block if layer.learned else block.with_gaussian(context.seed)
            activated = block.activate(block.preactivation(captured.inputs[layer.name]))
            counts.update(layer.name, activated, None if block.pooling is None else block.pool(activated).values)
        context.progress("counting non-zeros")
    return {name: counts[name].pooled.fraction for name in counts}


def macro_estimates(
    context: Context, captured: Captured, layer: MacroLayer, share: float, generator: torch.Generator
) -> dict[str, Tensor]:
    """Return what each method makes of a macro layer's input, in its shape."""
    x = captured.inputs[layer.name]
    block = context.pooled(captured.blocks.get(layer.name))
    banks = {"learned": paper_block(block)} if layer.learned else {}
    banks["random_filters"] = block.with_gaussian(context.seed)
    k = paper_k(block, share)
    estimates = {bank: one_step_estimate(filters, x, k) for bank, filters in banks.items()}
    noise = torch.randn(x.shape, generator=generator).to(x)
    return estimates | {"random_activations": noise * column(norms(x) / norms(noise), x)}


def one_step_estimate(block: ConvBlock, x: Tensor, k: int) -> Tensor:
    """Return one-step IHT's estimate of ``x``, rescaled to its norm; filters as they are, no bias."""
    # x^ = W^T M_known(W x, k), rescaled
    return transpose(block.operator, paper_code(block, x, k), norm=norms(x))


def fit_linear(context: Context, layers: Sequence[MacroLayer]) -> dict[str, LinearDecoder]:
    """Fit linear decoders by "block kind": of a block's pooled values, and of these sorted by its switches.

    Fitted in closed form to reference images of the packaged kind, none of them under test.
    """
    context.progress("fitting linear decoders")
    references, _ = references_for(context.network, context.images, context.shape, None, context.seed)
    pools = list(dict.fromkeys(layer.reads for layer in layers))

    seen = [(name, kind) for name in pools for kind in _kinds(context.blocks, name)]

    def features(x: Tensor) -> dict[str, Tensor]:
        inputs = capture_inputs(context.network.module, pools, x.to(context.network.device))
        codes = {name: context.blocks.get(name).encode(inputs[name]) for name in pools}
        return {f"{name} {kind}": _read(kind, codes[name], codes[name].values) for name, kind in seen}

    return fit_linear_decoders(features, references.split(BATCH), [f"{name} {kind}" for name, kind in seen])


def _kinds(blocks: ConvBlocks, name: str) -> tuple[str, ...]:
    return ("linear", "linear_switches") if isinstance(blocks.get(name).pooling, Window) else ("linear",)


def _read(kind: str, code: Code, values: Tensor) -> Tensor:
    """Return what a linear decoder reads: with switches, a channel for every place of a region, zero but at its own."""
    if kind == "linear" or code.switches is None or not isinstance(code.pooling, Window):
        return values
    index, inside = code.pooling.places(code.shape[1:], values.device)
    here = code.switches.flatten(2).unsqueeze(2) == torch.where(inside, index, -1)
    return (here * values.flatten(2).unsqueeze(2)).flatten(1, 2).unflatten(2, values.shape[2:])


def image_decoders(
    context: Context,
    captured: Captured,
    layer: MacroLayer,
    trained: Mapping[str, OpenedDecoder],
    linear: Mapping[str, LinearDecoder],
) -> dict[str, Callable[[Tensor], Tensor]]:
    """Return by name what makes images of activations in place of ``pool(i)``'s, with the true image's switches."""
    images = captured.batch.inputs.to(captured.inputs[layer.name])
    shape = tuple(images.shape[1:])
    found: dict[str, Callable[[Tensor], Tensor]] = {}
    if layer.reads in trained:
        decoder, codes = trained[layer.reads].decoder, encode_chain(decoder_chain(captured.blocks, layer.reads), images)
        found["trained"] = lambda x: decoder(x, codes, shape[1:])
    if shape == context.shape:
        code = captured.blocks.get(layer.reads).encode(captured.inputs[layer.reads])
        for kind in _kinds(captured.blocks, layer.reads):
            found[kind] = lambda x, kind=kind: linear[f"{layer.reads} {kind}"](_read(kind, code, x), shape)
    return found
