"""The options of every verb. Nothing here imports torch, so that ``--help`` answers at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import tyro

from unconv.errors import UsageError


def check_choices(options: Any) -> None:
    """Refuse a word that is none of an option's choices; the command line itself lets none through, Python does.

    Args:
        options: One of the classes below.

    Raises:
        UsageError: If there is one; lists the choices.
    """
    for name, hint in get_type_hints(type(options)).items():
        choices = [
            choice for kind in (hint, *get_args(hint)) if get_origin(kind) is Literal for choice in get_args(kind)
        ]
        value = getattr(options, name)
        if choices and value is not None and value not in choices:
            known = f"{', '.join(choices[:-1])} or {choices[-1]}"
            raise UsageError(f"--{name.replace('_', '-')} is {value!r}; use {known}")


@dataclass(frozen=True)
class ModelOptions:
    """What every verb takes.

    Attributes:
        model: A bundled name (cifar-vgg), a torchvision name (vgg16), or module:callable.
        weights: A .safetensors or state-dict file, or the name of torchvision weights (downloaded then).
        size: Side of the square that images are resized and cropped to, in pixels; where not given, 224 for torchvision
            networks, and the image's own size for others.
        mean: Subtracted from each channel: one number or three with commas; above 1 means pixels in 0..255.
        std: Divides each channel.
        stages: Only these stages, by the module paths of their convolutions.
        device: Where to compute: cpu, cuda, cuda:1.
        seed: Seed of everything random.
        json: Print one JSON document on stdout, and nothing else there.
        debug: Show the traceback of an error.
    """

    model: tyro.conf.Positional[str]
    weights: str | None = None
    size: int | None = None
    mean: str | None = None
    std: str | None = None
    stages: tuple[str, ...] = ()
    device: str = "cpu"
    seed: int = 0
    json: bool = False
    debug: bool = False


@dataclass(frozen=True)
class ImageOptions(ModelOptions):
    """What every verb that looks at images takes besides.

    Attributes:
        images: Folders or files; photographs that ship with scikit-image where none is given.
        limit: Use only the first so many images.
        batch: Images at a time.
    """

    images: tuple[Path, ...] = ()
    limit: int | None = None
    batch: int = 4


@dataclass(frozen=True)
class Report(ImageOptions):
    """Measure and invert every stage over images; write a page with pictures and plots.

    Attributes:
        out: Run directory; a finished part is not computed again. Named after the settings where not given.
        region: Side of the pooling imposed where the paper's code meets a stage without pooling.
        samples: Random codes of the sampled model-RIP.
        pictures: Number of images whose reconstructions are kept as pictures.
        methods: Only these methods: some of transpose, min-norm, gauss-newton, convex, iht.
        effort: Factor of the solvers' largest numbers of steps; less is quicker and leaves larger errors.
        dry_run: Say what would be done, how long it would take and with how much memory; write nothing.
    """

    out: Path | None = None
    region: int = 2
    samples: int = 50
    pictures: int = 10
    methods: tuple[str, ...] = ()
    effort: float = 1.0
    dry_run: bool = False


@dataclass(frozen=True)
class Layers(ModelOptions):
    """List what was found in the model, and why the rest was left out."""


@dataclass(frozen=True)
class Coherence(ModelOptions):
    """Largest cosines between filters: signed, absolute, over all shifts; learned beside Gaussian.

    Attributes:
        dry_run: Say what would be done, how long it would take and with how much memory; write nothing.
    """

    dry_run: bool = False


@dataclass(frozen=True)
class Sparsity(ImageOptions):
    """Share of non-zeros of every stage after activation and after pooling, over images (Table 2).

    Attributes:
        dry_run: Say what would be done, how long it would take and with how much memory; write nothing.
    """

    dry_run: bool = False


@dataclass(frozen=True)
class Rip(ImageOptions):
    """Ratios ||W^T z|| / ||z|| of random codes at the measured sparsity (Figure 3), and a bracket of delta_k.

    Attributes:
        k: Number of active regions; from the measured sparsity where not given.
        region: Side of the pooling imposed on a stage that has none.
        samples: Number of random codes.
        boundary: Whether the transposed convolution keeps its full output or is cropped to the unpadded input.
        filters: The filters as they are, scaled to unit norm, or Gaussian.
        effort: Work of the search for the bracket's lower end; 0 samples only, without a certified upper end.
        dry_run: Say what would be done, how long it would take and with how much memory; write nothing.
    """

    k: int | None = None
    region: int = 2
    samples: int = 1000
    boundary: Literal["full", "cropped"] = "full"
    filters: Literal["learned", "normalised", "gaussian"] = "normalised"
    effort: float = 0.2
    dry_run: bool = False


@dataclass(frozen=True)
class Invert(ImageOptions):
    """Recover a stage's input, or the image, from the stage's code; without --stage, a table over all stages.

    Attributes:
        stage: The stage, by the module path of its convolution; all stages, as a table, where not given.
        start: Recover the stage's own input (layer) or the network's (image); layer where not given, except for
            methods that invert the whole network.
        code: What the network computes there, or Table 3's reading: unit filters, no bias, magnitude pooling;
            network where not given.
        region: Side of the pooling imposed on a stage that has none.
        side_info: Known besides the pooled values: nothing, the switches, or switches and on/off patterns; switches
            where not given.
        method: iht and transpose: W^T of the unpooled code, rescaled; min-norm: least norm solution of the equations;
            convex: all equations and inequalities; gauss-newton: the whole network; gradient: the whole network by
            plain gradient descent, the baseline; decoder: a trained one. convex where not given, gauss-newton with
            --from image.
        decoders: Files from train-decoder, for --method decoder; committed ones that belong to the network are found.
        prior: What is assumed where the code leaves the input open: none, smooth, gaussian, l1 or tv for convex (smooth
            where not given); none, natural or tv for gauss-newton (natural where not given and equations run out).
        prior_weight: Weight of the priors l1 and tv.
        optimizer: Of --method gradient.
        total_variation: Weight of the total variation, for --method gradient.
        alpha_norm: Weight of the mean sixth power of the image, for --method gradient.
        jitter: Largest random shift in pixels before each step, for --method gradient.
        effort: Factor of the solvers' largest numbers of steps; less is quicker and leaves larger errors.
        out: Folder that the recovered images are written to.
        dry_run: Say what would be done, how long it would take and with how much memory; write nothing.
    """

    stage: str = ""
    start: Annotated[Literal["layer", "image"] | None, tyro.conf.arg(name="from")] = None
    code: Literal["network", "paper"] | None = None
    region: int | None = None
    side_info: Literal["none", "switches", "gates"] | None = None
    method: str | None = None
    decoders: tuple[Path, ...] = ()
    prior: Literal["none", "smooth", "natural", "gaussian", "l1", "tv"] | None = None
    prior_weight: float | None = None
    optimizer: Literal["adam", "lbfgs"] = "adam"
    total_variation: float = 0.0
    alpha_norm: float = 0.0
    jitter: int = 0
    effort: float = 1.0
    out: Path | None = None
    dry_run: bool = False


@dataclass(frozen=True)
class TrainDecoder(ImageOptions):
    """Train a what-where decoder: the image from a stage's code and the switches on the way (Zhang et al. 2016).

    Attributes:
        stage: The stage, by the module path of its convolution.
        images: Folders or files of the images to train on.
        batch: Images of a step.
        steps: Number of steps.
        rate: Learning rate at the start; it falls with a cosine.
        held_out: Share of the images that is kept for validation.
        crop: Side of the random squares trained on, in pixels after preprocessing; whole images where not given.
        every: Steps between validations, each with a checkpoint.
        out: Run directory; the same command goes on from its last checkpoint. Named after the settings where not given.
        dry_run: Say what would be done, how long it would take and with how much memory; write nothing.
    """

    stage: str = ""
    batch: int = 32
    steps: int = 2000
    rate: float = 2e-3
    held_out: float = 0.1
    crop: int | None = None
    every: int = 100
    out: Path | None = None
    dry_run: bool = False


@dataclass(frozen=True)
class Doctor:
    """Check the installation: versions, devices, and a tiny inversion with its error and time.

    Attributes:
        json: Print one JSON document on stdout, and nothing else there.
        debug: Show the traceback of an error.
    """

    json: bool = False
    debug: bool = False


@dataclass(frozen=True)
class Bench:
    """Time every part beside the bare torch calls that it must make, and beside other libraries on the same work.

    Attributes:
        out: Folder for bench.json and bench.svg.
        runs: Number of paired runs.
        only: Only these parts: one-step-iht, t-step-iht, convex-step, gauss-newton-step, rip-sampling, verbs, layer,
            sparse or image.
        size: Side of the image in pixels.
        image: The image; a bundled photograph where not given.
        weights: A file of VGG-19's weights; Gaussian filters where not given.
        mean: Subtracted from each channel, with weights.
        std: Divides each channel, with weights.
        device: Where to compute: cpu, cuda, cuda:1.
        json: Print one JSON document on stdout, and nothing else there.
        debug: Show the traceback of an error.
    """

    out: Path = Path("benchmarks")
    runs: int = 7
    only: tuple[str, ...] = ()
    size: int = 224
    image: str | None = None
    weights: str | None = None
    mean: str | None = None
    std: str | None = None
    device: str = "cpu"
    json: bool = False
    debug: bool = False


Experiment = Literal[
    "all",
    "prop1",
    "fig1",
    "fig2",
    "thm31",
    "thm33",
    "table1",
    "table2",
    "fig3",
    "table3",
    "fig4",
    "table4",
    "alexnet",
]


@dataclass(frozen=True)
class Reproduce(ImageOptions):
    """A table or figure of the paper, ours beside theirs; with "all" everything that runs for the model, as a page.

    Attributes:
        model: The network, as for every verb; vgg16 has the paper's weights from torch's cache, or give --weights;
            cifar-vgg sees images at its own 32 pixels where --size is not given.
        name: Which one.
        draws: Random codes of fig2.
        samples: Random codes of fig3 and thm33.
        recovered: Images whose codes Algorithm 2 finds for fig3.
        decoders: Files from train-decoder, for table3 and fig4; committed ones that belong to the network are found.
        steps: Largest number of steps of Algorithm 2.
        fractions: Half of Algorithm 2's lambda, as fractions of max |Wx|; the first is the figure's, a table has all.
        region: Side of the pooling imposed on a stage that has none.
        sizes: k M l D K of fig2 and thm31: non-zeros, channels, length of a filter, length of the input, filters.
        out: Folder for the JSON with its settings, the figure, and the page of "all".
        dry_run: Say what would be done, how long it would take and with how much memory; write nothing.
    """

    model: str = "vgg16"
    name: tyro.conf.Positional[Experiment] = "all"
    draws: int = 20_000
    samples: int = 1000
    recovered: int = 4
    decoders: tuple[Path, ...] = ()
    steps: int = 300
    fractions: tuple[float, ...] = (0.05,)
    region: int = 2
    sizes: tuple[int, int, int, int, int] = (10, 32, 5, 32, 96)
    out: Path | None = None
    dry_run: bool = False
