"""Training of a what-where decoder: steps that survive a crash, and end as they would have without it."""

from __future__ import annotations

import hashlib
import io
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

from unconv.conv_block import ConvBlock
from unconv.decode.what_where import Card, WhatWhereDecoder, decoder_bytes, encode_chain, mirror
from unconv.errors import UnconvError, UsageError, check_whole
from unconv.evaluate.decoders import decoder_chain, encoder_sha256, preparation
from unconv.evaluate.network import Network, Opened
from unconv.evaluate.run_directory import RunDirectory
from unconv.images import ImageStream, SkippedImage
from unconv.io import replacing, write_json, writing
from unconv.linalg import relative_norm

FINAL, CHECKPOINT = "decoder.safetensors", "checkpoint.pt"
LEAST_RATE = 0.01
SHOWN = 8  # held-out images in the picture


@dataclass(frozen=True)
class Recipe:
    """How a decoder is trained: Adam under a cosine schedule, on the squared error of the image."""

    steps: int = 2000  # number of steps
    batch: int = 32  # images of a step
    rate: float = 2e-3  # learning rate at the start
    held_out: float = 0.1  # share of the images that is kept for validation
    # side of the random squares trained on, in pixels after preprocessing; whole images where None
    crop: int | None = None
    every: int = 100  # steps between validations, each with a checkpoint
    seed: int = 0  # seed of the weights, the held-out images, their order and the crops

    def check(self) -> None:
        """Raise UsageError where a value is out of range."""
        check_whole(steps=self.steps, batch=self.batch, every=self.every, crop=self.crop)
        if not 0 < self.held_out < 1:
            raise UsageError(f"held_out is {self.held_out}; it is a share between 0 and 1")
        if not self.rate > 0:
            raise UsageError(f"rate is {self.rate}; it is above 0")


@dataclass
class TrainingImages:
    """Images by number, cropped if asked for; what cannot be used is skipped by name."""

    network: Network
    paths: Sequence[Path]
    crop: int | None = None
    root: str | Path | None = None
    skipped: dict[str, SkippedImage] = field(default_factory=dict)

    def batch(self, numbers: Sequence[int], generator: torch.Generator | None = None) -> Tensor | None:
        """Return images ``(N, C, H, W)``, crops drawn or centred; ``None`` where none of them could be used."""

        def prepare(image: Image.Image) -> Tensor:
            x = self.network.preprocess(image)
            if self.crop is None:
                return x
            margin = [n - self.crop for n in x.shape[-2:]]
            if min(margin) < 0:
                raise UnconvError(f"{x.shape[-1]}x{x.shape[-2]} pixels are less than the crop of {self.crop}")
            draws = [0.5, 0.5] if generator is None else torch.rand(2, generator=generator).tolist()
            top, left = (min(int(draw * (n + 1)), n) for draw, n in zip(draws, margin, strict=True))
            return x[..., top : top + self.crop, left : left + self.crop]

        stream = ImageStream([self.paths[i] for i in numbers], prepare, len(numbers), root=self.root, need_one=False)
        batches = [batch.inputs for batch in stream]
        self.skipped |= {image.file: image for image in stream.skipped}
        if len(batches) > 1:
            raise UnconvError("the images are of different sizes; give one size, or train on a crop")
        return batches[0].to(self.network.device) if batches else None

    def first(self, batches: Iterable[Sequence[int]]) -> Tensor:
        """Return the first of some batches of which an image can be used."""
        for numbers in batches:
            if (x := self.batch(numbers)) is not None:
                return x
        first = next(iter(self.skipped.values()))
        raise UnconvError(f"none of the images could be used; the first, {first.file}: {first.reason}")


def train(
    opened: Opened, layer: str, recipe: Recipe, run: RunDirectory, progress: Callable[[str, int], None]
) -> dict[str, Any]:
    """Train a decoder, from its last checkpoint on; return ``decoder``, ``encoder_sha256``, ``curve`` and so on.

    Every draw is a function of the seed and the step, so an interrupted run goes on as if nothing had happened.
    """
    torch.backends.cudnn.deterministic = True  # a resumed run has to give the same numbers
    network, stream = opened.network, opened.images
    images = TrainingImages(network, stream.paths, recipe.crop, stream.root)
    training, held_out = split(len(stream.paths), recipe)
    alone = [[number] for number in training]
    chain = decoder_chain(network.conv_blocks(images.first(alone)), layer)
    opened.covered([block.name for block in chain], [layer])
    drawn = (_draws(step, training, recipe)[0] for step in range(len(training)))
    state = _State.start(chain, recipe, images.first(itertools.chain(drawn, alone)))
    state.resume(run.path / CHECKPOINT)
    resumed_from = state.step
    progress(f"step {state.step}", state.step)
    losses: list[Tensor] = []
    while state.step < recipe.steps:
        x = images.batch(*_draws(state.step, training, recipe))
        if x is not None:
            losses.append(state.advance(x, recipe))
        state.step += 1
        if state.step % recipe.every == 0 or state.step == recipe.steps:
            mean = torch.stack(losses).mean().item() if losses else 0.0
            row = {"step": state.step, "training_loss": mean, **state.validate(images, held_out, recipe)}
            if not all(map(math.isfinite, row.values())):
                raise UnconvError(f"the loss is not finite at step {state.step}; train again at a lower rate")
            state.curve.append(row)
            with writing(run.path):
                state.save(run.path / CHECKPOINT)
            losses = []
        progress(f"step {state.step}" + (f", loss {state.curve[-1]['validation_loss']:.4g}" if state.curve else ""), 1)
    card = Card(chain[-1].name, mirror(chain), encoder_sha256(network, chain), preparation(network), asdict(recipe))
    with writing(run.path), replacing(run.path / FINAL) as temporary:
        temporary.write_bytes(decoder_bytes(state.decoder, card))
    document = {
        "decoder": str(run.path / FINAL),
        "encoder_sha256": card.encoder_sha256,
        "images": {"training": len(training), "held_out": len(held_out)},
        "resumed_from": resumed_from,
        "curve": state.curve,
        "validation": {name: state.curve[-1][f"validation_{name}"] for name in ("loss", "relative_error")},
        "skipped": [asdict(image) for image in images.skipped.values()],
    }
    with writing(run.path):
        write_json(run.path / "decoder.json", document)
    if (x := images.batch(held_out[:SHOWN])) is not None:
        pixels = [network.preprocess.to_pixels(y, x).cpu().clamp(0, 1) for y in (x, state.decode(x)[0])]
        run.write_picture("images/held-out.png", make_grid([*pixels[0], *pixels[1]], nrow=len(x), padding=1))
    return document


def split(count: int, recipe: Recipe) -> tuple[list[int], list[int]]:
    """Return the numbers of the images that are trained on, and of those held out."""
    if count < 2:
        raise UnconvError("there is one image; a decoder needs at least two, one of them to validate on")
    held = min(max(1, round(recipe.held_out * count)), count - 1)
    order = torch.randperm(count, generator=_generator(recipe.seed, "held out")).tolist()
    return order[held:], order[:held]


def _draws(step: int, training: Sequence[int], recipe: Recipe) -> tuple[list[int], torch.Generator]:
    """Return the images of a step, and the generator of their crops."""
    batch = min(recipe.batch, len(training))
    epoch, place = divmod(step, len(training) // batch)
    order = torch.randperm(len(training), generator=_generator(recipe.seed, "order", epoch))
    chosen = order[place * batch : (place + 1) * batch].tolist()
    return [training[i] for i in chosen], _generator(recipe.seed, "crops", step)


@dataclass
class _State:
    """Everything that a further step depends on."""

    chain: Sequence[ConvBlock]
    decoder: WhatWhereDecoder
    optimizer: torch.optim.Optimizer
    step: int = 0
    curve: list[dict[str, Any]] = field(default_factory=list)

    @staticmethod
    def start(chain: Sequence[ConvBlock], recipe: Recipe, x: Tensor) -> _State:
        """Make a decoder with random weights, in the colours of some images."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            decoder = WhatWhereDecoder(mirror(chain))
        decoder.centre.copy_(x.mean((0, 2, 3)))
        decoder.spread.copy_(x.std().clamp_min(torch.finfo(x.dtype).eps))
        decoder = decoder.to(x.device)
        return _State(chain, decoder, torch.optim.Adam(decoder.parameters(), recipe.rate))

    def decode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the decoder makes of the codes of images, and the images."""
        with torch.no_grad():
            codes = encode_chain(self.chain, x)
        return self.decoder(codes[-1].values, codes, x.shape[2:]), x

    def advance(self, x: Tensor, recipe: Recipe) -> Tensor:
        """Make one step; return the loss."""
        for group in self.optimizer.param_groups:
            cosine = 0.5 * (1 + math.cos(math.pi * self.step / recipe.steps))
            group["lr"] = recipe.rate * (LEAST_RATE + (1 - LEAST_RATE) * cosine)
        self.decoder.train()
        loss = F.mse_loss(*self.decode(x))
        self.optimizer.zero_grad(set_to_none=True)
        # in units of the images' own spread, so that one rate fits pixels in 0..1 and in 0..255
        (loss / self.decoder.spread.square()).backward()
        self.optimizer.step()
        return loss.detach()

    @torch.no_grad()
    def validate(self, images: TrainingImages, held_out: Sequence[int], recipe: Recipe) -> dict[str, float]:
        """Return loss and relative error, means over the held-out images."""
        self.decoder.eval()
        squares, errors = [], []
        for start in range(0, len(held_out), recipe.batch):
            x = images.batch(held_out[start : start + recipe.batch])
            if x is not None:
                difference = self.decode(x)[0] - x
                squares += difference.square().flatten(1).mean(1).tolist()
                errors += relative_norm(difference, x).tolist()
        if not errors:
            raise UnconvError("none of the held-out images could be used; give more images, or a larger held_out")
        return {"validation_loss": fmean(squares), "validation_relative_error": fmean(errors)}

    def save(self, file: Path) -> None:
        """Write the checkpoint whole or not at all."""
        content = {
            "step": self.step,
            "curve": self.curve,
            "decoder": self.decoder.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "random": torch.get_rng_state(),  # nothing here draws from it, but an encoder of a user's own may
        }
        buffer = io.BytesIO()
        torch.save(content, buffer)
        with replacing(file) as temporary:
            temporary.write_bytes(buffer.getvalue())

    def resume(self, file: Path) -> None:
        """Go on from a checkpoint, if there is one."""
        if not file.exists():
            return
        try:
            kept = torch.load(file, map_location="cpu", weights_only=True)
            self.decoder.load_state_dict(kept["decoder"])
            self.optimizer.load_state_dict(kept["optimizer"])
            torch.set_rng_state(kept["random"])
            self.step, self.curve = kept["step"], kept["curve"]
        except Exception as error:
            # torch raises almost anything on damaged files
            raise UnconvError(
                f"{file} is no readable checkpoint ({type(error).__name__}); remove it to train from the start"
            ) from error


def _generator(*key: Any) -> torch.Generator:
    digest = hashlib.sha256(":".join(map(str, key)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
