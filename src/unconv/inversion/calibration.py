"""How far refinement pays, measured on reference images that no fit has seen: no image under test has a say."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from unconv.conv_block import SIDE_INFO, SideInfo
from unconv.inversion.frozen_network import LayerFunction
from unconv.inversion.gauss_newton import GaussNewtonConfig, gauss_newton
from unconv.linalg import relative_norm, tiny
from unconv.stationary import StationaryPreconditioner


@dataclass(frozen=True)
class CalibrationConfig:
    """How refinement is tried."""

    # levels of GaussNewtonConfig.noise to choose from, in ascending order
    noises: tuple[float, ...] = (1.0, 10.0, 100.0, 1000.0)
    first: int = 1  # place of the one that is tried first; then come its neighbours, as long as they do better
    trial: int = 4  # passes of each trial
    # passes with the level chosen; the next number where refinement does not pay, or not that long
    passes: tuple[int, ...] = (12, 36)
    least_gain: float = 0.03  # share of the linear estimate's error that has to be gained, or none is made
    robust_from: int = 80  # passes from which on GaussNewtonConfig.robust is tried
    robust_trial: int = 12  # passes of its trial, behind those that count squares
    robust_gain: float = 0.03  # share of the error with squares that has to be gained, with known branches not lost

    def lengths(self, most: int) -> list[int]:
        """Return how many passes are tried, where no more than so many will be made."""
        return sorted({min(n, max(most, 1)) for n in self.passes})

    def cost(self, images: int) -> int:
        """Return the passes that a calibration takes where refinement pays, the preconditioner's not counted."""
        return images * ((len(self.noises) - 1) * self.trial + self.passes[0])

    def robust_cost(self, images: int, kinds: int) -> int:
        """Return the passes that finding out whether ``robust`` pays takes, for some kinds of side information."""
        return images * kinds * 2 * (GaussNewtonConfig().robust_after + self.robust_trial)


@dataclass(frozen=True)
class Refinement:
    """What refinement gains on reference images that had no part in any fit."""

    noise: float  # the level that GaussNewtonConfig.noise is set to
    # mean relative error of the linear estimates, times the share that is left of it after so many passes in the image
    # that gains least; for each kind of side information that was tried. The first is the linear estimates' own.
    errors: dict[SideInfo, tuple[float, ...]] = field(default_factory=dict)
    least_gain: float = CalibrationConfig.least_gain  # see CalibrationConfig
    # whether GaussNewtonConfig.robust pays, for each kind of side information that was tried
    robust: dict[SideInfo, bool] = field(default_factory=dict)

    def applied(self, config: GaussNewtonConfig, side_info: SideInfo) -> GaussNewtonConfig:
        """Return how the solver works with what was found."""
        return replace(config, noise=self.noise, robust=self.robust.get(side_info, False))

    def _tried(self, side_info: SideInfo) -> tuple[float, ...]:
        # with more side information refinement pays wherever it does without
        return self.errors.get(side_info, self.errors["none"])

    def helpful(self, side_info: SideInfo, passes: int) -> SideInfo:
        """Return the kind of side information, of those known, with which refinement comes nearest; all if untried."""
        if side_info not in self.errors:
            return side_info
        known = SIDE_INFO[: SIDE_INFO.index(side_info) + 1]
        tried: list[SideInfo] = [kind for kind in reversed(known) if self.errors.get(kind)]
        return min(tried, key=lambda kind: self.foretold(kind, passes))

    def best(self, side_info: SideInfo, most: int) -> int:
        """Return the number of passes with the least error as far as that was tried, 0 where none pay."""
        errors = self._tried(side_info)
        least = min(reversed(range(min(most + 1, len(errors)))), key=errors.__getitem__)
        if not errors[least] <= (1 - self.least_gain) * errors[0]:
            return 0
        return most if least == len(errors) - 1 else least

    def pays_on(self, side_info: SideInfo) -> bool:
        """Whether errors still fell at the end of the trial."""
        last = len(self._tried(side_info))
        return self.best(side_info, last) == last

    def foretold(self, side_info: SideInfo, passes: int) -> float:
        """Return the relative error to expect after some passes; beyond the trial it falls with the same power."""
        errors = self._tried(side_info)
        last, passes = len(errors) - 1, self.best(side_info, passes)
        if passes <= last:
            return errors[passes]
        # e(n) = e(last) (n / last)^-p, with the p of the second half of the trial
        half = last // 2
        power = math.log(errors[half] / errors[last]) / math.log(last / half) if errors[last] > 0 else 0.0
        return errors[last] * (passes / last) ** -min(max(power, 0.0), 1.0)


def calibrate(
    function: LayerFunction,
    preconditioner: StationaryPreconditioner,
    images: Tensor,
    estimates: Tensor,
    kinds: Sequence[SideInfo] = ("none",),
    *,
    most: int = 150,
    features: Tensor | None = None,
    solver: GaussNewtonConfig | None = None,
    config: CalibrationConfig | None = None,
    known: Refinement | None = None,
) -> Refinement:
    """Try refinement on reference images, so that what is chosen has not seen any image under test.

    Gauss-Newton makes a few passes with one level of noise after the other, and more with the best one. Where these do
    not pay, or only so many of them, it makes still more, and each kind of side information is tried too. ``images``
    and a linear decoder's ``estimates`` of them, both ``(N, C, *spatial)``, had no part in the preconditioner or the
    decoder. ``most``: passes that will be made at most; ``features``: of the images where they are not the function's
    own, such as noisy ones; ``known``: what was found before, only its gaps are tried.
    """
    config, solver = config or CalibrationConfig(), solver or GaussNewtonConfig()
    with torch.no_grad():
        features = function(images) if features is None else features
    start = relative_norm(estimates - images, images)
    linear = start.clamp_min(tiny(images))

    def errors_after(kind: SideInfo, passes: int, **changes: Any) -> list[Tensor]:
        """Return the relative errors of the estimates and after every pass, with changes of the solver."""
        errors = [start, start]  # the first pass only looks
        gauss_newton(
            function,
            features,
            function.record(images, kind),
            initial=estimates,
            passes=passes,
            preconditioner=preconditioner,
            config=replace(solver, **changes),
            watch=lambda x: errors.append(relative_norm(x - images, images)),
        )
        return errors

    def shares(noise: float, kind: SideInfo, passes: int) -> Tensor:
        """Return ``||e_n|| / ||e_0||`` after every pass. Shape ``(passes + 1, N)``."""
        left = [error / linear for error in errors_after(kind, passes, noise=noise)]
        return torch.stack([*left, *[left[-1]] * (passes + 1 - len(left))])

    if known is None:
        noise = _best_noise(lambda level: shares(level, "none", config.trial).mean(1).min().item(), config)
        known = Refinement(noise, least_gain=config.least_gain)
    found = known
    for kind in ("none", *kinds):
        for length in config.lengths(most):
            # with more side information refinement pays wherever it does without
            if "none" in found.errors and (found.pays_on("none") or (found.pays_on(kind) and kind in found.errors)):
                break
            tried = found.errors.get(kind, ())
            if tried and not _may_gain(tried, length):
                break
            if length >= len(tried):
                errors = linear.mean() * shares(found.noise, kind, length).amax(1)
                found = replace(found, errors=found.errors | {kind: tuple(errors.tolist())})

    def robust_pays(kind: SideInfo) -> bool:
        """Return whether a robust loss comes nearer than squares in as many passes."""
        passes = solver.robust_after + config.robust_trial
        squares, forgiven = (
            errors_after(kind, passes, noise=found.noise, robust=robust)[-1].mean().item() for robust in (False, True)
        )
        # known branches lose nothing beside guessed ones, for which it does pay
        return forgiven < squares * (1 - config.robust_gain if kind == "none" else 1 + config.robust_gain)

    # noisy features are fitted no nearer than their noise, which a robust loss does not tell
    if most >= config.robust_from and solver.tolerance <= GaussNewtonConfig.tolerance:
        for kind in dict.fromkeys(("none", *kinds)):
            if kind not in found.robust:
                # known branches are tried only where guessed ones gain: with them squares go on falling for longer
                worth = found.robust.get("none", True) and found.best("none", most) > 0
                found = replace(found, robust=found.robust | {kind: worth and robust_pays(kind)})
    return found


def _may_gain(errors: tuple[float, ...], passes: int) -> bool:
    """Whether more passes can end below the linear estimate: some did, or the last half of them points there."""
    last = len(errors) - 1
    if last < 2 or last >= passes:
        return True
    half = last // 2
    slope = (errors[half] - errors[last]) / (last - half)  # passes still to be made fall no faster
    return min(*errors[1:], errors[last] - slope * (passes - last)) < errors[0]


def _best_noise(error: Callable[[float], float], config: CalibrationConfig) -> float:
    """Return the level of noise with the least error: from the first one to better neighbours."""
    least = cache(lambda place: error(config.noises[place]))
    place = config.first
    for step in (1, -1):
        begun = place
        while 0 <= place + step < len(config.noises) and least(place + step) < least(place):
            place += step
        if place != begun:
            break
    return config.noises[place]
