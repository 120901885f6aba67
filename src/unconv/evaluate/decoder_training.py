"""Training of a what-where decoder: steps that survive a crash, and end as they would have without it."""

from __future__ import annotations

import hashlib
import io
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from unconv.conv_block import ConvBlock
from unconv.decode.what_where import Card, WhatWhereDecoder, decoder_bytes, encode_chain, mirror
from unconv.errors import UnconvError
from unconv.evaluate.decoders import encoder_sha256, open_decoder, preparation
from unconv.evaluate.network import Network
from unconv.evaluate.run_directory import RunDirectory
from unconv.images import ImageStream, SkippedImage
from unconv.io import replacing
from unconv.linalg import relative_norm

FINAL, CHECKPOINT = "decoder.safetensors", "checkpoint.pt"
LEAST_RATE = 0.01


@dataclass(frozen=True)
class Recipe:
    """How a decoder is trained: Adam under a cosine schedule, on the squared error of the image.

    Attributes:
        steps: Number of steps.
        batch: Images of a step.
        rate: Learning rate at the start.
        held_out: Share of the images that is kept for validation.
        crop: Side of the random squares trained on, in pixels after preprocessing; whole images where ``None``.
        every: Steps between validations, each with a checkpoint.
        seed: Seed of the weights, the held-out images, their order and the crops.
    """

    steps: int = 2000
    batch: int = 32
    rate: float = 2e-3
    held_out: float = 0.1
    crop: int | None = None
    every: int = 100
    seed: int = 0


@dataclass
class Photographs:
    """Images by number, cropped if asked for; what cannot be used is skipped by name.

    Attributes:
        network: Whose preprocessing they get.
        paths: The files.
        crop: Side of the squares, or ``None``.
        root: Folder that names are relative to.
        skipped: What was left out, by name.
    """

    network: Network
    paths: Sequence[Path]
    crop: int | None = None
    root: Path | None = None
    skipped: dict[str, SkippedImage] = field(default_factory=dict)

    def batch(self, numbers: Sequence[int], generator: torch.Generator | None = None) -> Tensor | None:
        """Some images.

        Args:
            numbers: Which, by place in ``paths``.
            generator: Draws the crops; centred ones where ``None``.

        Returns:
            Shape ``(N, C, H, W)``, on the network's device; ``None`` where none of them could be used.

        Raises:
            UnconvError: If they are of different sizes.
        """

        def prepare(image: Image.Image) -> Tensor:
            x = self.network.preprocess(image)
            if self.crop is None:
                return x
            room = [n - self.crop for n in x.shape[-2:]]
            if min(room) < 0:
                raise UnconvError(f"{x.shape[-1]}x{x.shape[-2]} pixels are less than the crop of {self.crop}")
            draws = [0.5, 0.5] if generator is None else torch.rand(2, generator=generator).tolist()
            top, left = (min(int(draw * (n + 1)), n) for draw, n in zip(draws, room, strict=True))
            return x[..., top : top + self.crop, left : left + self.crop]

        stream = ImageStream([self.paths[i] for i in numbers], prepare, len(numbers), root=self.root, need_one=False)
        batches = [batch.inputs for batch in stream]
        self.skipped |= {image.file: image for image in stream.skipped}
        if len(batches) > 1:
            raise UnconvError("the images are of different sizes; give one with --size, or train on --crop")
        return batches[0].to(self.network.device) if batches else None


def train(
    network: Network,
    chain: Sequence[ConvBlock],
    photographs: Photographs,
    recipe: Recipe,
    run: RunDirectory,
    progress: Callable[[str, int], None],
    say: Callable[[dict[str, Any]], None] = lambda _: None,
) -> dict[str, Any]:
    """Train a decoder, from its last checkpoint on where there is one.

    Every draw is a function of the seed and the step, so an interrupted run goes on as if nothing had happened.

    Args:
        network: The network.
        chain: From ``decoder_chain``.
        photographs: The images.
        recipe: How.
        run: Where checkpoints and the decoder go.
        progress: Called with what has been done and how many steps that was.
        say: Called with each row of the validation curve.

    Returns:
        ``decoder`` (the file), ``encoder_sha256``, ``resumed_from``, ``curve`` and ``validation``, fit for JSON.

    Raises:
        UnconvError: If there are too few images, a checkpoint is damaged, or the loss is not finite.
    """
    torch.backends.cudnn.deterministic = True  # a resumed run has to give the same numbers
    training, held_out = split(len(photographs.paths), recipe)
    state = _State.start(chain, recipe, network, photographs, training)
    state.resume(run.path / CHECKPOINT)
    resumed_from = state.step
    progress(f"step {state.step}", state.step)
    losses: list[Tensor] = []
    while state.step < recipe.steps:
        x = photographs.batch(*_draws(state.step, training, recipe))
        if x is not None:
            losses.append(state.advance(x, recipe))
        state.step += 1
        if state.step % recipe.every == 0 or state.step == recipe.steps:
            row = {
                "step": state.step,
                "training_loss": _mean(losses),
                **_validate(state, photographs, held_out, recipe),
            }
            if not all(map(math.isfinite, row.values())):
                raise UnconvError(f"the loss is not finite at step {state.step}; train again at a lower --rate")
            state.curve.append(row)
            with run.writing():
                state.save(run.path / CHECKPOINT)
            losses = []
            say(row)
        progress(f"step {state.step}", 1)
    card = Card(chain[-1].name, mirror(chain), encoder_sha256(network, chain), preparation(network), asdict(recipe))
    with run.writing(), replacing(run.path / FINAL) as temporary:
        temporary.write_bytes(decoder_bytes(state.decoder, card))
    return {
        "decoder": str(run.path / FINAL),
        "encoder_sha256": card.encoder_sha256,
        "images": {"training": len(training), "held_out": len(held_out)},
        "resumed_from": resumed_from,
        "curve": state.curve,
        "validation": {name: state.curve[-1][f"validation_{name}"] for name in ("loss", "relative_error")},
    }


def first_steps(
    network: Network, chain: Sequence[ConvBlock], photographs: Photographs, recipe: Recipe, steps: int = 2
) -> tuple[float, float]:
    """How long training takes, from its first steps; nothing is written.

    Args:
        network: The network.
        chain: From ``decoder_chain``.
        photographs: The images.
        recipe: How.
        steps: Number of steps that are timed, after one that is not.

    Returns:
        Seconds of a step, and of a validation over all held-out images.
    """
    training, held_out = split(len(photographs.paths), recipe)
    state = _State.start(chain, recipe, network, photographs, training)
    start = time.perf_counter()
    for step in range(steps + 1):
        x = photographs.batch(*_draws(step, training, recipe))
        if x is not None:
            state.advance(x, recipe).item()  # which waits for the device
        if not step:
            start = time.perf_counter()
    trained = time.perf_counter()
    some = held_out[: recipe.batch]
    _validate(state, photographs, some, recipe)
    validation = (time.perf_counter() - trained) * len(held_out) / len(some)
    return (trained - start) / steps, validation


@torch.no_grad()
def validation_pictures(
    network: Network, chain: Sequence[ConvBlock], photographs: Photographs, recipe: Recipe, file: Path, most: int = 8
) -> tuple[Tensor, Tensor] | None:
    """The first held-out images, and what a trained decoder makes of their codes.

    Args:
        network: The network.
        chain: From ``decoder_chain``.
        photographs: The images.
        recipe: How the decoder was trained.
        file: The decoder.
        most: Largest number of images.

    Returns:
        Originals and decoded ones in pixels, each of shape ``(N, C, H, W)``; ``None`` where none can be read.
    """
    _, held_out = split(len(photographs.paths), recipe)
    x = photographs.batch(held_out[:most])
    if x is None:
        return None
    codes = encode_chain(chain, x)
    decoded = open_decoder(file, network, chain)(codes[-1].values, codes, x.shape[2:])
    return network.preprocess.to_pixels(x, x), network.preprocess.to_pixels(decoded, x)


def split(count: int, recipe: Recipe) -> tuple[list[int], list[int]]:
    """Which images are trained on, and which are held out.

    Args:
        count: Number of images.
        recipe: How.

    Returns:
        Their numbers.

    Raises:
        UnconvError: If there are less than two.
    """
    if count < 2:
        raise UnconvError("there is one image; a decoder needs at least two, one of them to validate on")
    held = min(max(1, round(recipe.held_out * count)), count - 1)
    order = torch.randperm(count, generator=_generator(recipe.seed, "held out")).tolist()
    return order[held:], order[:held]


def _draws(step: int, training: Sequence[int], recipe: Recipe) -> tuple[list[int], torch.Generator]:
    """The images of a step, and the generator of their crops."""
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
    def start(
        chain: Sequence[ConvBlock], recipe: Recipe, network: Network, photographs: Photographs, training: Sequence[int]
    ) -> _State:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            decoder = WhatWhereDecoder(mirror(chain))
        x = next(
            (b for i in range(len(training)) if (b := photographs.batch(_draws(i, training, recipe)[0])) is not None),
            None,
        )
        if x is None:
            skipped = next(iter(photographs.skipped.values()))
            raise UnconvError(f"none of the images could be used; the first, {skipped.file}: {skipped.reason}")
        decoder.centre.copy_(x.mean((0, 2, 3)))
        decoder.spread.copy_(x.std().clamp_min(torch.finfo(x.dtype).eps))
        decoder = decoder.to(network.device)
        return _State(chain, decoder, torch.optim.Adam(decoder.parameters(), recipe.rate))

    def advance(self, x: Tensor, recipe: Recipe) -> Tensor:
        """One step; returns the loss."""
        for group in self.optimizer.param_groups:
            cosine = 0.5 * (1 + math.cos(math.pi * self.step / recipe.steps))
            group["lr"] = recipe.rate * (LEAST_RATE + (1 - LEAST_RATE) * cosine)
        self.decoder.train()
        with torch.no_grad():
            codes = encode_chain(self.chain, x)
        loss = F.mse_loss(self.decoder(codes[-1].values, codes, x.shape[2:]), x)
        self.optimizer.zero_grad(set_to_none=True)
        # in units of the images' own spread, so that one rate fits pixels in 0..1 and in 0..255
        (loss / self.decoder.spread.square()).backward()
        self.optimizer.step()
        return loss.detach()

    def save(self, file: Path) -> None:
        """Write the checkpoint whole or not at all."""
        bytes_of = io.BytesIO()
        torch.save(
            {
                "step": self.step,
                "curve": self.curve,
                "decoder": self.decoder.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "random": torch.get_rng_state(),  # nothing here draws from it, but an encoder of a user's own may
            },
            bytes_of,
        )
        with replacing(file) as temporary:
            temporary.write_bytes(bytes_of.getvalue())

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


@torch.no_grad()
def _validate(state: _State, photographs: Photographs, held_out: Sequence[int], recipe: Recipe) -> dict[str, float]:
    state.decoder.eval()
    squares: list[float] = []
    errors: list[float] = []
    for start in range(0, len(held_out), recipe.batch):
        x = photographs.batch(held_out[start : start + recipe.batch])
        if x is not None:
            codes = encode_chain(state.chain, x)
            difference = state.decoder(codes[-1].values, codes, x.shape[2:]) - x
            squares += difference.square().flatten(1).mean(1).tolist()
            errors += relative_norm(difference, x).tolist()
    if not errors:
        raise UnconvError("none of the held-out images could be used; give more images, or a larger --held-out")
    return {
        "validation_loss": math.fsum(squares) / len(squares),
        "validation_relative_error": math.fsum(errors) / len(errors),
    }


def _mean(losses: Sequence[Tensor]) -> float:
    return torch.stack(list(losses)).mean().item() if losses else 0.0


def _generator(*key: Any) -> torch.Generator:
    digest = hashlib.sha256(":".join(map(str, key)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
