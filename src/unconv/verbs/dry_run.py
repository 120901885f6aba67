"""``--dry-run``: what a verb would do, how long it would take and with how much memory; nothing is written."""

from __future__ import annotations

import json
import math
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from unconv.errors import UnconvError
from unconv.images import ImageStream
from unconv.invert.chain import chain_to_image
from unconv.invert.ways import WHOLE_NETWORK, Way, fitting_region, stages_needed
from unconv.runs.certificates import CERTIFIED
from unconv.runs.directory import Unwritten
from unconv.runs.inversion import invert_stream, passes
from unconv.runs.network import CapturedStream, Network, first_stages
from unconv.runs.survey import survey, work
from unconv.stage import Stage, Stages
from unconv.verbs import invert, report, reproduce, rip
from unconv.verbs.opening import choose_stages, open_images, open_model
from unconv.verbs.options import ImageOptions, Invert, Report, Reproduce, Rip, Sparsity
from unconv.verbs.progress import progress_bar
from unconv.verbs.sparsity import measured_fractions
from unconv.zoo import LoadedModel

LONGEST = 10.0  # seconds that are measured of one experiment
MOST = 12  # names that are printed
POLL = 0.002


@dataclass
class Forecast:
    """What would happen.

    Attributes:
        dry_run: The verb.
        model: The model, with the source of its weights and the device.
        images: How many, and what the first is like.
        stages: The stages in execution order.
        ways: How each would be inverted, or which experiments would run.
        out: What would be written, if anything.
        seconds: How long it would take; ``None`` where nothing was measured.
        memory_bytes: Largest memory of the process (on a GPU: of the GPU).
        measured: What the estimate comes from.
        notes: What the estimate leaves out.
    """

    dry_run: str
    model: str
    images: str
    stages: list[str]
    ways: list[str] = field(default_factory=list)
    out: str | None = None
    seconds: float | None = None
    memory_bytes: int | None = None
    measured: str = ""
    notes: list[str] = field(default_factory=list)


def run(options: Report | Invert | Sparsity | Rip | Reproduce) -> tuple[dict[str, Any], str]:
    """Say what a verb would do.

    Args:
        options: The options of the verb.

    Returns:
        The JSON document and its text.
    """
    forecasts: dict[type, Callable[[Any], Forecast]] = {
        Report: _report,
        Invert: _invert,
        Sparsity: _sparsity,
        Rip: _rip,
        Reproduce: _reproduce,
    }
    found = forecasts[type(options)](options)
    return asdict(found), _text(found)


@dataclass(frozen=True)
class _Opened:
    """A model and its images, of which the first usable one is measured."""

    options: ImageOptions
    loaded: LoadedModel
    network: Network
    images: ImageStream
    first: ImageStream
    file: str
    found: Stages

    @property
    def batch(self) -> int:
        return min(self.options.batch, len(self.images))

    def forecast(self, verb: str, names: Sequence[str]) -> Forecast:
        shape = next(iter(self.first)).inputs.shape
        device = self.network.device
        return Forecast(
            verb,
            f"{self.loaded.name} ({self.loaded.weights.source}), on {device}",
            f"{len(self.images)}, the first {self.file} at {'x'.join(map(str, shape[2:]))}, {self.batch} at a time",
            list(names),
        )


def _open(options: ImageOptions) -> _Opened:
    loaded, network = open_model(options)
    images = open_images(options, loaded)
    batch = next(iter(images))
    first = ImageStream([images.paths[batch.indices[0]]], images.preprocess, 1, root=images.root)
    return _Opened(options, loaded, network, images, first, batch.names[0], first_stages(network, first))


def _report(options: Report) -> Forecast:
    ways = report.chosen_ways(options)
    opened = _open(options)
    described = report.given(options, opened.images)
    job = report.prepare(options, ways, opened.loaded, opened.network, opened.images, described, "")
    stages = [opened.found.get(name) for name in job.plan.names]
    forecast = opened.forecast("report", job.plan.names)
    forecast.ways = list(map(_way_in_words, ways))
    forecast.out = _run_directory(job.path, job.config)
    trial, kinds = _typical(stages), _kinds(ways)
    plan = replace(job.plan, names=(trial.name,), ways=tuple(kinds.values()), pictures=0)
    laps: list[float] = []
    with _meter(opened.network.device) as memory, progress_bar(work(plan, 1)) as bar:
        last = time.perf_counter()

        def lap(what: str, units: int) -> None:
            nonlocal last
            laps.append(time.perf_counter() - last)
            if len(laps) == 3:
                memory.begin_batches()
            bar(what, units)
            last = time.perf_counter()

        survey(opened.network, opened.first, plan, Unwritten(), lap)
    counting, measuring, certifying, *inverting = laps
    taken = dict(zip(kinds, inverting, strict=True))
    images, everything = len(opened.images), sum(map(_work, stages))
    forecast.seconds = images * counting * everything / _cost_of_passing(trial, opened.found)
    forecast.seconds += (
        (measuring + certifying * min(images, max(1, round(CERTIFIED * options.effort)))) * everything / _work(trial)
    )
    forecast.seconds += images * sum(taken[_kind(way)] * _times(way, stages, trial, opened.found) for way in ways)
    return _measured(
        forecast, opened, memory, _largest(stages, trial), f"stage {trial.name} of {opened.file}", sum(laps)
    )


def _invert(options: Invert) -> Forecast:
    tuning = invert.chosen_tuning(options)
    ways = (invert.chosen_way(options),) if options.stage else invert.chosen_ways(options)
    for way in ways:
        tuning.check(way.method)
    opened = _open(options)
    names, _ = choose_stages(opened.loaded, opened.found, (options.stage,) if options.stage else options.stages)
    stages = [opened.found.get(name) for name in names]
    trial, kinds = _typical(stages), _kinds(ways)
    forecast = opened.forecast("invert", names)
    forecast.ways = list(map(_way_in_words, ways))
    forecast.out = None if options.out is None else f"pictures into {options.out}"
    taken: dict[tuple[str, ...], float] = {}
    with _meter(opened.network.device) as memory, progress_bar(sum(map(passes, kinds.values()))) as bar:
        memory.begin_batches()
        for kind, way in kinds.items():
            start = time.perf_counter()
            region = options.region
            if not options.stage:
                imposed = fitting_region(trial, options.region or 2)
                region = imposed if way.code == "paper" else options.region and imposed
            try:
                needed = stages_needed(opened.found, trial.name, way)
                stream = CapturedStream(opened.network, opened.first, lambda _, needed=needed: needed)
                for _ in invert_stream(stream, trial.name, way, region, tuning, bar):
                    pass
            except UnconvError:
                if options.stage:
                    raise
            taken[kind] = time.perf_counter() - start
    each = (taken[_kind(way)] * _times(way, stages, trial, opened.found) for way in ways)
    forecast.seconds = len(opened.images) * sum(each)
    what = f"stage {trial.name} of {opened.file}"
    return _measured(forecast, opened, memory, _largest(stages, trial), what, sum(taken.values()))


def _sparsity(options: Sparsity) -> Forecast:
    opened = _open(options)
    names, _ = choose_stages(opened.loaded, opened.found, options.stages)
    forecast = opened.forecast("sparsity", names)
    with _meter(opened.network.device) as memory:
        memory.begin_batches()
        seconds, _ = _counted(opened, None)
    forecast.seconds = seconds * len(opened.images)
    return _measured(forecast, opened, memory, 1.0, f"all stages of {opened.file}", seconds)


def _rip(options: Rip) -> Forecast:
    rip.check(options)
    opened = _open(options)
    names, _ = choose_stages(opened.loaded, opened.found, options.stages)
    stages = [opened.found.get(name) for name in names]
    trial = _typical(stages)
    forecast = opened.forecast("rip", names)
    forecast.ways = [f"{options.samples} random codes of each, {options.filters} filters, {options.boundary} output"]
    with _meter(opened.network.device) as memory:
        counting, fractions = (0.0, {}) if options.k else _counted(opened, options.region)
        start = time.perf_counter()
        rip.measure(trial, options, fractions)
        seconds = time.perf_counter() - start
    forecast.seconds = counting * len(opened.images) + seconds * sum(map(_work, stages)) / _work(trial)
    return _measured(forecast, opened, memory, _largest(stages, trial), f"stage {trial.name}", counting + seconds)


def _reproduce(options: Reproduce) -> Forecast:
    reproduce.check(options)
    options = reproduce.of_its_model(options)
    names = [name for name in reproduce.PARTS if options.name in {"all", name}]
    found = reproduce.Opened(options).subject()
    forecast = Forecast(
        "reproduce",
        f"{found.model}, on {options.device}",
        f"{len(found.images)}, the first at {'x'.join(map(str, found.shape[1:]))}, {options.batch} at a time",
        list(found.names),
        names,
    )
    folder = reproduce.folder(options)
    forecast.out = None if folder is None else str(folder)
    total, spent, unmeasured = 0.0, 0.0, []
    with _meter(found.network.device) as memory:
        for name in names:
            part = reproduce.PARTS[name]
            units = part.work(found)
            if units <= 1 or (name == "alexnet" and options.model != "alexnet"):
                unmeasured.append(name)
                continue
            watch = _Stopwatch(units / max(1, len(found.images)))
            try:
                part.run(options, lambda watch=watch: replace(found, progress=watch))
            except _Enough:
                pass
            except UnconvError as error:
                forecast.notes.append(f"{name} would be left out: {error}")
                continue
            total += watch.seconds * units / max(1, watch.units)
            spent += watch.seconds
    if unmeasured:
        forecast.notes.append(f"the estimate leaves out {', '.join(unmeasured)}")
    if spent:
        forecast.seconds, forecast.measured = total, f"the first steps took {_duration(spent)}"
    forecast.memory_bytes = memory.largest(1.0, 1)
    return forecast


class _Enough(BaseException):
    """Ends an experiment of which enough has been seen; no ``except Exception`` on the way swallows it."""


class _Stopwatch:
    """Progress of an experiment, which it ends after one image's worth of work, or when that takes too long."""

    def __init__(self, enough: float) -> None:
        self.enough, self.units, self.seconds = enough, 0, 0.0
        self.start = time.perf_counter()

    def __call__(self, what: str, units: int) -> None:
        self.units += units
        self.seconds = time.perf_counter() - self.start
        if self.units >= self.enough or self.seconds > LONGEST:
            raise _Enough


def _counted(opened: _Opened, region: int | None) -> tuple[float, dict[str, dict[str, float]]]:
    one = replace(opened.options, images=(opened.first.paths[0],), limit=None, batch=1)
    start = time.perf_counter()
    fractions, _ = measured_fractions(opened.loaded, opened.network, one, region)
    return time.perf_counter() - start, fractions


def _measured(
    forecast: Forecast, opened: _Opened, memory: _Memory, scale: float, what: str, seconds: float
) -> Forecast:
    forecast.memory_bytes = memory.largest(scale, opened.batch)
    forecast.measured = f"{what} took {_duration(seconds)}"
    return forecast


def _typical(stages: Sequence[Stage]) -> Stage:
    """The first stage that costs about as much as others do: quick to reach, and not mere overhead."""
    middle = sorted(map(_work, stages))[len(stages) // 2]
    return next(stage for stage in stages if 2 * _work(stage) >= middle)


def _kind(way: Way) -> tuple[str, ...]:
    """What the cost of a way depends on; what is known besides moves it little."""
    return way.recovered, way.code, way.method


def _kinds(ways: Sequence[Way]) -> dict[tuple[str, ...], Way]:
    """One way of each kind, the one that knows the switches where there is one."""
    ordered = sorted(ways, key=lambda way: way.side_info == "switches")
    found = {_kind(way): way for way in ordered}
    return {_kind(way): found[_kind(way)] for way in ways}


def _work(stage: Stage) -> int:
    """Multiplications of one convolution."""
    return stage.operator.weight.numel() * math.prod(stage.operator.output_shape[1:])


def _largest(stages: Sequence[Stage], trial: Stage) -> float:
    """How much more a stage holds at most than the one that was measured."""
    sizes = [math.prod(stage.input_shape) + math.prod(stage.operator.output_shape) for stage in (trial, *stages)]
    return max(sizes) / sizes[0]


def _times(way: Way, stages: Sequence[Stage], trial: Stage, found: Stages) -> float:
    """What a way costs over all stages, in units of what it costs at the one that was measured."""
    own = _cost(way, trial, found)
    return sum(_cost(way, stage, found) for stage in stages) / own if own else len(stages)


def _cost(way: Way, stage: Stage, found: Stages) -> int:
    if way.recovered == "layer":
        return _work(stage)
    if way.method in WHOLE_NETWORK:
        return _cost_of_passing(stage, found)
    try:
        return sum(map(_work, chain_to_image(found, stage.name)))
    except UnconvError:
        return 0


def _cost_of_passing(stage: Stage, found: Stages) -> int:
    return sum(map(_work, found.stages[: found.names.index(stage.name) + 1]))


class _Memory:
    """Memory in use, and how far it rises: first over work on single images, then over work on batches."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.before = self.batches_before = _in_use(device)
        self.peak = self.batches_peak = 0
        self.in_batches = False

    def begin_batches(self) -> None:
        self.look()
        self.in_batches, self.batches_before = True, _in_use(self.device)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def look(self) -> None:
        now = torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else _in_use(self.device)
        if self.in_batches:
            self.batches_peak = max(self.batches_peak, now)
        else:
            self.peak = max(self.peak, now)

    def largest(self, scale: float, batch: int) -> int:
        """The largest memory, where stages are so much larger than the one measured and images come in batches."""
        single = self.before + scale * max(0, self.peak - self.before)
        batches = self.batches_before + scale * batch * max(0, self.batches_peak - self.batches_before)
        return round(max(single, batches))


@contextmanager
def _meter(device: torch.device) -> Iterator[_Memory]:
    memory, stop = _Memory(device), threading.Event()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)

    def watch() -> None:
        while not stop.wait(POLL):
            memory.look()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield memory
    finally:
        stop.set()
        watcher.join()
        memory.look()


def _in_use(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        # no /proc: the largest so far, which macOS counts in bytes and others in KiB
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _run_directory(path: Path, config: dict[str, Any]) -> str:
    settings = path / "config.json"
    if not settings.exists():
        return str(path)
    try:
        same = json.loads(settings.read_text()) == json.loads(json.dumps(config))
    except (OSError, ValueError):
        same = False
    if not same:
        return f"{path}, which would be refused: it holds a run with other settings"
    finished = len(list((path / "parts").glob("*.json")))
    return f"{path}, where {finished} finished parts are kept; the time is that of a fresh run"


def _way_in_words(way: Way) -> str:
    code = "" if way.code == "network" else ", the paper's code"
    return f"{way.recovered} by {way.method} ({way.side_info}{code})"


def _text(found: Forecast) -> str:
    rows = [
        ("model", found.model),
        ("images", found.images),
        ("stages", f"{len(found.stages)}: {_listed(found.stages)}"),
        ("parts" if found.dry_run == "reproduce" else "ways", "; ".join(found.ways)),
        ("writes", found.out or "nothing"),
        ("time", "not estimated" if found.seconds is None else f"about {_duration(found.seconds)}; {found.measured}"),
        ("memory", "" if found.memory_bytes is None else f"about {found.memory_bytes / 1e6:.0f} MB"),
    ]
    lines = [f"  {name:8}{value}" for name, value in rows if value]
    lines += [f"  {'note':8}{note}" for note in found.notes]
    return "\n".join([f"unconv {found.dry_run} would do this:", *lines, "Nothing has been written."])


def _listed(names: Sequence[str]) -> str:
    if len(names) <= MOST:
        return ", ".join(names)
    return f"{', '.join(names[: MOST - 1])}, ... {names[-1]}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
