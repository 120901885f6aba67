"""A first image where gates and switches are to be found: Adam in the coordinates of natural images."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from unconv.batched import column, norms, tiny
from unconv.decode.priors import Gaussian, Metric, Smooth
from unconv.invert.box import Box, contrast
from unconv.invert.surgery import NOTHING, Features, Known

LIKENESS = 0.9
POWER = 1.0
RATE = 0.05
OUTSIDE = 1e-3
FIRST = 0.1


def natural_images(count: int, places: Metric, like: Tensor, *, root: bool = False) -> Gaussian:
    """The metric of natural images: any two channels are correlated, whatever the places.

    Args:
        count: Number of images.
        places: Metric over places.
        like: Gives channels, type and device.
        root: Take the square root of the covariance of the channels; ``places`` is taken as it is.

    Returns:
        The metric.
    """
    channels = like.shape[1]
    mixing = torch.full((channels, channels), LIKENESS, dtype=like.dtype, device=like.device).fill_diagonal_(1.0)
    if root:
        values, vectors = torch.linalg.eigh(mixing)
        mixing = vectors * values.clamp_min(0).sqrt() @ vectors.T
    return Gaussian(mixing.expand(count, channels, channels), places)


def outline(
    features: Features,
    target: Tensor,
    known: Known,
    *,
    box: Box | None,
    steps: int,
    watch: Callable[[Tensor], None] | None = None,
) -> Tensor:
    """Images whose features come near the target, from zero, large and colourless structures first.

    Minimises ``||f(x) - target||^2 / ||target||^2`` plus violations of the box by Adam on ``z``, ``x = C^(1/2) z``
    where ``C`` is the covariance of ``natural_images``: in these coordinates all entries are alike, which is what Adam
    takes them for (Olah et al. 2017 draw features so). Gauss-Newton from zero stops in deep layers at the first gates
    that no longer fit; from here it goes on.

    What is known enters at every other step only. With known switches ``f`` reads the places that won, and would let
    others rise above them; the network itself takes the maximum, which says that they lost.

    Args:
        features: The network up to a stage.
        target: Features of ``N`` images. Shape ``(N, *stage.code_shape)``.
        known: What is held fixed.
        box: Bounds of the images.
        steps: Number of steps, one pass forward and back apiece; zeros come back where it is 0.
        watch: Called with the images of every step.

    Returns:
        Shape ``(N, *input)``: of each image the iterate of least loss.
    """
    shape = (len(target), *features.input_shape)
    best = target.new_zeros(shape)
    unit, size = contrast(box), norms(target).clamp_min(tiny(target))
    places = Smooth.of(features.input_shape[1:], POWER / 2, target)
    root = natural_images(len(target), places, best, root=True)
    # the standard deviation that white noise has in the image, per entry
    spread = 1.0
    for axis in places.axes:
        spread *= (axis.square().sum() / len(axis)).sqrt().item()
    z = torch.zeros_like(best).requires_grad_()
    adam = torch.optim.Adam([z], lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, max(steps, 1))
    least = torch.full_like(size, torch.inf)
    for step in range(steps):
        x = root.apply(z) * (unit / spread)
        loss = (norms(features(x, known if step % 2 else NOTHING) - target) / size).square()
        if box is not None:
            loss = loss + OUTSIDE * norms((x - box.project(x)) / unit).square()
        better = loss.detach() < least
        least = torch.where(better, loss.detach(), least)
        best = torch.where(column(better, x), x.detach(), best)  # an index of bools would make a GPU wait
        if watch is not None:
            watch(x.detach())
        (z.grad,) = torch.autograd.grad(loss.sum(), z)
        if step == 0:
            _leave_zero(z, z.grad)
        adam.step()
        schedule.step()
    return best if box is None else box.project(best)


@torch.no_grad()
def _leave_zero(z: Tensor, gradient: Tensor) -> None:
    # without biases every ReLU is off at zero, and nothing says where to go: a little noise, the same for each image
    noise = torch.randn(z.shape[1:], dtype=z.dtype, generator=torch.Generator().manual_seed(0)).to(z.device)
    still = norms(gradient) == 0
    z += FIRST * column(still.to(z.dtype), z) * noise
