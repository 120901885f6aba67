"""Reference images to fit decoders on: synthetic ones of any shape, and the photographs that scikit-image packages."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from unconv.errors import UnconvError
from unconv.linalg import norms

SYNTHETIC, PHOTOGRAPHS = 40, 40  # how many there are of each kind
SIDE = 16  # pixels of a thumbnail, by which images are told apart
COPY = 0.1  # farthest that the thumbnail of a copy is off, as a share of the contrast of the other one


@dataclass(frozen=True)
class DeadLeavesConfig:
    """How synthetic images are drawn (Lee, Mumford and Huang 2001: occlusion with power-law sizes)."""

    shapes: int = 350  # occluding shapes per image
    smallest: float = 0.008  # least radius, as a share of the longest side (but at least one pixel)
    largest: float = 0.5  # largest radius, as a share of the longest side
    size_power: float = 2.0  # radii have density r^-size_power
    colour: float = 0.05  # standard deviation of a channel around the luminance of its shape
    texture: float = 0.2  # largest standard deviation of the 1/f texture of a shape, around its colour
    gradient: float = 0.2  # largest change of luminance across a shape
    blur: float = 0.9  # largest standard deviation of the blur of the whole image, in pixels
    noise: float = 0.01  # largest standard deviation of the white noise on top


@dataclass(frozen=True)
class References:
    """Reference images."""

    images: Tensor  # pixels in [0, 1]; shape (N, C, *spatial)
    synthetic: int  # how many of them are synthetic; the two kinds take turns
    dropped: int  # how many packaged photographs show what an image under test shows, and were left out


def reference_images(
    image_shape: Sequence[int],
    *,
    synthetic: int = SYNTHETIC,
    photographs: int = PHOTOGRAPHS,
    exclude: Tensor | None = None,
    config: DeadLeavesConfig | None = None,
    seed: int = 0,
) -> References:
    """Synthetic images and crops of packaged photographs, of a shape ``(C, *spatial)``, always the same number in all.

    No photograph is used that one of the images under test, ``exclude``, was cut from, ``(N, C, H, W)``, preprocessed
    or not. Where there are no photographs of a shape, synthetic images take their place.
    """
    crops, dropped = crop_photographs(image_shape, photographs, exclude=exclude, seed=seed)
    count = synthetic + photographs - len(crops)
    leaves = dead_leaves(count, image_shape, config=config, seed=seed)
    # the two kinds take turns, so that every batch and every share of the images holds both
    order = sorted(
        range(count + len(crops)), key=lambda n: (n + 0.5) / count if n < count else (n - count + 0.5) / len(crops)
    )
    return References(torch.cat([leaves, crops])[order], count, dropped)


def dead_leaves(
    count: int, image_shape: Sequence[int], *, config: DeadLeavesConfig | None = None, seed: int = 0
) -> Tensor:
    """Synthetic images ``(count, C, *spatial)`` in ``[0, 1]``: discs and boxes that occlude each other.

    They have the edges and the spectrum of photographs. Image ``n`` of a seed is the same whatever the count;
    UnconvError if the shape is none of an image.
    """
    shape = tuple(int(n) for n in image_shape)
    if not 2 <= len(shape) <= 4 or min(shape) < 1:
        raise UnconvError(f"image shape {shape} is none; expected channels and one to three spatial sizes")
    return _drawn(count, shape, config or DeadLeavesConfig(), seed).clone()


@lru_cache(maxsize=4)
def _drawn(count: int, shape: tuple[int, ...], config: DeadLeavesConfig, seed: int) -> Tensor:
    """Draw once per process: every inversion of images of one shape asks for the same ones."""
    images = [_draw(shape, config, np.random.default_rng([seed, n])) for n in range(count)]
    return torch.from_numpy(np.stack(images)) if images else torch.zeros(0, *shape)


def _draw(shape: tuple[int, ...], config: DeadLeavesConfig, rng: np.random.Generator) -> np.ndarray:
    spatial = shape[1:]
    longest = max(spatial)
    least = min(max(1.0, config.smallest * longest), config.largest * longest)
    # inverse of the distribution function of density r^-a between the least and the largest radius
    power = 1 - config.size_power
    ends = np.array([least, config.largest * longest]) ** power
    radii = (ends[0] + (ends[1] - ends[0]) * rng.random(config.shapes)) ** (1 / power)
    textures = [_power_law_noise(spatial, rng.uniform(0.5, 1.5), rng) for _ in range(3)]
    image = _colour(shape, config, rng) * np.ones(shape)
    # a second, larger set of shapes first: no place stays bare
    for radius in np.concatenate([np.sort(radii)[::-1][: config.shapes // 4], rng.permutation(radii)]):
        _paint(image, radius, textures[rng.integers(3)], config, rng)
    blur = config.blur * rng.random()
    image = _blur(image, blur) + config.noise * rng.random() * rng.standard_normal(shape)
    # exposure: photographs differ in contrast and mean
    image = (image - 0.5) * rng.uniform(0.6, 1.2) + rng.uniform(0.35, 0.6)
    return np.clip(image, 0, 1).astype(np.float32)


def _colour(shape: Sequence[int], config: DeadLeavesConfig, rng: np.random.Generator) -> np.ndarray:
    channels = (shape[0], *[1] * (len(shape) - 1))
    return rng.beta(1.2, 1.2) + config.colour * rng.gamma(1.0) * rng.standard_normal(channels)


def _paint(
    image: np.ndarray, radius: float, texture: np.ndarray, config: DeadLeavesConfig, rng: np.random.Generator
) -> None:
    spatial = image.shape[1:]
    dims = len(spatial)
    centre = rng.random(dims) * spatial
    stretch = np.exp(0.5 * rng.standard_normal(dims))
    turn = _rotation(dims, rng)
    reach = radius * (stretch.max() if rng.random() < 0.5 else 1.0) * math.sqrt(dims)
    low = np.maximum(np.floor(centre - reach), 0).astype(int)
    high = np.minimum(np.ceil(centre + reach) + 1, spatial).astype(int)
    box = tuple(slice(a, b) for a, b in zip(low, high))
    axes = np.ix_(*[np.arange(a, b) + 0.5 - c for a, b, c in zip(low, high, centre)])
    # coordinates along the axes of the shape, in units of its radius
    along = [sum(axes[j] * (turn[i, j] / (radius * stretch[i])) for j in range(dims)) for i in range(dims)]
    disc = rng.random() < 0.5
    distance = np.sqrt(sum(a**2 for a in along)) if disc else np.maximum.reduce([np.abs(a) for a in along])
    # the edge is one pixel wide: the share of a pixel that the shape covers
    cover = np.clip((1 - distance) * radius + 0.5, 0, 1)
    slope = sum(a * s for a, s in zip(along, config.gradient / 2 * rng.uniform(-1, 1, dims)))
    paint = _colour(image.shape, config, rng) + slope
    paint = paint + config.texture * rng.random() ** 2 * texture[box]
    image[(slice(None), *box)] += cover * (paint - image[(slice(None), *box)])


def _rotation(dims: int, rng: np.random.Generator) -> np.ndarray:
    q, r = np.linalg.qr(rng.standard_normal((dims, dims)))
    return q * np.sign(np.diag(r))


def _power_law_noise(spatial: Sequence[int], power: float, rng: np.random.Generator) -> np.ndarray:
    """Gaussian noise with amplitudes ``1 / |frequency|^power``, of unit variance."""
    white = np.fft.rfftn(rng.standard_normal(spatial))
    axes = [np.fft.fftfreq(n) for n in spatial[:-1]] + [np.fft.rfftfreq(spatial[-1])]
    frequency = np.sqrt(sum(f**2 for f in np.ix_(*axes)))
    frequency = np.maximum(frequency, 1 / max(spatial))
    noise = np.fft.irfftn(white * frequency**-power, s=spatial, axes=range(len(spatial)))
    return noise / max(noise.std(), 1e-12)


def _blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur with mirrored borders."""
    reach = math.ceil(3 * sigma)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / max(sigma, 1e-3)) ** 2)
    kernel /= kernel.sum()
    for axis in range(1, image.ndim):
        padded = np.pad(image, [(reach, reach) if i == axis else (0, 0) for i in range(image.ndim)], "symmetric")
        n = image.shape[axis]
        image = sum(k * np.take(padded, range(i, i + n), axis) for i, k in enumerate(kernel))  # pyright: ignore
    return image


def crop_photographs(
    image_shape: Sequence[int], count: int, *, exclude: Tensor | None = None, seed: int = 0
) -> tuple[Tensor, int]:
    """Crops ``(count, C, H, W)`` in ``[0, 1]`` of scikit-image's photographs, and how many of these were left out.

    At a random scale (whole, or up to four times closer), place, flip, exposure and colour. There are none for other
    shapes, or where all photographs are under test.
    """
    shape = tuple(int(n) for n in image_shape)
    if len(shape) != 3 or shape[0] not in {1, 3} or not count:
        return torch.zeros(0, *shape), 0
    photographs = [_read(path) for path in packaged_photographs()]
    kept = [p for p in photographs if exclude is None or not shows_one_of(p, exclude)]
    dropped = len(photographs) - len(kept)
    rng = np.random.default_rng([seed, 1])
    crops = [_crop(kept[n % len(kept)], shape, rng) for n in range(count if kept else 0)]
    return (torch.stack(crops) if crops else torch.zeros(0, *shape)), dropped


def packaged_photographs() -> list[Path]:
    """Photographs of things, people and surfaces in the installed scikit-image; drawings and scans are left out."""
    names = ["astronaut", "chelsea", "coffee", "rocket", "motorcycle_left", "motorcycle_right", "camera", "coins"]
    names += ["brick", "grass", "gravel", "ihc", "hubble_deep_field", "retina", "moon", "clock_motion"]
    folder = Path(str(resources.files("skimage") / "data"))
    files = [folder / f"{name}{suffix}" for name in names for suffix in (".png", ".jpg")]
    return [file for file in files if file.is_file()]


def _read(path: Path) -> Tensor:
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"), dtype=np.float32) / 255
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _crop(photograph: Tensor, shape: tuple[int, ...], rng: np.random.Generator) -> Tensor:
    channels, height, width = shape
    rows, columns = photograph.shape[1:]
    # the largest window of the wanted shape, and then a smaller one, but none that has to be enlarged
    whole = min(rows / height, columns / width)
    zoom = whole ** rng.random() if whole > 1 else whole
    h, w = max(1, round(height * zoom)), max(1, round(width * zoom))
    top, left = (int(rng.integers(n - m + 1)) for n, m in ((rows, h), (columns, w)))
    window = photograph[:, top : top + h, left : left + w]
    window = F.interpolate(window[None], (height, width), mode="bilinear", antialias=True, align_corners=False)[0]
    if rng.random() < 0.5:
        window = window.flip(-1)
    window = _developed(window.clamp(0, 1), rng)
    return window.mean(0, keepdim=True) if channels == 1 else window


def _developed(window: Tensor, rng: np.random.Generator) -> Tensor:
    """The same scene in other light: gamma, saturation and a cast. So few photographs have too few colours."""
    window = window ** math.exp(0.15 * rng.standard_normal())
    luminance = window.mean(0, keepdim=True)
    cast = torch.tensor(1 + 0.05 * rng.standard_normal((3, 1, 1)), dtype=window.dtype)
    return ((luminance + rng.uniform(0.7, 1.3) * (window - luminance)) * cast).clamp(0, 1)


def other_images(images: Tensor, under_test: Iterable[Tensor]) -> Tensor:
    """Return the images ``(N, C, *spatial)`` that are not under test, batches of that shape, nor a copy of one.

    A copy, as another file format leaves one, has nearly the same thumbnail.
    """
    thumbnails = _thumbnails(images)
    other = torch.ones(len(images), dtype=torch.bool)
    for batch in under_test:
        tested = _thumbnails(batch)
        contrast = norms(tested - tested.mean(1, keepdim=True))
        distances = torch.cdist(thumbnails, tested, compute_mode="donot_use_mm_for_euclid_dist")
        other &= (distances > COPY * contrast).all(1)
    return images[other]


def _thumbnails(images: Tensor) -> Tensor:
    """Images at no more than ``SIDE`` values per axis, flat."""
    small = F.interpolate(images.detach().float().cpu(), [min(n, SIDE) for n in images.shape[2:]], mode="area")
    return small.flatten(1)


def shows_one_of(photograph: Tensor, images: Tensor, *, threshold: float = 0.85) -> bool:
    """Whether one of some images was cut out of a photograph ``(C, H, W)``: whatever the crop, scale and preprocessing.

    The images ``(N, C', H', W')``, made small, are looked for in the photograph at a series of sizes by normalised
    cross-correlation of the mean over channels.
    """
    if images.ndim != 4 or not len(images):
        return False
    height, width = images.shape[2:]
    shrink = SIDE / min(height, width)
    size = [max(1, round(n * shrink)) for n in (height, width)]
    templates = F.interpolate(images.detach().float().cpu().mean(1, keepdim=True), size, mode="area")
    templates = torch.cat([templates, templates.flip(-1)])
    templates = templates - templates.mean((2, 3), keepdim=True)
    sizes = norms(templates)
    templates, sizes = templates[sizes > 0], sizes[sizes > 0]
    if not len(templates):
        return False
    luminance = photograph.float().mean(0)[None, None]
    # the crop takes all of the short side, down to a third of it
    for zoom in np.geomspace(1, 3, 24):
        whole = min(photograph.shape[1] / size[0], photograph.shape[2] / size[1])
        small = [max(m, round(n / whole * zoom)) for n, m in zip(photograph.shape[1:], size)]
        scene = F.interpolate(luminance, small, mode="bilinear", antialias=True, align_corners=False)
        area = float(size[0] * size[1])
        mean = F.avg_pool2d(scene, size, stride=1)
        variance = (F.avg_pool2d(scene.square(), size, stride=1) - mean.square()).clamp_min(1e-8)
        # correlation = <template, window> / (||template|| ||window - mean||), the template having mean zero
        product = F.conv2d(scene, templates)
        correlation = product / (sizes.reshape(1, -1, 1, 1) * (variance * area).sqrt())
        if correlation.numel() and correlation.max() > threshold:
            return True
    return False
