"""``--dry-run``: what a verb would do, how long it would take and with how much memory; nothing is written."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from unconv.errors import UnconvError
from unconv.images import ImageStream
from unconv.invert.chain import chain_to_image
from unconv.invert.ways import WHOLE_NETWORK, Way, fitting_region, stages_needed
from unconv.runs.certificates import CERTIFIED
from unconv.runs.decoder_training import first_steps, split
from unconv.runs.directory import Unwritten
from unconv.runs.inversion import invert_stream, passes
from unconv.runs.network import CapturedStream, Network, first_stages
from unconv.runs.survey import Plan, survey, work
from unconv.stage import Stage
from unconv.stages import Stages
from unconv.verbs import coherence, invert, report, reproduce, rip, train_decoder
from unconv.verbs.forecast import Forecast, Memory, duration, meter, text_of
from unconv.verbs.opening import choose_stages, open_images, open_model
from unconv.verbs.options import Coherence, ImageOptions, Invert, Report, Reproduce, Rip, Sparsity, TrainDecoder
from unconv.verbs.progress import progress_bar
from unconv.verbs.sparsity import measured_fractions
from unconv.zoo import LoadedModel

LONGEST = 10.0  # seconds that are measured of one experiment
QUICK = 3.0  # seconds up to which a batch is measured too, after a single image


def run(options: Coherence | Invert | Report | Reproduce | Rip | Sparsity | TrainDecoder) -> tuple[dict[str, Any], str]:
    """Say what a verb would do.

    Args:
        options: The options of the verb.

    Returns:
        The JSON document and its text.
    """
    forecasts: dict[type, Callable[[Any], Forecast]] = {
        Coherence: _coherence,
        Invert: _invert,
        Report: _report,
        Reproduce: _reproduce,
        Rip: _rip,
        Sparsity: _sparsity,
        TrainDecoder: _train_decoder,
    }
    found = forecasts[type(options)](options)
    return asdict(found), text_of(found)


@dataclass(frozen=True)
class _Opened:
    """A model and its images, of which the first usable one is measured, and the first batch where that is quick."""

    options: ImageOptions
    loaded: LoadedModel
    network: Network
    images: ImageStream
    first: ImageStream
    several: ImageStream
    file: str
    found: Stages

    @property
    def batch(self) -> int:
        return min(self.options.batch, len(self.images))

    @property
    def batches(self) -> int:
        return math.ceil(len(self.images) / self.batch)

    def over_all(self, memory: Memory, act: Callable[[ImageStream], float]) -> float:
        """Seconds of an act over all images, from what it takes for one, or for a batch, which takes less apiece."""
        seconds = act(self.first)
        if len(self.several) == 1 or seconds > QUICK:
            return seconds * len(self.images)
        memory.paused = True
        try:
            return act(self.several) * self.batches
        finally:
            memory.paused = False

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
    paths = [images.paths[i] for i in batch.indices]
    first, several = (ImageStream(paths[:n], images.preprocess, n, root=images.root) for n in (1, len(paths)))
    return _Opened(options, loaded, network, images, first, several, batch.names[0], first_stages(network, first))


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
    certified = max(1, round(CERTIFIED * options.effort))
    spent: list[float] = []
    with meter(opened.network.device) as memory:
        parts: dict[str, float] = {}

        def act(images: ImageStream) -> float:
            counting, measuring, certifying, *inverting = _laps(opened.network, images, plan, memory)
            spent.append(counting + measuring + certifying + sum(inverting))
            parts["measuring"], parts["certifying"] = measuring, certifying / min(certified, len(images))
            everything = counting * sum(map(_work, stages)) / _cost_of_passing(trial, opened.found)
            taken = dict(zip(kinds, inverting, strict=True))
            return everything + sum(taken[_kind(way)] * _times(way, stages, trial, opened.found) for way in ways)

        forecast.seconds = opened.over_all(memory, act)
    once = parts["measuring"] + parts["certifying"] * min(len(opened.images), certified)
    forecast.seconds += once * sum(map(_work, stages)) / _work(trial)
    what = f"stage {trial.name} of {opened.file}"
    return _measured(forecast, opened, memory, _largest(stages, trial), what, sum(spent))


def _laps(network: Network, images: ImageStream, plan: Plan, memory: Memory) -> list[float]:
    """Seconds of every part of a survey of one stage over one batch: counting, measuring, certifying, then each way."""
    laps: list[float] = []
    last = time.perf_counter()
    with progress_bar(work(plan, len(images))) as bar:

        def lap(what: str, units: int) -> None:
            nonlocal last
            laps.append(time.perf_counter() - last)
            if len(laps) == 3 and not memory.paused:
                memory.begin_batches()
            bar(what, units)
            last = time.perf_counter()

        survey(network, images, plan, Unwritten(), lap)
    return laps


def _invert(options: Invert) -> Forecast:
    tuning = invert.chosen_tuning(options)
    ways = (invert.chosen_way(options),) if options.stage else invert.chosen_ways(options)
    for way in ways:
        tuning.check(way.method)
    opened = _open(options)
    names, _ = choose_stages(opened.loaded, opened.found, (options.stage,) if options.stage else options.stages)
    invert.equip(options, ways, opened.network, opened.found)
    stages = [opened.found.get(name) for name in names]
    trial, kinds = _typical(stages), _kinds(ways)
    forecast = opened.forecast("invert", names)
    forecast.ways = list(map(_way_in_words, ways))
    forecast.out = None if options.out is None else f"pictures into {options.out}"
    taken: dict[tuple[str, ...], float] = {}
    begun = time.perf_counter()
    with meter(opened.network.device) as memory, progress_bar(sum(map(passes, kinds.values()))) as bar:
        memory.begin_batches()
        for kind, way in kinds.items():
            region = options.region
            if not options.stage:
                imposed = fitting_region(trial, options.region or 2)
                region = imposed if way.code == "paper" else options.region and imposed

            def act(images: ImageStream, way: Way = way, region: int | None = region) -> float:
                start = time.perf_counter()
                needed = stages_needed(opened.found, trial.name, way)
                stream = CapturedStream(opened.network, images, lambda _: needed)
                for _ in invert_stream(stream, trial.name, way, region, tuning, lambda *_: None):
                    pass
                return time.perf_counter() - start

            taken[kind] = 0.0
            try:
                taken[kind] = opened.over_all(memory, act)
            except UnconvError:
                if options.stage:
                    raise
            bar(f"measuring {way.method}", passes(way))
    forecast.seconds = sum(taken[_kind(way)] * _times(way, stages, trial, opened.found) for way in ways)
    what = f"stage {trial.name} of {opened.file}"
    return _measured(forecast, opened, memory, _largest(stages, trial), what, time.perf_counter() - begun)


def _coherence(options: Coherence) -> Forecast:
    loaded, network = open_model(options)
    shape = loaded.example().shape[1:]
    found = network.stages(shape)
    names, _ = choose_stages(loaded, found, options.stages)
    stages = [found.get(name) for name in names]
    trial = _typical(stages)
    model = f"{loaded.name} ({loaded.weights.source}), on {network.device}"
    forecast = Forecast("coherence", model, "none", list(names))
    with meter(network.device) as memory:
        start = time.perf_counter()
        coherence.measure(trial, options)
        seconds = time.perf_counter() - start
    # every pair of filters, at every shift of one against the other
    pairs = [stage.operator.weight.shape[0] * stage.operator.weight.numel() for stage in stages]
    forecast.seconds = seconds * sum(pairs) / pairs[stages.index(trial)]
    forecast.memory_bytes = memory.largest(max(pairs) / pairs[stages.index(trial)], 1)
    forecast.measured = f"stage {trial.name} took {duration(seconds)}"
    return forecast


def _train_decoder(options: TrainDecoder) -> Forecast:
    job = train_decoder.prepare(options)
    training, held_out = split(len(job.photographs.paths), job.recipe)
    size = "x".join(map(str, job.shape[1:]))
    images = f"{len(training)} to train on and {len(held_out)} to validate on, the first at {size}"
    forecast = Forecast(
        "train-decoder",
        f"{job.model}, on {job.network.device}",
        f"{images}, {options.batch} at a time",
        [stage.name for stage in job.chain],
        [f"{options.steps} steps, validated every {options.every}"],
        _run_directory(job.path, job.config),
    )
    with meter(job.network.device) as memory:
        start = time.perf_counter()
        step, validation = first_steps(job.network, job.chain, job.photographs, job.recipe)
        spent = time.perf_counter() - start
    forecast.seconds = options.steps * step + math.ceil(options.steps / options.every) * validation
    forecast.memory_bytes = memory.largest(1.0, 1)
    forecast.measured = f"the first steps took {duration(spent)}"
    return forecast


def _sparsity(options: Sparsity) -> Forecast:
    opened = _open(options)
    names, _ = choose_stages(opened.loaded, opened.found, options.stages)
    forecast = opened.forecast("sparsity", names)
    with meter(opened.network.device) as memory:
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
    with meter(opened.network.device) as memory:
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
    if not any(reproduce.PARTS[name].network for name in names):
        note = "it looks at no network and takes seconds to a minute where --draws, --samples and --sizes are not given"
        out = None if options.out is None else str(options.out)
        return Forecast("reproduce", "none", "none", [], names, out, notes=[note])
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
    with meter(found.network.device) as memory:
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
        forecast.seconds, forecast.measured = total, f"the first steps took {duration(spent)}"
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


def _measured(forecast: Forecast, opened: _Opened, memory: Memory, scale: float, what: str, seconds: float) -> Forecast:
    forecast.memory_bytes = memory.largest(scale, opened.batch)
    forecast.measured = f"{what} took {duration(seconds)}"
    return forecast


def _typical(stages: Sequence[Stage]) -> Stage:
    """The first stage that costs about as much as others do: quick to reach, and not mere overhead."""
    middle = sorted(map(_work, stages))[len(stages) // 2]
    return next(stage for stage in stages if 2 * _work(stage) >= middle)


def _kind(way: Way) -> tuple[str, ...]:
    """What the cost of a way depends on: of what is known, only gates, with which a whole network is linear."""
    known = "gates" if way.method in WHOLE_NETWORK and way.side_info == "gates" else ""
    return way.recovered, way.code, way.method, known


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
