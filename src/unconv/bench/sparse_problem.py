"""A sparse code from a layer's input: ours beside scikit-learn's OMP and SPORCO's convolutional sparse coding."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unconv.batched import relative_norm
from unconv.bench.peers import Contest, Solve
from unconv.bench.subject import BenchSubject
from unconv.experiments.fig2 import SETTING
from unconv.measure.rip import draw_codes
from unconv.operators import ConvOperator
from unconv.recover import htp
from unconv.sparsity import Pooled

SIGNALS = 16
STEPS, CODING_STEPS = 64, 128
WEIGHT = 1e-3  # of the 1-norm in SPORCO's objective, relative to the largest entry of W x


def sparse_problem(
    subject: BenchSubject, runs: int, there: Collection[str], done: Callable[[str], None]
) -> list[dict[str, Any]]:
    """The codes of Figure 2 from ``x = W^T z``, at most one non-zero per channel, time to equal error of the code.

    Args:
        subject: Gives the device.
        runs: Number of paired runs.
        there: The peers that are installed.
        done: Told the name of each peer that is done.

    Returns:
        A row per peer.
    """
    operator = SETTING.operator(0).to(subject.image.device)
    z = next(draw_codes(operator, Pooled("map"), SETTING.k, SIGNALS)).dense()
    x = operator.adjoint(z)
    contest = Contest(
        "sparse",
        f"z from W^T z, {SIGNALS} codes of Figure 2's layer",
        lambda found: relative_norm(found.reshape(z.shape) - z, z).mean().item(),
        lambda steps: htp(operator, x, Pooled("map", SETTING.k), max_steps=steps).value.code.dense(),
        "htp",
        STEPS,
    )
    rows = []
    for peer, method, limit, solver in (
        ("scikit-learn", "orthogonal_mp", SETTING.k, _omp),
        ("sporco", "ConvBPDN", CODING_STEPS, _sporco),
    ):
        if peer in there:
            rows.append(contest.against(peer, method, solver(operator, x), limit, runs, x.device))
            done(f"sparse, {peer}")
    return rows


def _omp(operator: ConvOperator, x: Tensor) -> Solve:
    pursuit = importlib.import_module("sklearn.linear_model").orthogonal_mp
    columns = operator.to_dense().T.cpu().numpy()
    sizes = np.linalg.norm(columns, axis=0)
    unit = np.asfortranarray(columns / sizes)
    signals = x.flatten(1).T.cpu().numpy()

    def solve(steps: int) -> Tensor:
        found = pursuit(unit, signals, n_nonzero_coefs=steps) / sizes[:, None]
        return torch.from_numpy(np.ascontiguousarray(found.T)).to(x)

    return solve


def _sporco(operator: ConvOperator, x: Tensor) -> Solve:
    coding = importlib.import_module("sporco.admm.cbpdn")
    filters, places = operator.weight.shape[0], operator.output_shape[1]
    # its convolutions wrap around; on signals that are whole W^T z and longer than the map by a filter less one tap,
    # nothing of the true code does. Axes: place, channel, filter, and place, channel, signal
    dictionary = operator.weight.permute(2, 1, 0).cpu().numpy()
    signals = np.ascontiguousarray(x.permute(2, 1, 0).cpu().numpy())
    weight = WEIGHT * operator.forward(x).abs().max().item()

    def solve(steps: int) -> Tensor:
        options = coding.ConvBPDN.Options({"Verbose": False, "MaxMainIter": steps, "RelStopTol": 0.0})
        solver = coding.ConvBPDN(dictionary, signals, weight, options, dimK=1, dimN=1)
        found = np.asarray(solver.solve()).reshape(x.shape[2], len(x), filters)
        return torch.from_numpy(np.ascontiguousarray(found[:places].transpose(1, 2, 0))).to(x)

    return solve
