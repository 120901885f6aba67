"""What reconstructions are judged by besides errors: the class that a network still sees, and perceptual distance."""

from __future__ import annotations

import contextlib
import importlib.util
import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as TF

from unconv.errors import UnconvError, UsageError
from unconv.graph import first_line
from unconv.models import LoadedModel, adopt_model, load_model
from unconv.preprocessing import Preprocessing

SMALLEST = 32  # pixels a side that LPIPS's network takes
Perceptual = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Judge:
    """A classifier that is asked whether a reconstruction still shows what the image shows."""

    module: nn.Module  # the network, in evaluation mode
    # from a picture to its input; None where it takes what the network under study takes
    preprocess: Preprocessing | None
    name: str

    def same_class(self, x: Tensor, estimates: Tensor, true: Tensor, shown: Tensor) -> list[float]:
        """Return 1 for every estimate of the image's top-1 class, else 0; ``true`` and ``shown`` are their pixels."""
        if (prepare := self.preprocess) is not None:
            pictures = ([TF.to_pil_image(p.expand(3, -1, -1)) for p in pixels] for pixels in (true, shown))
            x, estimates = (torch.stack([prepare(p) for p in some]).to(x) for some in pictures)
        return (self.classes(x) == self.classes(estimates)).double().tolist()

    @torch.no_grad()
    def classes(self, x: Tensor) -> Tensor:
        """Return the top-1 class of inputs ``(N, C, H, W)``; UnconvError where the network gives no class scores."""
        scores = self.module(x)
        if not isinstance(scores, Tensor) or scores.ndim != 2 or scores.shape[1] < 2:
            raise UnconvError(f"{self.name} gives no class scores (N, classes), so top-1 classes are not compared")
        return scores.argmax(1)


def choose_judge(
    loaded: LoadedModel, module: nn.Module, x: Tensor, other: LoadedModel | nn.Module | str | None
) -> tuple[Judge | None, list[str]]:
    """Return another classifier as judge, or the network itself where it is one; and what cannot be measured, and why.

    ``x``: an image as the network receives it. Shape ``(1, C, H, W)``.
    """
    if other is not None:
        if isinstance(other, str):
            other = load_model(other)
        elif isinstance(other, nn.Module):
            other = adopt_model(other)
        if reason := _untrained(other):
            raise UsageError(f"the judge's classes mean nothing: {reason}; give a trained classifier, with its weights")
        judge = Judge(other.module.to(x.device), other.preprocess, other.name)
        pixels = loaded.preprocess.to_pixels(x, x).cpu().clamp(0, 1)
        judge.same_class(x, x, pixels, pixels)  # one that is no classifier is refused before any work is done
        return judge, []
    if reason := _untrained(loaded):
        return None, [f"no top-1 classes: {reason}; name a judge"]
    own = Judge(module, None, loaded.name)
    try:
        own.classes(x)
    except UnconvError as error:
        return None, [str(error)]
    except Exception as error:  # a head for images of another size; the layers before it can be inverted
        return None, [f"no top-1 classes: {loaded.name} takes no input of shape {tuple(x.shape)}: {first_line(error)}"]
    return own, []


def _untrained(loaded: LoadedModel) -> str | None:
    if loaded.missing:
        return f"the weights of {loaded.name} end before its classifier"
    return f"the weights of {loaded.name} are random" if loaded.weights.random else None


@cache
def perceptual_distance() -> Perceptual | str:
    """Return LPIPS (Zhang et al. 2018) of pixels ``(N, 3, H, W)`` in ``[0, 1]``, or why there is none."""
    if importlib.util.find_spec("torchmetrics") is None:
        return "no LPIPS: torchmetrics is not installed"
    from torchvision.models import AlexNet_Weights

    weights = Path(torch.hub.get_dir()) / "checkpoints" / Path(AlexNet_Weights.IMAGENET1K_V1.url).name
    if not weights.is_file():  # it would be downloaded, and nothing is that nobody named
        return f"no LPIPS: the weights of its AlexNet, {weights.name}, are not in torch's cache"
    from torchmetrics.functional.image import (  # pyright: ignore[reportMissingImports]
        learned_perceptual_image_patch_similarity as lpips,
    )

    @torch.no_grad()
    def distance(true: Tensor, shown: Tensor) -> Tensor:
        with contextlib.redirect_stdout(io.StringIO()):  # one at a time: older versions only reduce over the batch
            return torch.stack([lpips(a[None], b[None], "alex", normalize=True) for a, b in zip(true, shown)])

    return distance


def perceptual(true: Tensor, shown: Tensor) -> list[float] | None:
    """Return LPIPS of each pair of pictures ``(N, C, H, W)``; ``None`` where it cannot be had or they are too small."""
    distance = perceptual_distance()
    if isinstance(distance, str) or true.shape[1] not in {1, 3} or min(true.shape[2:]) < SMALLEST:
        return None
    return distance(*(p.float().expand(-1, 3, -1, -1) for p in (true, shown))).tolist()
