"""From a stage's code back to the image, one stage after the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from unconv.conv_block import ConvBlock, ConvBlocks
from unconv.decode.block_input import CodeKind, SideInfo, decode_layer
from unconv.decode.convex import Prior
from unconv.errors import UnconvError
from unconv.solvers.solution import Solution, Status
from unconv.sparsity import Code


@dataclass(frozen=True)
class Trail:
    """What the stages on the way from the image left behind, as far as a decoder may know it.

    Attributes:
        codes: The network's code of each stage, of which only switches (and, with gates, the zeros) are used.
        gates: On/off pattern of each stage. Shape ``(N, K, *spatial)``, bool.
    """

    codes: dict[str, Code]
    gates: dict[str, Tensor]


def chain_to_image(stages: ConvBlocks, name: str) -> tuple[ConvBlock, ...]:
    """The stages between the image and a stage, the stage last.

    Args:
        stages: The stages of a network.
        name: The stage to start from.

    Returns:
        The chain, the image's side first.

    Raises:
        UnconvError: If some input on the way is not the output of one stage alone.
    """
    chain = [stages.get(name)]
    while chain[0].source != "image":
        if chain[0].source is None:
            raise UnconvError(
                f"the input of stage {chain[0].name!r} is not the output of one stage, so there is no chain of stages "
                "back to the image; use --from layer"
            )
        chain.insert(0, stages.get(chain[0].source))
    return tuple(chain)


def follow(chain: tuple[ConvBlock, ...], inputs: Mapping[str, Tensor]) -> Trail:
    """Codes and gates of every stage of a chain.

    Args:
        chain: ConvBlocks.
        inputs: Input of each stage by name. Shape ``(N, M, *spatial)``.

    Returns:
        The trail.
    """
    codes, gates = {}, {}
    for stage in chain:
        codes[stage.name] = stage.encode(inputs[stage.name])
        gates[stage.name] = stage.preactivation(inputs[stage.name]) > 0
    return Trail(codes, gates)


def decode_chain(
    chain: tuple[ConvBlock, ...],
    code: Code,
    trail: Trail,
    method: str,
    *,
    reading: CodeKind = "network",
    side_info: SideInfo = "switches",
    norm: Tensor | None = None,
    prior: Prior | None = "smooth",
    weight: float | None = None,
    effort: float = 1.0,
) -> Solution[Tensor]:
    """The image from the code of the last stage: each stage's estimate is the code of the stage before.

    Estimates behind a ReLU are clipped at zero before they count as a code. With gates known, values of
    units that were off are zero; with switches known, values go where the true maxima were.

    Args:
        chain: From ``chain_to_image``; the last stage made the code, perhaps in the paper's reading.
        code: Codes of ``N`` inputs.
        trail: From ``follow`` for the stages before the last.
        method: As for ``decode_layer``.
        reading: How the code was made.
        side_info: What is known of every stage on the way.
        norm: True norms of the images, which the transposes are rescaled to. Shape ``(N,)``.
        prior: Of ``"convex"``, at every stage.
        weight: Of that prior.
        effort: Factor of the solvers' largest numbers of steps.

    Returns:
        Images of shape ``(N, C, *spatial)``; history and status are those of the last decoding, an image having
        converged only where every decoding on its way did.
    """
    estimate: Solution[Tensor] | None = None
    ended = []
    for stage in reversed(chain):
        if estimate is not None:
            true = trail.codes[stage.name]
            values = estimate.value.clamp_min(0) if stage.activation.name == "relu" else estimate.value
            if side_info == "gates":
                values = torch.where(true.values != 0, values, 0.0)
            code = Code(values, true.switches, true.shape, true.pooling)
        estimate = decode_layer(
            stage,
            code,
            method,
            reading=reading if estimate is None else "network",
            side_info=side_info,
            gates=trail.gates.get(stage.name),
            norm=norm if stage is chain[0] else None,
            prior=prior,
            weight=weight,
            effort=effort,
        )
        ended.append(estimate.status)
    assert estimate is not None
    status: tuple[Status, ...] = tuple(
        next((s for s in on_the_way if s != "converged"), "converged") for on_the_way in zip(*ended, strict=True)
    )
    return Solution(estimate.value, estimate.history, status)
