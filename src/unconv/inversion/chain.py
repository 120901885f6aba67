"""From a conv block's code back to the image, one block after the other, where the network is a plain chain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from unconv.conv_block import ConvBlock, ConvBlocks, SideInfo
from unconv.decode.block_input import decode_block
from unconv.errors import UnconvError
from unconv.solvers.solution import Solution, Status, total_passes
from unconv.sparsity import Code, CodeKind

Trail = dict[str, tuple[Code, Tensor | None]]
"""By block, its code and what a decoder may know of its gates: an on/off pattern, shape ``(N, K, *spatial)``, bool."""


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


def follow(chain: Sequence[ConvBlock], inputs: Mapping[str, Tensor]) -> Trail:
    """Return codes and gates of every block of a chain, from the inputs of each, ``(N, M, *spatial)``."""
    trail: Trail = {}
    for block in chain:
        preactivation = block.preactivation(inputs[block.name])
        trail[block.name] = block.pool(block.activate(preactivation)), preactivation > 0
    return trail


def decode_chain(
    chain: Sequence[ConvBlock],
    trail: Trail,
    method: str,
    *,
    reading: CodeKind = "network",
    side_info: SideInfo = "switches",
    max_steps: int | None = None,
) -> Solution[Tensor]:
    """Return the image from the code of the last block: each block's estimate is the code of the block before.

    Of the blocks before, only switches (and, with gates, the zeros) of the true code are used. Estimates behind a ReLU
    are clipped at zero before they count as a code, values of units that were off are zero where gates are known.
    """
    estimate: Solution[Tensor] | None = None
    parts: list[Solution[Tensor]] = []
    for block in reversed(chain):
        code, gates = trail[block.name]
        if estimate is not None:
            values = estimate.value.clamp_min(0) if block.activation.name == "relu" else estimate.value
            if side_info == "gates":
                values = torch.where(code.values != 0, values, 0.0)
            code = Code(values, code.switches, code.shape, code.pooling)
        kind = reading if estimate is None else "network"
        estimate = decode_block(
            block, code, method, code_kind=kind, side_info=side_info, gates=gates, max_steps=max_steps
        )
        parts.append(estimate)
    assert estimate is not None
    status: tuple[Status, ...] = tuple(
        next((s for s in statuses if s != "converged"), "converged")
        for statuses in zip(*(part.status for part in parts), strict=True)
    )
    return Solution(estimate.value, estimate.history, status, total_passes(parts))
