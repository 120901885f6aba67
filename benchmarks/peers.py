"""Time to equal error beside other people's solvers: ``python benchmarks/peers.py`` (``pip install 'unconv[bench]'``).

Two problems: a layer's input from its code (PyLops, deepinv), and a sparse code from a layer's input (scikit-learn,
SPORCO). ``image_peers.py`` has the image. A peer makes the fewest steps that reach the best
error it gets to (within 5 %), ours the fewest that reach the same; computing errors is not timed. Peers that are not
installed are named and left out. Writes ``peers.json`` beside this file.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor

from floors import CONV_2_1, Row, photograph, run, seconds, vgg_start
from unconv.adapters import to_deepinv, to_pylops
from unconv.block_extraction import find_conv_blocks
from unconv.decode.convex import convex
from unconv.decode.linear_system import equations
from unconv.linalg import relative_norm
from unconv.measure.rip import draw_codes
from unconv.paper.fig2 import SIZES
from unconv.recover import htp
from unconv.sparsity import Pooled
from unconv.tracing import capture_inputs

SLACK = 1.05  # how near to the best error that a peer reaches counts as reaching it
EXACT = 1e-6  # a smaller error is not asked for
STEPS = 64  # largest number of steps of both sides
SHRINKAGE = 1e-3  # weight of the 1-norm, relative to the largest entry of W^T y (or W x)
SIGNALS = 16  # sparse codes

Solve = Callable[[int], Tensor]


def contest(
    name: str, peer: str, method: str, error: Callable[[Tensor], float], ours: Solve, theirs: Solve, limit: int
) -> Row:
    """Return the times of both sides to the best error that the peer reaches, or to ``EXACT``."""
    best = min(error(theirs(steps)) for steps in _ladder(limit))
    level = max(SLACK * best, EXACT)
    steps = {"ours": _fewest(ours, error, level, limit), "peer": _fewest(theirs, error, level, limit)}
    result: Row = {"name": name, "peer": peer, "method": method, "error": level, "steps": steps, "ratio": None}
    if steps["ours"] is not None and steps["peer"] is not None:
        times = {"ours": seconds(partial(ours, steps["ours"])), "peer": seconds(partial(theirs, steps["peer"]))}
        result |= {"seconds": times, "ratio": times["peer"] / times["ours"]}
    return result


def _ladder(limit: int) -> list[int]:
    return [*(2**i for i in range(limit.bit_length()) if 2**i < limit), limit]


def _fewest(solve: Solve, error: Callable[[Tensor], float], level: float, limit: int) -> int | None:
    """Return the fewest steps whose error is at most ``level``, taking errors to fall; None where none is."""
    low = 0
    for high in _ladder(limit):
        if error(solve(high)) <= level:
            break
        low = high
    else:
        return None
    while high - low > max(1, high // 16):
        middle = (low + high) // 2
        low, high = (low, middle) if error(solve(middle)) <= level else (middle, high)
    return high


def layer_problem(side: int) -> Iterator[Row]:
    """pool(1) from conv(2,1) behind ReLU and 2x2 regions, switches known; the peers solve its linear equations."""
    model, image = vgg_start(), photograph(side)
    x = capture_inputs(model, [CONV_2_1], image)[CONV_2_1]
    block = find_conv_blocks(model, image).get(CONV_2_1).with_region(2)
    code = block.encode(x)
    system = equations(block, code)
    target = system.target
    operator = SimpleNamespace(
        forward=system.forward, adjoint=system.adjoint, input_shape=block.input_shape,
        output_shape=tuple(target.shape[1:]), dtype=target.dtype, device=target.device,
    )  # fmt: skip
    back = operator.adjoint(target)
    v = torch.randn(back.shape, generator=torch.Generator().manual_seed(0))
    for _ in range(20):  # the longest step that converges, by power iterations outside the clock
        v = operator.adjoint(operator.forward(v / v.norm()))
    step, weight = 0.95 / v.norm().item(), SHRINKAGE * back.abs().max().item()

    def pylops_solvers() -> dict[str, Solve]:
        basic = importlib.import_module("pylops.optimization.basic")
        sparsity = importlib.import_module("pylops.optimization.sparsity")
        wrapped, y = to_pylops(operator), target[0].numpy().ravel()
        return {
            "cgls": lambda n: torch.from_numpy(basic.cgls(wrapped, y, niter=n, tol=0.0)[0]).to(target),
            "fista": lambda n: torch.from_numpy(
                sparsity.fista(wrapped, y, niter=n, eps=2 * weight, alpha=step, tol=0.0)[0]
            ).to(target),
        }

    def deepinv_solvers() -> dict[str, Solve]:
        linear, optim = importlib.import_module("deepinv.optim.linear"), importlib.import_module("deepinv.optim")
        physics = to_deepinv(operator)
        options = {"data_fidelity": optim.L2(), "prior": optim.L1Prior(), "lambda_reg": weight, "stepsize": step}
        return {
            "least_squares, lsqr": lambda n: linear.least_squares(
                physics.A, physics.A_adjoint, target, solver="lsqr", max_iter=n, tol=0.0, parallel_dim=0
            ),
            "FISTA, L1": lambda n: optim.FISTA(max_iter=n, **options)(target, physics),
        }

    def ours(steps: int) -> Tensor:
        return convex(block, code, max_steps=steps, tolerance=0.0).value

    def error(estimate: Tensor) -> float:
        return relative_norm(estimate.reshape(x.shape) - x, x).item()

    for peer, solvers in (("pylops", pylops_solvers), ("deepinv", deepinv_solvers)):
        for method, solve in solvers().items() if _is_there(peer) else ():
            yield contest("a layer's input, convex", peer, method, error, ours, solve, STEPS)


def sparse_problem() -> Iterator[Row]:
    """The codes of Figure 2 from ``x = W^T z``, at most one non-zero per channel."""
    operator = SIZES.operator(0)
    z = next(draw_codes(operator, Pooled("map"), SIZES.k, SIGNALS)).dense()
    x = operator.adjoint(z)

    def omp(steps: int) -> Tensor:
        columns = operator.to_dense().T.numpy()
        sizes = np.linalg.norm(columns, axis=0)
        pursuit = importlib.import_module("sklearn.linear_model").orthogonal_mp
        return torch.from_numpy((pursuit(columns / sizes, x.flatten(1).T.numpy(), n_nonzero_coefs=steps).T) / sizes)

    def sporco(steps: int) -> Tensor:
        coding = importlib.import_module("sporco.admm.cbpdn")
        # its convolutions wrap around; whole W^T z is longer than the map by a filter less one tap, so nothing does
        weight = SHRINKAGE * operator.forward(x).abs().max().item()
        options = coding.ConvBPDN.Options({"Verbose": False, "MaxMainIter": steps, "RelStopTol": 0.0})
        filters, signals = operator.weight.permute(2, 1, 0).numpy(), x.permute(2, 1, 0).contiguous().numpy()
        solver = coding.ConvBPDN(filters, signals, weight, options, dimK=1, dimN=1)
        codes = np.asarray(solver.solve()).reshape(x.shape[2], len(x), len(operator.weight))
        return torch.from_numpy(np.ascontiguousarray(codes[: operator.output_shape[1]].transpose(1, 2, 0)))

    def ours(steps: int) -> Tensor:
        return htp(operator, x, Pooled("map", SIZES.k), max_steps=steps).value.code.dense()

    def error(estimate: Tensor) -> float:
        return relative_norm(estimate.reshape(z.shape) - z, z).mean().item()

    if _is_there("sklearn"):
        yield contest("a sparse code, htp", "scikit-learn", "orthogonal_mp", error, ours, omp, SIZES.k)
    if _is_there("sporco"):
        yield contest("a sparse code, htp", "sporco", "ConvBPDN", error, ours, sporco, 2 * STEPS)


def _is_there(module: str) -> bool:
    try:
        importlib.import_module(module)
    except Exception as error:  # a peer that breaks on import is as good as absent
        print(f"left out: {module} ({error})")
        return False
    return True


def contests(side: int) -> Iterator[Row]:
    """Both problems, each row printed."""
    for one in chain(sparse_problem(), layer_problem(side)):
        ratio = "not reached" if one["ratio"] is None else f"{one['ratio']:.2f} times as long as ours"
        print(f"{one['name']}: {one['peer']}, {one['method']}, to {one['error']:.3g}: {ratio}", flush=True)
        yield one


if __name__ == "__main__":
    run(__file__, __doc__ or "", contests)
