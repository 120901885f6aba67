"""The options of every verb, as frozen dataclasses; the comment at a field is its help.

Nothing here imports torch, so that ``--help`` answers at once.
"""

from __future__ import annotations

import math
import re
import shlex
import time
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from unconv.errors import UsageError

Model = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
SideInfo = Literal["none", "switches", "gates"]
Method = Literal["linear", "gauss-newton", "gradient", "decoder", "iht", "transpose", "min-norm", "convex"]
# what is given, where the help would say {None}|STR
Word = Annotated[str | None, tyro.conf.arg(metavar="STR")]
Count = Annotated[int | None, tyro.conf.arg(metavar="INT")]
File = Annotated[Path | None, tyro.conf.arg(metavar="PATH")]
Ray = Annotated[tuple[str, ...] | None, tyro.conf.arg(metavar="[ADDRESS]")]
Several = Annotated[tuple[str, ...], tyro.conf.arg(aliases=("--layer",))]
OneOrSeveral = Annotated[tuple[str, ...], tyro.conf.arg(aliases=("--layers",))]
NO_ARGUMENT = {"model", "layer", "json", "debug"}
SECONDS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}


def parse_time(text: str) -> float:
    """Return the seconds of a time such as ``"90"``, ``"90s"``, ``"10m"`` or ``"1.5h"``."""
    found = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)([smh]?)", text.strip().lower())
    seconds = float(found[1]) * SECONDS[found[2]] if found else 0.0
    if not 0 < seconds < math.inf:
        raise UsageError(f"budget is {text!r}; expected a time above 0, such as 90s, 10m or 1h")
    return seconds


@dataclass(frozen=True)
class ModelOptions:
    """What every verb takes that opens a model."""

    model: Model  # A bundled name (cifar-vgg), a torchvision name (vgg16), timm/NAME, or module:callable.
    weights: Word = None  # A .safetensors or state-dict file, or the name of torchvision weights (downloaded then).
    # Side of the square that images are resized and cropped to, in pixels; where not given, that of the model's own
    # preprocessing.
    size: Count = None
    mean: Word = None  # Subtracted from each channel: one number or three with commas; above 1 means pixels in 0..255.
    std: Word = None  # Divides each channel.
    device: str = "cpu"  # Where to compute: cpu, cuda, cuda:1.
    seed: int = 0  # Seed of everything random.
    json: bool = False  # Print one JSON document on stdout, and nothing else there.
    debug: bool = False  # Show the traceback of an error.

    def keywords(self) -> dict[str, Any]:
        """Return the arguments of the verb's function, those that were given, but for the model and the layer."""
        given = {name: value for name, value in vars(self).items() if name not in NO_ARGUMENT and value is not None}
        given = {name: value for name, value in given.items() if value != () or name == "ray"}
        for name, read in (("budget", parse_time), ("ray", address_of)):
            if name in given:
                given[name] = read(given[name])
        return given | {"progress": True} | ({"layers": "all"} if given.get("layers") == ("all",) else {})


@dataclass(frozen=True)
class ImageOptions(ModelOptions):
    """What every verb takes besides that looks at images."""

    images: tuple[Path, ...] = ()  # Folders or files; photographs that ship with scikit-image where none is given.
    limit: Count = None  # Use only the first so many images.
    batch: int = 4  # Images at a time.


@dataclass(frozen=True)
class RunOptions(ImageOptions):
    """What every verb takes besides that reconstructs images."""

    # Run directory; the same command goes on from what is finished. report and audit name one after the settings where
    # not given.
    out: File = None
    # Time to take, such as 90s, 10m or 1h; report and audit take 10m where neither it nor --passes is given.
    budget: Word = None
    # Passes per image instead of a time, to repeat a run exactly: a forward and a backward pass each.
    passes: Count = None
    decoders: tuple[Path, ...] = ()  # Decoders fitted before: files from unconv train-decoder, or a folder.
    # Folder of images that linear decoders are fitted to; packaged photographs where not given.
    reference_images: File = None
    ray: Ray = None  # Compute on Ray: a local cluster, or the one at ADDRESS.


@dataclass(frozen=True)
class Report(RunOptions):
    """Measure what layers keep of images and invert them; write a page with pictures and plots."""

    layers: Several = ()  # Only these layers, or "all"; 6 to 8 spread over the depth where not given.
    # Only these methods: some of linear, gauss-newton, gradient, and those of a block's input.
    methods: tuple[str, ...] = ()
    # Only these: none, switches (positions of maxima), gates (activation pattern); all that the network has where not
    # given.
    side_info: tuple[SideInfo, ...] = ()
    region: int = 2  # Side of the pooling imposed where the paper's code meets a conv block without pooling.
    samples: int = 50  # Random codes of the sampled model-RIP.
    pictures: int = 10  # Number of images whose reconstructions are kept as pictures.
    # "random" shows beside it what a linear decoder explains of the network with random weights.
    control: Literal["random"] | None = None
    started: float = field(init=False, default_factory=time.monotonic)  # before torch is imported


@dataclass(frozen=True)
class Audit(RunOptions):
    """What attackers get of images out of the features of split points; write a page with a chart, a table and text."""

    layers: Several = ()  # The split points, or "all"; 6 to 8 spread over the depth where not given.
    # Levels of Gaussian noise on the features as a defence, relative to their size, such as 0.1 0.3.
    noise: tuple[float, ...] = ()
    # A classifier that is asked whether a reconstruction keeps the image's top-1 class, and its weights; the model
    # itself, where it is one, if not given.
    judge: Annotated[tuple[str, ...], tyro.conf.arg(metavar="MODEL [WEIGHTS]")] = ()
    pictures: int = 10  # Number of images whose reconstructions are kept as pictures.
    started: float = field(init=False, default_factory=time.monotonic)  # before torch is imported


@dataclass(frozen=True)
class Layers(ModelOptions):
    """List the layers that can be inverted, which of them are conv blocks, and why the rest is left out."""

    images: tuple[Path, ...] = ()  # One image, to trace the model at its size.


@dataclass(frozen=True)
class Invert(RunOptions):
    """Recover the image, or a conv block's own input, from what a layer gives."""

    layer: OneOrSeveral = ()  # Layers to invert, by module path; see unconv layers.
    # A .safetensors file with what the layer gave, in place of images; errors are those of features then.
    features: File = None
    recover: Literal["image", "input"] = "image"  # The image, or the conv block's own input from its code.
    # For the image: linear, gauss-newton, gradient (the baseline) or decoder (a trained one); for a block's input: iht,
    # transpose, min-norm or convex. gauss-newton or convex where not given.
    method: Method | None = None
    # Known besides the features: nothing, the switches (positions of maxima), or the gates (activation pattern).
    side_info: SideInfo = "none"
    # What the network computes, or the paper's code (Table 3): unit filters, no bias, magnitude pooling.
    code: Literal["network", "paper"] = "network"
    region: Count = None  # Side of the pooling imposed on a conv block that has none.
    k: Count = None  # Regions kept of the paper's code.


@dataclass(frozen=True)
class BlockOptions(ImageOptions):
    """What every verb takes besides that measures conv blocks over images."""

    blocks: tuple[str, ...] = ()  # Only these conv blocks, by module path.


@dataclass(frozen=True)
class Sparsity(BlockOptions):
    """Share of non-zeros of every conv block after activation and after pooling, over images (Table 2)."""


@dataclass(frozen=True)
class Coherence(ModelOptions):
    """Largest cosines between filters: signed, absolute, over all shifts; learned beside Gaussian (Table 4)."""

    blocks: tuple[str, ...] = ()  # Only these conv blocks, by module path.


@dataclass(frozen=True)
class Rip(BlockOptions):
    """Sampled ratios ||W^T z|| / ||z|| of codes at the measured sparsity (Figure 3), and bounds of delta_k."""

    k: Count = None  # Number of active regions; from the measured sparsity where not given.
    region: int = 2  # Side of the pooling imposed on a conv block that has none.
    samples: int = 1000  # Number of random codes.
    # Whether the transposed convolution keeps its full output or is cropped to the unpadded input.
    boundary: Literal["full", "cropped"] = "full"
    # The filters as they are, scaled to unit norm, or Gaussian.
    filters: Literal["learned", "normalised", "gaussian"] = "normalised"
    effort: float = 0.2  # Work of the search for the lower bound; 0 samples only, without a certified upper bound.


@dataclass(frozen=True)
class TrainDecoder(ImageOptions):
    """Train a what-where decoder: the image from a conv block's code and switches on the way (Zhang et al. 2016)."""

    layer: Annotated[str, tyro.conf.arg(aliases=("--layers",))] = ""  # The conv block, by module path.
    images: tuple[Path, ...] = ()  # Folders or files of the images to train on.
    batch: int = 32  # Images of a step.
    steps: int = 2000  # Number of steps.
    rate: float = 2e-3  # Learning rate at the start; it falls with a cosine.
    held_out: float = 0.1  # Share of the images that is kept for validation.
    # Side of the random squares trained on, in pixels after preprocessing; whole images where not given.
    crop: Count = None
    every: int = 100  # Steps between validations, each with a checkpoint.
    # Run directory; the same command goes on from its last checkpoint. Named after the settings where not given.
    out: File = None


@dataclass(frozen=True)
class Unseen(ImageOptions):
    """What no attacker can do with a layer's noisy features: bounds of the error of any reconstruction, beside ours."""

    layer: OneOrSeveral = ()  # Layers, by module path; see unconv layers.
    sigma: float | None = None  # Standard deviation of white noise on the features, in their units.
    relative_sigma: float | None = None  # The same in units of the features' root mean square.
    bits: Count = None  # Quantise features to so many bits in place of noise.
    passes: int = 40  # Passes of the attack per image.
    probes: int = 32  # Backward passes for each of the two estimates that the bounds are made of.
    # Folder of images like those under test, for the prior of bounds and attacks; packaged photographs where not given.
    reference_images: File = None
    # Passes in which to seek, for the first image, another one whose features agree, such as 1500; without noise
    # nothing else is done.
    metamers: Count = None
    # Say for the first image within which radius no gate and no switch changes, and how well the layer sees it there;
    # without noise nothing else is done.
    unique: bool = False
    out: File = None  # Folder for the pictures of metamers.


@dataclass(frozen=True)
class Doctor:
    """Check the installation: versions, devices, and a tiny inversion with its error and time."""

    json: bool = False  # Print one JSON document on stdout, and nothing else there.
    debug: bool = False  # Show the traceback of an error.


Experiment = Literal[
    "all", "prop1", "fig1", "fig2", "thm31", "thm33", "table1", "table2", "fig3", "table3", "fig4", "table4"
]


@dataclass(frozen=True)
class Reproduce(BlockOptions):
    """A table or figure of the paper, ours beside theirs; with "all" everything that runs for the model."""

    # The network, as for every verb; vgg16 has the paper's weights from torch's cache, or give --weights; cifar-vgg
    # sees images at its own 32 pixels where --size is not given.
    model: str = "vgg16"
    name: tyro.conf.Positional[Experiment] = "all"  # Which one.
    draws: int = 20_000  # Random codes of fig2.
    samples: int = 1000  # Random codes of fig3 and thm33.
    recovered: int = 4  # Images whose codes Algorithm 2 finds for fig3.
    decoders: tuple[Path, ...] = ()  # Files from train-decoder, for table3 and fig4.
    steps: int = 300  # Largest number of steps of Algorithm 2.
    # Half of Algorithm 2's lambda, as fractions of max |Wx|; the first is the figure's, a table has all.
    fractions: tuple[float, ...] = (0.05,)
    region: int = 2  # Side of the pooling imposed on a conv block that has none.
    # k M l D K of fig2 and thm31: non-zeros, channels, length of a filter, length of the input, filters.
    sizes: tuple[int, int, int, int, int] = (10, 32, 5, 32, 96)
    out: File = None  # Folder for the JSON with its settings, and the figure.


VERBS = {
    "report": Report,
    "audit": Audit,
    "layers": Layers,
    "invert": Invert,
    "sparsity": Sparsity,
    "coherence": Coherence,
    "rip": Rip,
    "reproduce": Reproduce,
    "train-decoder": TrainDecoder,
    "unseen": Unseen,
    "doctor": Doctor,
}
OPTIONS = {
    field.name: f"--{field.name.replace('_', '-')}"
    for verb in VERBS.values()
    for field in fields(verb)
    if field.name not in {"model", "name"}
}
"""Option of the command line by argument of the Python function."""


def in_options(message: str) -> str:
    """Return an error of the library with its arguments as options: ``side_info``, ``passes=``, ``batch is``."""
    message = message.replace("train_decoder", "unconv train-decoder")
    words = "|".join(name for name in OPTIONS if "_" in name)
    single = "|".join(name for name in OPTIONS if "_" not in name)
    message = re.sub(rf"(?<!-)\b({words})\b=?", lambda m: OPTIONS[m[1]] + " " * m[0].endswith("="), message)
    message = re.sub(rf"(?<![\w-])({single})=", lambda m: f"{OPTIONS[m[1]]} ", message)
    return re.sub(rf"^({single})(?= is | are )|(?<=with )({single})\b(?=$|[,;.])", lambda m: OPTIONS[m[0]], message)


def command_line(verb: str, options: Any) -> str:
    """Return the command that runs options again, without where results go and how they are shown."""
    positional = "name" if isinstance(options, Reproduce) else "model"
    line = ["unconv", verb, getattr(options, positional)]
    for option in fields(options):
        value = getattr(options, option.name)
        if option.init and option.name not in {positional, "json", "debug", "out"} and value != option.default:
            values = value if isinstance(value, tuple) else (value,)
            line += [OPTIONS.get(option.name, f"--{option.name}"), *map(str, values)]
    return shlex.join(line)


def address_of(ray: tuple[str, ...]) -> str:
    """Return the address of ``--ray [ADDRESS]``; ``"local"`` for a cluster of this machine."""
    if len(ray) > 1:
        raise UsageError(f"--ray takes at most one address, not {' '.join(ray)}; put MODEL before --ray")
    return (*ray, "local")[0]
