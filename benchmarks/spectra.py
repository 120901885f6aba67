"""What the largest singular value of a convolution costs beside published bounds: ``python benchmarks/spectra.py``.

The conv blocks of ``cifar-vgg`` at 32 px, zero padding as in the network. Every bound is proven to lie above the
attained norm but for that of the convolution that wraps around (Sedghi et al. 2019), which is that of another matrix.
Medians of up to five runs, one thread, into ``spectra.json`` beside this file.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from unconv.block_extraction import find_conv_blocks
from unconv.certify.correlations import largest_eigenvalue, table_of
from unconv.certify.spectrum import circular_singular_values, spectrum
from unconv.evaluate.run_directory import environment
from unconv.io import write_json
from unconv.models import load_model
from unconv.operators import ConvOperator

SIDE, GRAM_STEPS = 32, 6
RUNS, SECONDS = 5, 3.0  # of each call: at most so many, and no further one after so long


def fantastic_four(operator: ConvOperator) -> float:
    """Return Singla and Feizi's (2021) bound: the least norm of four unfoldings, times the root of the kernel size."""
    w = operator.weight
    outputs, inputs, height, width = w.shape
    unfoldings = (
        w.permute(0, 2, 1, 3).reshape(outputs * height, inputs * width),
        w.permute(0, 3, 1, 2).reshape(outputs * width, inputs * height),
        w.reshape(outputs, -1),
        w.permute(0, 2, 3, 1).reshape(-1, inputs),
    )
    return math.sqrt(height * width) * min(torch.linalg.matrix_norm(m, 2).item() for m in unfoldings)


def gram_iteration(operator: ConvOperator) -> float:
    """Return Delattre et al.'s (2023) bound: norms of repeatedly squared symbols, on a map with its padding."""
    sizes = [n + 2 * p for n, p in zip(operator.input_shape[1:], operator.padding, strict=True)]
    symbols = torch.fft.rfft2(operator.weight, sizes).permute(2, 3, 0, 1)
    logarithm = torch.zeros(symbols.shape[:2], dtype=torch.float64)
    for _ in range(GRAM_STEPS):
        size = torch.linalg.matrix_norm(symbols)
        symbols = symbols / size[..., None, None]
        # G = G^H G doubles the logarithm of what was divided off
        symbols, logarithm = symbols.mH @ symbols, 2 * (logarithm + size.log())
    bound = (torch.linalg.matrix_norm(symbols).log() + logarithm) / 2**GRAM_STEPS
    return bound.exp().max().item()


BOUNDS: dict[str, Callable[[ConvOperator], float]] = {
    "attained (Lanczos)": lambda op: op.norm(),
    "ours, symbol on a grid": lambda op: math.sqrt(
        largest_eigenvalue(table_of(op.full()), op.output_shape[1:], nonnegative=True)
    ),
    "ours, all frequencies": lambda op: (
        circular_singular_values(op, tuple(n + 2 * p for n, p in zip(op.input_shape[1:], op.padding, strict=True)))
        .max()
        .item()
    ),
    "wraps around (Sedghi 2019)": lambda op: circular_singular_values(op).max().item(),
    "four unfoldings (Singla 2021)": fantastic_four,
    "Gram iteration (Delattre 2023)": gram_iteration,
}


def timed(call: Callable[[ConvOperator], float], operator: ConvOperator) -> tuple[float, float]:
    """Return a value, and the median of its seconds."""
    value, seconds = 0.0, []
    for _ in range(RUNS):
        start = time.perf_counter()
        value = call(operator)
        seconds.append(time.perf_counter() - start)
        if sum(seconds) > SECONDS:
            break
    return value, statistics.median(seconds)


def main() -> None:
    """Measure, print, and write the rows."""
    torch.set_num_threads(1)
    blocks = find_conv_blocks(load_model("cifar-vgg", size=SIDE).module, torch.zeros(1, 3, SIDE, SIDE))
    rows: list[dict[str, Any]] = []
    for block in blocks:
        operator = block.operator.to(torch.float64)
        found = {name: timed(call, operator) for name, call in BOUNDS.items()}
        rows.append({"block": block.name, "shape": list(operator.weight.shape), "input": list(operator.input_shape)})
        rows[-1] |= {"bounds": {name: {"value": v, "seconds": s} for name, (v, s) in found.items()}}
        print(f"{block.name} {tuple(operator.weight.shape)} on {operator.input_shape}", flush=True)
        attained = found["attained (Lanczos)"][0]
        for name, (value, seconds) in found.items():
            print(f"  {name:32} {value:9.4f} {value / attained:7.3f} of the attained {seconds:8.3f} s", flush=True)
    small = spectrum(blocks.blocks[0].operator)
    rows.append({"block": blocks.blocks[0].name, "spectrum": str(small)})
    write_json(Path(__file__).with_suffix(".json"), {"side": SIDE, "rows": rows, "environment": environment()})


if __name__ == "__main__":
    main()
