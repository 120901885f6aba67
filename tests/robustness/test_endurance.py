"""100,000 images through the real loader and a stub network: memory and file handles stay where they are.

    python tests/robustness/test_endurance.py --images 100000

Every tenth image is broken, every hundredth has another size. Prints resident memory and open files at the start
(after a thousand images) and at the end, as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import malformed
import pytest
import torch
from torch import nn

from unconv.evaluate.network import CapturedStream, Network
from unconv.evaluate.theory import count_nonzeros
from unconv.images import ImageStream, find_images
from unconv.preprocessing import Preprocess


def resident() -> float:
    """Resident memory in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def handles() -> int:
    """Number of open files."""
    return len(os.listdir("/proc/self/fd"))


def make(folder: Path, count: int) -> None:
    """Hard links to a few files, in folders of a thousand."""
    kinds = {
        "good.jpg": malformed.encoded("JPEG", malformed.photograph(16, 16), quality=90),
        "good.png": malformed.encoded("PNG", malformed.photograph(16, 16, seed=1)),
        "palette.png": malformed.encoded("PNG", malformed.photograph(16, 16).convert("P")),
        "other.png": malformed.encoded("PNG", malformed.photograph(24, 16)),
        "broken.png": malformed.encoded("PNG")[:200],
    }
    for name, content in kinds.items():
        (folder / name).write_bytes(content)
    for i in range(count):
        if i % 1000 == 0:
            inside = folder / "in" / f"{i // 1000:03d}"
            inside.mkdir(parents=True)
        kind = "other.png" if i % 100 == 50 else "broken.png" if i % 10 == 3 else list(kinds)[i % 3]
        os.link(folder / kind, inside / f"{i:06d}{kind[-4:]}")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="there is no /proc to read memory and handles from")
def test_memory_and_file_handles_stay_flat_over_many_images(capsys):
    words = [sys.executable, __file__, "--images", "100000"]
    environ = os.environ | {"OMP_NUM_THREADS": "1"}
    found = json.loads(subprocess.run(words, check=True, capture_output=True, text=True, env=environ).stdout)
    with capsys.disabled():
        print(f"\n{found}")
    assert (found["used"], found["skipped"]) == (90_000, 10_000)
    assert found["open_files"]["end"] == found["open_files"]["start"]
    # names and reasons of ten thousand skipped images are a few MiB
    assert found["resident_mib"]["end"] < found["resident_mib"]["start"] + 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000)
    count = parser.parse_args().images
    torch.set_num_threads(1)
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 2, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)).eval().requires_grad_(False)
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), count)
        paths = find_images(Path(folder) / "in")
        network = Network(module, Preprocess())
        stream = CapturedStream(network, ImageStream(paths, network.preprocess, 8, root=folder), ["0"])
        seen, first, highest = 0, (0.0, 0), 0.0
        start = time.perf_counter()

        def progress(_: str, images: int) -> None:
            nonlocal seen, first, highest
            seen += images
            if not first[1] and seen >= min(1000, count // 4):
                first = resident(), handles()
            if seen % 1000 < images:
                highest = max(highest, resident())

        statistics, _ = count_nonzeros(stream, ["0"], None, progress)
        found = {
            "images": count,
            "used": statistics.blocks["0"].activation.images,
            "skipped": len(stream.skipped),
            "seconds": round(time.perf_counter() - start, 1),
            "resident_mib": {"start": round(first[0], 1), "highest": round(highest, 1), "end": round(resident(), 1)},
            "open_files": {"start": first[1], "end": handles()},
        }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
