"""A conv block's input, or the image through a chain of blocks, back from the block's code."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from unconv.conv_block import ConvBlock
from unconv.decode.block_input import paper_block, paper_code
from unconv.decode.what_where import encode_chain
from unconv.errors import UnconvError
from unconv.evaluate.network import Captured, Network
from unconv.evaluate.reconstruction import DECODER, CodeKind, Settings, Solved, Task
from unconv.inversion.chain import chain_to_image, decode_chain, follow
from unconv.measure.sparsity import k_from
from unconv.sparsity import Window


def coded_block(block: ConvBlock, code: CodeKind, region: int | None) -> ConvBlock:
    """Return the block as the code sees it: with an imposed pooling where it has none, in the paper's reading."""
    fits = block.pooling is None and region is not None and min(block.operator.output_shape[1:]) >= region
    if fits:
        block = block.with_region(cast(int, region))
    return paper_block(block) if code == "paper" else block


def paper_k(block: ConvBlock, fraction: float) -> int:
    """Return the ``k`` of the paper's code from the share of non-zero regions, at least 1."""
    spatial = block.operator.output_shape[1:]
    pooled = block.pooling.pooled_shape(spatial) if isinstance(block.pooling, Window) else spatial
    return k_from(fraction, block.operator.output_shape[0] * math.prod(pooled))


def blocks_read(network: Network, x: Tensor, task: Task) -> tuple[ConvBlock, ...]:
    """Return the conv blocks that a task of a code goes through, from the image on."""
    blocks = network.conv_blocks(x)
    return (blocks.get(task.layer),) if task.recover == "input" else chain_to_image(blocks, task.layer)


def solve_code(
    network: Network, captured: Captured, x: Tensor, task: Task, settings: Settings, passes: int | None = None
) -> Solved:
    """Return a conv block's input, or the image, from its code; ``passes``: at most so many of each block."""
    chain = blocks_read(network, x, task)
    block = chain[-1]
    if task.method == DECODER:
        decoder = network.decoders.get(block.name)
        if decoder is None:
            raise UnconvError(f"layer {task.layer} has no trained decoder; give one in decoders, see train_decoder")
        codes = encode_chain(chain, x)
        start = time.perf_counter()
        with torch.no_grad():
            estimate = decoder(codes[-1].values, codes, x.shape[2:])
        status: Sequence[str] = ("converged",) * len(x)
        made: Sequence[int | None] = (None,) * len(x)
    else:
        block = coded_block(block, task.code, settings.region)
        given = captured.inputs[block.name]
        if task.code == "network":
            code = block.encode(given)
        else:
            code = paper_code(block, given, settings.k or paper_k(block, settings.fractions.get(block.name, 1.0)))
        gates = chain[-1].preactivation(given) > 0 if task.side_info == "gates" else None
        trail = follow(chain[:-1], captured.inputs) | {block.name: (code, gates)}
        start = time.perf_counter()
        chain = (*chain[:-1], block)
        solution = decode_chain(
            chain, trail, task.method, reading=task.code, side_info=task.side_info, max_steps=passes
        )
        estimate, status, made = solution.value, solution.status, solution.passes or (None,) * len(x)
    seconds = (time.perf_counter() - start) / len(x)
    return Solved(estimate, status, made, seconds)
