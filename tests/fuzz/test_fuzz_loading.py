"""Seeded mutations of image and weights files: any bytes are used, or refused in one line, and nothing else happens.

    python tests/fuzz/test_fuzz_loading.py --seconds 300

The first byte of an input picks the reader, the rest is the file. An input that breaks the promise is kept as
``crash-*`` in the current folder; give its path to run it again.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

import torch
from PIL import Image

from unconv.checkpoint import choose_weights, fit_weights, read_weights
from unconv.errors import UnconvError
from unconv.images import ImageStream
from unconv.preprocessing import Preprocess

sys.path.append(str(Path(__file__).parents[1] / "robustness"))

import malformed

SUFFIXES = (".jpg", ".safetensors", ".pth")
PREPROCESS = Preprocess(resize=16, crop=16)
MOST_PIXELS = 2_000_000  # a header alone can ask for as much memory as is allowed, which says nothing about readers


def read(data: bytes, folder: Path) -> str | None:
    """Read one file, check what is promised, and return the reason of a refusal; ``None`` where it is used."""
    suffix = SUFFIXES[data[0] % len(SUFFIXES)] if data else ".jpg"
    path = folder / f"x{suffix}"
    path.write_bytes(data[1:])
    if suffix == ".jpg":
        stream = ImageStream([path], PREPROCESS, need_one=False)
        used = list(stream)
        assert len(used) + len(stream.skipped) == 1
        if used:
            assert used[0].inputs.shape == (1, 3, 16, 16)
            assert torch.isfinite(used[0].inputs).all()
            return None
        said = stream.skipped[0].reason
    else:
        model = malformed.Model()
        try:
            fit_weights(model, choose_weights(model, read_weights(path)), path.name)
        except UnconvError as error:
            said = str(error)
            assert path.name in said, said
        else:
            assert all(torch.isfinite(tensor).all() for tensor in model.state_dict().values())
            return None
    assert said, "a refusal without a reason"
    assert said.isprintable(), said
    assert len(said) < 1000, said
    return said


def seeds() -> list[bytes]:
    """Whole files of every kind, as inputs."""
    found = []
    for suffix, content in malformed.seeds():
        reader = SUFFIXES.index(suffix) if suffix in SUFFIXES[1:] else 0
        found.append(bytes([reader]) + content)
    return found


def mutate(chance: random.Random, data: bytes, other: bytes) -> bytes:
    """A few changes: bytes, bits, words, deletions, insertions, splices and cuts."""
    new = bytearray(data)
    for _ in range(chance.randint(1, 6)):
        # headers are at the front, and at the end of an archive
        place = chance.choice((
            chance.randrange(len(new)),
            min(chance.randrange(200), len(new) - 1),
            -chance.randint(1, min(200, len(new))),
        ))
        match chance.randrange(7):
            case 0:
                new[place] = chance.randrange(256)
            case 1:
                new[place] ^= 1 << chance.randrange(8)
            case 2:
                new[place : place + 4] = chance.choice((b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff", b"\0\0\0\x80"))
            case 3:
                del new[place : place + chance.randint(1, 40)]
            case 4:
                new[place:place] = bytes(chance.randrange(256) for _ in range(chance.randint(1, 20)))
            case 5:
                start = chance.randrange(len(other))
                new[place:place] = other[start : start + chance.randint(1, 60)]
            case _:
                new = new[: max(2, chance.randrange(len(new)))] if chance.random() < 0.3 else new
        if not new:
            return data
    return bytes([data[0]]) + bytes(new[1:])


def test_seeds_are_used_and_mutations_are_used_or_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", MOST_PIXELS)
    whole = seeds()
    assert [read(data, tmp_path) for data in whole] == [None] * len(whole)
    chance = random.Random(0)
    said = [read(mutate(chance, chance.choice(whole), chance.choice(whole)), tmp_path) for _ in range(150)]
    assert len({reason for reason in said if reason is not None}) > 5
    assert read(b"", tmp_path) == "empty file"


def mutate_for(seconds: float, seed: int, folder: Path) -> None:
    """Read mutations of whole files, and of mutated ones that gave a new reason."""
    chance = random.Random(seed)
    pool = seeds()
    reasons: set[str] = set()
    counts = {"used": 0, "refused": 0}
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        data = mutate(chance, chance.choice(pool), chance.choice(pool))
        try:
            said = read(data, folder)
        except BaseException:
            path = Path(f"crash-{random.randbytes(6).hex()}")
            path.write_bytes(data)
            print(f"broken promise: {path}", file=sys.stderr)
            raise
        counts["used" if said is None else "refused"] += 1
        kind = "".join(c for c in said or "" if not c.isdigit())[:60]
        if kind not in reasons and len(pool) < 2000:
            reasons.add(kind)
            pool.append(data)
    total = sum(counts.values())
    print(f"{total} executions in {seconds:.0f} s: {counts}, {len(reasons)} kinds of reason, 0 broken promises")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("inputs", nargs="*", type=Path, help="inputs to run once instead")
    options = parser.parse_args()
    torch.set_num_threads(1)
    Image.MAX_IMAGE_PIXELS = MOST_PIXELS
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        for path in options.inputs:
            print(f"{path}: {read(path.read_bytes(), Path(folder)) or 'used'}")
        if not options.inputs:
            mutate_for(options.seconds, options.seed, Path(folder))


if __name__ == "__main__":
    main()
