"""Two ranks with one thread each against one process with two threads, in images per second.

    python benchmarks/ranks.py --images photos/ --pairs 5

Both run the same ``unconv report`` on the same images, each into a fresh directory, in turn; a run's time is that of
its parts, from the first that it begins to the last that it writes, so that starting Python and drawing the page, which
do not grow with the images, are told apart. The ratio of the two rates is what counts, and its spread over the pairs.
Writes ``benchmarks/ranks.json``.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from unconv.evaluate.run_directory import environment
from unconv.io import write_json

REPORT = ("report", "cifar-vgg", "--size", "32", "--samples", "2", "--pictures", "0")


def write_images(folder: Path, count: int) -> None:
    """Smooth random pictures, for a measurement that needs no data."""
    generator = np.random.default_rng(0)
    for i in range(count):
        pixels = generator.integers(0, 256, (6, 6, 3), np.uint8)
        Image.fromarray(pixels).resize((32, 32), Image.Resampling.BICUBIC).save(folder / f"{i:04d}.png")


def run(words: list[str], out: Path, ranks: int, threads: int) -> dict[str, float]:
    """One run in so many ranks, to its end.

    Args:
        words: The command without its directory.
        out: The directory.
        ranks: Number of processes.
        threads: Of each.

    Returns:
        Seconds from start to end, and from the first part to the last.

    Raises:
        SystemExit: If a process fails.
    """
    start = time.time()
    running = []
    for number in range(ranks):
        environ = os.environ | {"OMP_NUM_THREADS": str(threads), "RANK": str(number), "WORLD_SIZE": str(ranks)}
        command = [sys.executable, "-m", "unconv", *words, "--out", str(out)]
        running.append(
            subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        )
    for process in running:
        _, said = process.communicate()
        if process.returncode:
            raise SystemExit(f"{' '.join(words)}: {said}")
    times = [part.stat().st_mtime for part in (out / "parts").iterdir()]
    begun = (out / "config.json").stat().st_mtime
    return {"whole": time.time() - start, "parts": max(times) - begun}


def measure(words: list[str], images: int, pairs: int) -> dict[str, object]:
    """Paired runs, each kind first in every other pair."""
    rates: dict[str, list[float]] = {"one process, two threads": [], "two ranks, one thread each": []}
    kinds = dict(zip(rates, ((1, 2), (2, 1)), strict=True))
    whole: dict[str, list[float]] = {name: [] for name in rates}
    for pair in range(pairs):
        for name in list(rates)[:: 1 if pair % 2 else -1]:
            with tempfile.TemporaryDirectory() as folder:
                seconds = run(words, Path(folder) / "run", *kinds[name])
            rates[name].append(images / seconds["parts"])
            whole[name].append(seconds["whole"])
            print(f"{name}: {rates[name][-1]:.3f} images per second, {seconds['whole']:.1f} s in all", file=sys.stderr)
    one, two = rates.values()
    ratios = [b / a for a, b in zip(one, two, strict=True)]
    return {
        "images_per_second": {name: [round(rate, 4) for rate in found] for name, found in rates.items()},
        "seconds_in_all": {name: [round(seconds, 1) for seconds in found] for name, found in whole.items()},
        "ratio": {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)},
    }


def main() -> None:
    """Measure, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="folder; made pictures where not given")
    parser.add_argument("--limit", type=int, default=64)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--effort", default="0.1")
    parser.add_argument("--methods", nargs="+", default=["transpose", "min-norm"])
    parser.add_argument("--batch", default="4")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        if given.images is None:
            write_images(Path(made), given.limit)
        words = [*REPORT, "--effort", given.effort, "--methods", *given.methods, "--batch", given.batch]
        words += ["--limit", str(given.limit), "--images", str(given.images or made)]
        found = measure(words, given.limit, given.pairs)
    settings = {"limit": given.limit, "effort": given.effort, "methods": given.methods, "batch": given.batch}
    settings["images"] = "made" if given.images is None else given.images.name
    load = dict(zip(("1 min", "5 min", "15 min"), os.getloadavg(), strict=True))
    record = {"command": "python benchmarks/ranks.py", "pairs": given.pairs, "settings": settings} | found
    write_json(given.out, record | {"load_at_the_end": load, "environment": environment()})
    ratio = found["ratio"]
    print(f"two ranks against one process: {ratio}")


if __name__ == "__main__":
    main()
