"""Linear decoders: an image back from the features of a layer by ridge regression, in closed form."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from unconv.errors import UnconvError
from unconv.inversion.blocks import SMOOTH, BlockGrid, as_map
from unconv.inversion.calibration import Refinement
from unconv.inversion.regression import LinearConfig, MapRegression, VectorRegression, Weights, project
from unconv.inversion.residuals import ErrorModel, ExplainedVariance, explained_variance
from unconv.io import replacing
from unconv.operators import CONVOLVE

Capture = Callable[[Tensor], Mapping[str, Tensor]]

EXAMPLES = 2  # held-out images that refinement is calibrated on
HALF = ("residuals", "examples")  # kept in half precision


@dataclass(frozen=True)
class LinearDecoder:
    """An affine map from features to images, and what it misses in images that it has not seen."""

    weights: Weights
    channels: int  # channels of the image
    # what estimates of held-out images miss, by weights that these had no part in; shape (n, C, *spatial); None
    # where no reference image was held out.
    residuals: Tensor | None = None
    # the first of these images, on which refinement is calibrated; shape (m, C, *spatial)
    examples: Tensor | None = field(default=None, repr=False)
    explained: ExplainedVariance | None = field(default=None, repr=False)  # explained variance of the same estimates
    # squared errors to expect, from the same estimates
    error_model: ErrorModel | None = field(default=None, repr=False)
    # how far refinement of its estimates pays, once that was measured
    refinement: Refinement | None = field(default=None, repr=False)

    def unseen(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """Examples, their estimates and the residuals of the other held-out images; ``None`` without examples."""
        if self.examples is None or self.residuals is None:
            return None
        count = len(self.examples)
        others = self.residuals[count:] if len(self.residuals) > count else self.residuals
        return self.examples, self.examples - self.residuals[:count], others

    def __call__(self, features: Tensor, image_shape: Sequence[int]) -> Tensor:
        """Estimates ``(N, C, *spatial)`` from features that the decoder was fitted to; UnconvError for others."""
        channels, *spatial = (int(n) for n in image_shape)
        weights = self.weights
        if channels != self.channels or len(spatial) != len(weights.block):
            fitted = f"a decoder of {self.channels} channels and {len(weights.block)} spatial axes"
            raise UnconvError(f"image shape {tuple(image_shape)} does not fit {fitted}")
        if weights.kind == "map":
            return _decode_map(weights, features, spatial)
        flat = features.flatten(1)
        if weights.kind == "mean":
            coarse = weights.bias.to(features).expand(len(flat), -1)
        else:
            expected = (weights.near if weights.projection is None else weights.projection).shape[1]
            if flat.shape[1] != expected:
                raise UnconvError(f"{flat.shape[1]} features per image do not fit a decoder of {expected}")
            if weights.projection is not None:
                flat = F.linear(flat, weights.projection.to(flat))
            coarse = F.linear(flat, weights.near.to(flat), weights.bias.to(flat))
        coarse = coarse.reshape(len(flat), channels, *weights.block)
        return F.interpolate(coarse, tuple(spatial), mode=SMOOTH[len(spatial)], align_corners=False)

    def expected_squared_error(self, estimates: Tensor) -> Tensor:
        """The squared error to expect at each pixel of estimates ``(N, C, *spatial)``, shape ``(N, *spatial)``.

        The posterior variance, a mean over channels. UnconvError if no reference image was held out.
        """
        if self.error_model is None:
            raise UnconvError("no reference image was held out when this decoder was fitted; give at least two")
        return self.error_model(estimates)

    def save(self, path: str | Path) -> None:
        """Write a safetensors file; residuals, which only enter averages, in half precision."""
        parts, tensors = asdict(self), {}
        inner = {f"{name}.": parts[name] for name in PARTS if parts[name] is not None}
        for prefix, part in ({"": parts} | inner).items():
            for name in [name for name, value in part.items() if isinstance(value, Tensor)]:
                value = part.pop(name).detach().cpu().contiguous().clone()
                tensors[prefix + name] = value.half() if prefix + name in HALF else value
        with replacing(Path(path)) as temporary:
            # as bytes: where a disk is full, an OSError says so, and safetensors' own writer an error of its own
            temporary.write_bytes(save(tensors, {"linear_decoder": json.dumps(parts)}))

    @staticmethod
    def load(path: str | Path) -> LinearDecoder:
        """Read what ``save`` wrote; UnconvError if the file holds no linear decoder."""
        try:
            with safe_open(str(path), "pt") as file:
                parts = json.loads((file.metadata() or {})["linear_decoder"])
                for name in file.keys():  # noqa: SIM118 (no mapping)
                    part, _, field = name.rpartition(".")
                    value = file.get_tensor(name)
                    (parts[part] if part else parts)[field] = value.float() if name in HALF else value
            weights = parts["weights"]
            weights |= {name: tuple(weights[name]) for name in ("stride", "block")}
            for name, kind in PARTS.items():
                parts[name] = None if parts[name] is None else kind(**parts[name])
            return LinearDecoder(**parts)
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise UnconvError(f"{path} holds no linear decoder: {error}") from error


PARTS = {"weights": Weights, "explained": ExplainedVariance, "error_model": ErrorModel, "refinement": Refinement}


def _decode_map(weights: Weights, features: Tensor, spatial: Sequence[int]) -> Tensor:
    positions = as_map(features, spatial)
    expected = weights.near.shape[1] - 1 if weights.projection is None else weights.projection.shape[1]
    if positions is None or positions.shape[1] != expected:
        raise UnconvError(f"features of shape {tuple(features.shape)} do not fit a decoder of {expected} channels")
    grid = BlockGrid(tuple(spatial), tuple(positions.shape[2:]), weights.stride, weights.block)
    convolve = CONVOLVE[len(spatial)]
    near = grid.surround(project(weights.projection, positions), weights.near.shape[2] // 2)
    blocks = convolve(near, weights.near.to(positions), weights.bias.to(positions))
    if weights.far is not None:
        far = grid.surround(project(weights.far_projection, positions), weights.far.shape[2] // 2)[:, :-1]
        blocks = blocks + convolve(far, weights.far.to(positions))
    return grid.to_image(blocks)


def fit_linear_decoders(
    capture: Capture,
    references: Iterable[Tensor],
    layers: Sequence[str],
    *,
    config: LinearConfig | None = None,
) -> dict[str, LinearDecoder]:
    """Fit a decoder per layer, all in one pass over reference images, batches ``(N, C, *spatial)`` of one shape.

    From the features around each position to the block of pixels that the position stands for (``BlockGrid``), by
    ridge regression. The regularisation is the one that predicts held-out reference images best; the decoder is then
    fitted to all of them. Features without positions (vectors, maps of fewer than three positions per axis) predict a
    coarse image, with the regularisation that has the least leave-one-image-out error.

    What is read where there are more channels than there is room for is decided on the first batch; let it hold images
    of every kind. ``capture`` gives the features of all layers for a batch in one forward pass. UnconvError if there
    are no reference images, their shapes differ, or a layer has no features.
    """
    config = config or LinearConfig()
    batches = [batch for batch in references if len(batch)]
    if not batches:
        raise UnconvError("no reference images; give at least one")
    if len({batch.shape[1:] for batch in batches}) > 1:
        raise UnconvError("reference images have different shapes; give them all one")
    sizes = [len(batch) for batch in batches]
    count = sum(sizes)
    every = min(config.held_out_every, count)
    held_out = (torch.arange(count) % every == every - 1) & (count > 1)
    regressions: dict[str, MapRegression | VectorRegression] = {}
    for (x, features), unseen in zip(_captured(capture, batches, layers), held_out.split(sizes), strict=True):
        for name in layers:
            if name not in regressions:
                if as_map(features[name], x.shape[2:]) is None:
                    regressions[name] = VectorRegression(x, config)
                else:
                    regressions[name] = MapRegression(features[name], x, count, config)
            regressions[name].add(x, features[name], unseen)
    channels = batches[0].shape[1]
    decoders, judged = {}, {}
    for name in layers:
        whole, fitted = regressions.pop(name).solve()
        decoders[name], judged[name] = LinearDecoder(whole, channels), LinearDecoder(fitted, channels)
    images = torch.cat(batches)[held_out]
    if not len(images):
        return decoders
    # evenly over all of them
    kept = min(config.kept_residuals, len(images))
    return _with_held_out(decoders, judged, capture, images[torch.arange(kept) * len(images) // kept])


def _captured(
    capture: Capture, batches: Sequence[Tensor], layers: Sequence[str]
) -> Iterator[tuple[Tensor, Mapping[str, Tensor]]]:
    for x in batches:
        with torch.no_grad():
            features = capture(x)
        missing = [name for name in layers if name not in features]
        if missing:
            raise UnconvError(f"no features of {', '.join(missing)}; give layers that the forward pass reaches")
        yield x, features


def _with_held_out(
    decoders: dict[str, LinearDecoder], judged: dict[str, LinearDecoder], capture: Capture, images: Tensor
) -> dict[str, LinearDecoder]:
    """What is missed in held-out images, by decoders that have not seen them; features are taken once more."""
    estimates: dict[str, list[Tensor]] = {name: [] for name in decoders}
    for x, features in _captured(capture, images.split(4), list(decoders)):
        for name, decoder in judged.items():
            finite = torch.nan_to_num(features[name].detach().float().cpu(), posinf=0.0, neginf=0.0)
            estimates[name].append(decoder(finite, x.shape[1:]))
    images = images.float().cpu()
    # the first ones calibrate refinement, what is missed in the others is its covariance
    examples = images[: max(1, min(EXAMPLES, len(images) // 2))].half().float()
    for name, decoder in decoders.items():
        estimate = torch.cat(estimates[name])
        # as they come back from a file, so that a run that goes on with it ends in the same numbers
        residuals = (images - estimate).half().float()
        blocks = decoder.weights.stride or [n // 16 for n in images.shape[2:]]
        model = ErrorModel.of(estimate, residuals, reach=max(2, *blocks))
        explained = explained_variance(images, estimate)
        decoders[name] = replace(
            decoder, residuals=residuals, examples=examples, explained=explained, error_model=model
        )
    return decoders
