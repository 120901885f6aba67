"""From a conv block's code back to the image, one block after the other, where the network is a plain chain."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from unconv.conv_block import ConvBlock, ConvBlocks, SideInfo
from unconv.decode.block_input import decode_block
from unconv.errors import UnconvError
from unconv.solvers.solution import Solution, Status
from unconv.sparsity import Code, CodeKind


@dataclass(frozen=True)
class Trail:
    """What the blocks on the way from the image left behind, as far as a decoder may know it."""

    # the network's code of each block, of which only switches (and, with gates, the zeros) are used
    codes: dict[str, Code]
    gates: dict[str, Tensor]  # on/off pattern of each block; shape (N, K, *spatial), bool


def chain_to_image(blocks: ConvBlocks, name: str) -> tuple[ConvBlock, ...]:
    """Return the blocks from the image to a block; UnconvError if an input on the way is not one block's output."""
    chain = [blocks.get(name)]
    while chain[0].source != "image":
        if chain[0].source is None:
            raise UnconvError(
                f"the input of conv block {chain[0].name!r} is not the output of one block, so there is no chain of "
                "blocks back to the image; use method='gauss-newton' or recover='input'"
            )
        chain.insert(0, blocks.get(chain[0].source))
    return tuple(chain)


def follow(chain: tuple[ConvBlock, ...], inputs: Mapping[str, Tensor]) -> Trail:
    """Return codes and gates of every block of a chain, from the inputs of each, ``(N, M, *spatial)``."""
    codes, gates = {}, {}
    for block in chain:
        preactivation = block.preactivation(inputs[block.name])
        codes[block.name] = block.pool(block.activate(preactivation))
        gates[block.name] = preactivation > 0
    return Trail(codes, gates)


def decode_chain(
    chain: tuple[ConvBlock, ...],
    code: Code,
    trail: Trail,
    method: str,
    *,
    reading: CodeKind = "network",
    side_info: SideInfo = "switches",
) -> Solution[Tensor]:
    """Return the image from the code of the last block: each block's estimate is the code of the block before.

    Estimates behind a ReLU are clipped at zero before they count as a code. With gates known, values of units that
    were off are zero; with switches known, values go where the true maxima were.
    """
    estimate: Solution[Tensor] | None = None
    ended = []
    for block in reversed(chain):
        if estimate is not None:
            true = trail.codes[block.name]
            values = estimate.value.clamp_min(0) if block.activation.name == "relu" else estimate.value
            if side_info == "gates":
                values = torch.where(true.values != 0, values, 0.0)
            code = Code(values, true.switches, true.shape, true.pooling)
        estimate = decode_block(
            block,
            code,
            method,
            code_kind=reading if estimate is None else "network",
            side_info=side_info,
            gates=trail.gates.get(block.name),
        )
        ended.append(estimate.status)
    assert estimate is not None
    status: tuple[Status, ...] = tuple(
        next((s for s in statuses if s != "converged"), "converged") for statuses in zip(*ended, strict=True)
    )
    return Solution(estimate.value, estimate.history, status)
