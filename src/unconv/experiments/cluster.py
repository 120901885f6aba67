"""How long would a run over many images take on so many machines? A simulation from the measured costs of a small run.

    python -m unconv.experiments.cluster runs/measured --images 50000 --ranks 1 2 4 8 16 32 64 --speedup 1

``runs/measured`` is the directory of an ``unconv report`` by one process from start to end without a break. What each
part has cost is the time between it and the part before it; how long solvers took is in its rows; the loader is timed
here, on the run's images. The rest follows how ranks work:

* the block of number ``b`` is rank ``b mod N``'s, the stage of number ``i`` from the last on likewise;
* counting is a pass of its own, and no rank goes on before the slowest has counted;
* a block costs what a measured block does, drawn with replacement, for the images that it holds;
* rank 0 waits for the slowest, then reads all rows and writes the results, which is taken for three readings.

Assumed, not measured: every rank runs as fast as the measured process did, whatever runs beside it; a file system that
is as fast for 64 ranks as for one; nobody dies; ranks start up to ``--skew`` seconds apart. ``--speedup`` divides the
time of solvers and of passes through the network, and nothing else: not loading, not writing, not merging. It is a
factor to choose, not one that was measured; at 1 the costs are those of the machine on which the run was made.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from unconv.atomic import write_json
from unconv.errors import UnconvError
from unconv.images import ImageStream, display_name, find_images, sample_photographs
from unconv.preprocess import Preprocess

TABLE = ("<!-- table: cluster -->", "<!-- end -->")


@dataclass(frozen=True)
class Costs:
    """What a measured run has cost, in seconds of its machine.

    Attributes:
        device: Where it computed.
        images: Number of its images.
        batch: Images of a block.
        rows: Rows per image.
        load: Reading and preparing an image, once.
        count: Passing an image through the network, without loading it.
        solve: Solvers, per image, one value for each block.
        rest: What a block costs besides, per image: another pass, pictures, comparing, writing.
        stages: Measuring and certifying, one value for each stage.
        merge: Reading and writing a row at the end.
        start: From the start of a process to the first image.
    """

    device: str
    images: int
    batch: int
    rows: float
    load: float
    count: float
    solve: tuple[float, ...]
    rest: float
    stages: tuple[float, ...]
    merge: float
    start: float


@dataclass(frozen=True)
class Outcome:
    """A simulated run.

    Attributes:
        ranks: Number of processes.
        seconds: From the start to the page.
        speed: How many times faster than one rank.
        efficiency: That per rank.
        imbalance: Longest time of a rank's share over the mean.
        waiting: Share of all ranks' time that is spent waiting for others.
    """

    ranks: int
    seconds: float
    speed: float
    efficiency: float
    imbalance: float
    waiting: float


def measured(run: Path, start: float | None = None, load: float | None = None) -> Costs:
    """Read the costs of a run that one process has made without a break.

    Args:
        run: The run directory.
        start: Seconds to start a process; measured where ``None``.
        load: Seconds to load an image; measured on the run's images where ``None``.

    Returns:
        The costs.

    Raises:
        UnconvError: If the directory holds no such run.
    """
    name = display_name(run)
    try:
        config = json.loads((run / "config.json").read_text())
        parts = sorted((run / "parts").glob("*.json"), key=lambda p: p.stat().st_mtime_ns)
        contents = {part.stem: json.loads(part.read_text()) for part in parts}
    except (OSError, ValueError) as error:
        raise UnconvError(f"{name} holds no run that can be read; give the directory of unconv report") from error
    if config.get("verb") != "report" or not (run / "results.parquet").exists():
        raise UnconvError(f"{name} holds no finished report; give the directory of unconv report")
    stamps = [(run / "config.json").stat().st_mtime, *(part.stat().st_mtime for part in parts)]
    spent = {part.stem: after - before for part, before, after in zip(parts, stamps, stamps[1:], strict=False)}
    kinds = ("count", "activity", "measure", "certificate", "inversion")
    order = [kinds.index(part.stem.split("-")[0]) for part in parts]
    if order != sorted(order) or "activity" not in spent:
        raise UnconvError(f"{name} was not made in one go by one process, so its times say nothing; make it anew")
    blocks = {stem: part for stem, part in contents.items() if stem.startswith("inversion") and part["rows"]}
    sizes = {stem: len({row["image"] for row in part["rows"]}) for stem, part in blocks.items()}
    images = sum(sizes.values())
    solve = tuple(sum(row["seconds"] or 0 for row in part["rows"]) / sizes[stem] for stem, part in blocks.items())
    load = _loading(config) if load is None else load
    counting = sum(seconds for stem, seconds in spent.items() if stem.startswith("count"))
    inverting = sum(seconds for stem, seconds in spent.items() if stem in blocks)
    solving = sum(each * sizes[stem] for each, stem in zip(solve, blocks, strict=True))
    number = len(config["stages"])
    begun = time.perf_counter()
    for part in parts:
        json.loads(part.read_text())
    rows = sum(len(part["rows"]) for part in blocks.values())
    return Costs(
        device=config["device"],
        images=images,
        batch=config["batch"],
        rows=rows / images,
        load=load,
        count=max(0.0, counting / images - load),
        solve=solve,
        rest=max(0.0, (inverting - solving) / images - load),
        stages=tuple(spent[f"measure-{i:03d}"] + spent[f"certificate-{i:03d}"] for i in range(number)),
        # the tally, the results and the page's pictures each read parts; three readings stand for that and the writing
        merge=3 * (time.perf_counter() - begun) / rows,
        start=_starting() if start is None else start,
    )


def simulate(
    costs: Costs, images: int, ranks: int, *, speedup: float = 1.0, skew: float = 30.0, seed: int = 0
) -> float:
    """Seconds of a run, and nothing else; see ``outcomes``.

    Args:
        costs: Of the measured run.
        images: Number of images.
        ranks: Number of processes.
        speedup: Divides the time of solvers and of passes through the network.
        skew: Seconds by which ranks start apart at most.
        seed: Of the draws of blocks, which are the same for any number of ranks, and of starts.

    Returns:
        Seconds.
    """
    return _simulated(costs, images, ranks, speedup, skew, seed)[0]


def outcomes(
    costs: Costs, images: int, ranks: Sequence[int], *, speedup: float = 1.0, skew: float = 30.0, seed: int = 0
) -> list[Outcome]:
    """Runs by so many ranks, compared with one.

    Args:
        costs: Of the measured run.
        images: Number of images.
        ranks: Numbers of processes.
        speedup: As for ``simulate``.
        skew: As for ``simulate``.
        seed: As for ``simulate``.

    Returns:
        One outcome for each.

    Raises:
        ValueError: If a number is out of range.
    """
    if images < 1 or min(ranks) < 1 or not speedup > 0 or skew < 0:
        raise ValueError("images and ranks are at least 1, speedup above 0, skew at least 0")
    alone = simulate(costs, images, 1, speedup=speedup, skew=skew, seed=seed)
    found = []
    for count in ranks:
        seconds, busy = _simulated(costs, images, count, speedup, skew, seed)
        longest, mean = max(busy), statistics.fmean(busy)
        speed = alone / seconds
        found.append(Outcome(count, seconds, speed, speed / count, longest / mean, 1 - mean / seconds))
    return found


def _simulated(
    costs: Costs, images: int, ranks: int, speedup: float, skew: float, seed: int
) -> tuple[float, list[float]]:
    chance = random.Random(seed)
    blocks = [min(costs.batch, images - i) for i in range(0, images, costs.batch)]
    solving = [size * chance.choice(costs.solve) / speedup for size in blocks]
    starts = [costs.start + (chance.uniform(0, skew) if ranks > 1 else 0) for _ in range(ranks)]
    counting, inverting = [0.0] * ranks, [0.0] * ranks
    for number, (size, solve) in enumerate(zip(blocks, solving, strict=True)):
        counting[number % ranks] += size * (costs.load + costs.count / speedup)
        inverting[number % ranks] += solve + size * (costs.load + costs.rest)
    for number, seconds in enumerate(costs.stages):
        inverting[(-1 - number) % ranks] += seconds
    together = max(start + count for start, count in zip(starts, counting, strict=True))
    merging = images * costs.rows * costs.merge
    busy = [sum(own) for own in zip(starts, counting, inverting, strict=True)]
    return together + max(inverting) + merging, busy


def _loading(config: dict[str, Any]) -> float:
    given, how = config["images"]["given"], config["preprocessing"]
    if "function" in how:
        raise UnconvError("the preprocessing of the run is a function of the user's; say --load SECONDS")
    paths = find_images([Path(path) for path in given]) if isinstance(given, list) else sample_photographs()
    stream = ImageStream(paths[: config["images"]["count"]], Preprocess.from_description(how))
    begun = time.perf_counter()
    used = sum(len(batch.names) for batch in stream)
    return (time.perf_counter() - begun) / used


def _starting() -> float:
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import unconv.verbs.report"], check=True)
    return time.perf_counter() - begun


def table(found: dict[str, Any]) -> str:
    """What a simulation has found, in Markdown.

    Args:
        found: What ``main`` writes.

    Returns:
        A table with its caption.
    """
    costs, settings = found["costs"], found["settings"]
    lines = ["| ranks | wall-clock time | times one rank | efficiency | longest share / mean | waiting |"]
    lines += ["| ---: | ---: | ---: | ---: | ---: | ---: |"]
    for row in found["outcomes"]:
        lines.append(
            f"| {row['ranks']} | {_duration(row['seconds'])} | {row['speed']:.1f} | {100 * row['efficiency']:.1f} % "
            f"| {row['imbalance']:.3f} | {100 * row['waiting']:.1f} % |"
        )
    factor = settings["speedup"]
    assumed = "no speed-up is assumed" if factor == 1 else f"solvers and passes {factor:g} times faster, as assumed"
    lines += [
        "",
        f"{settings['images']:,} images, {costs['rows']:.0f} rows each, costs measured on {costs['device']} over "
        f"{costs['images']} images: {statistics.fmean(costs['solve']):.3g} s of solvers per image, "
        f"{costs['rest']:.3g} s besides, {1000 * costs['load']:.3g} ms to load an image, {costs['count']:.3g} s to "
        f"count it, {sum(costs['stages']):.3g} s for {len(costs['stages'])} stages, {costs['start']:.3g} s to start; "
        f"{assumed}.",
    ]
    return "\n".join(lines)


def _duration(seconds: float) -> str:
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min" if hours < 100 else f"{hours / 24:.1f} days"


def main() -> None:
    """Simulate, and write what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--speedup", type=float, default=1.0)
    parser.add_argument("--skew", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=float)
    parser.add_argument("--load", type=float)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--page", type=Path, help="fill the table of this page")
    given = parser.parse_args()
    try:
        costs = measured(given.run, given.start, given.load)
        settings = {name: getattr(given, name) for name in ("images", "speedup", "skew", "seed")}
        simulated = outcomes(costs, given.images, given.ranks, **{k: v for k, v in settings.items() if k != "images"})
    except (UnconvError, ValueError) as error:
        sys.exit(f"cluster: {error}")
    found = {"settings": settings, "costs": asdict(costs), "outcomes": [asdict(one) for one in simulated]}
    if given.out is not None:
        environment = json.loads((given.run / "environment.json").read_text())
        config = json.loads((given.run / "config.json").read_text())
        measured_on = {name: config[name] for name in ("model", "weights", "stages", "ways", "effort", "batch")}
        write_json(given.out, {"name": "cluster"} | found | {"measured": measured_on, "environment": environment})
    if given.page is not None:
        before, rest = given.page.read_text().split(TABLE[0])
        given.page.write_text(f"{before}{TABLE[0]}\n{table(found)}\n{TABLE[1]}{rest.split(TABLE[1], 1)[1]}")
    print(table(found))


if __name__ == "__main__":
    main()
