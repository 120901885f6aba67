"""Image and weights files as strangers send them, generated afresh for every test."""

from __future__ import annotations

import io
import json
import os
import pickle
import socket
import struct
import tarfile
import warnings
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save
from torch import Tensor, nn

Expected = Literal["used", "refused", "either"]
LIMIT = "more pixels than Pillow's limit"


@dataclass(frozen=True)
class Case:
    """One file."""

    path: Path  # where it is
    expected: Expected  # whether it can be used; "either" for random damage, which may hit nothing of weight
    reason: str = ""  # part of the reason where it is refused


@dataclass
class Corpus:
    """Files of one kind in a folder."""

    folder: Path
    cases: list[Case] = field(default_factory=list)

    def add(self, name: str | bytes, content: bytes, expected: Expected = "refused", reason: str = "") -> None:
        """Write a file."""
        self.make(os.fsdecode(name), lambda path: path.write_bytes(content), expected, reason)

    def make(self, name: str, make: Callable[[Path], object], expected: Expected = "refused", reason: str = "") -> None:
        """Make what need not be a file."""
        make(self.folder / name)
        self.cases.append(Case(self.folder / name, expected, reason))


# images


def photograph(width: int = 24, height: int = 18, seed: int = 0) -> Image.Image:
    """A smooth picture with noise on it."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def encoded(kind: str, image: Image.Image | None = None, **options: Any) -> bytes:
    """The bytes of an image file."""
    buffer = io.BytesIO()
    (image or photograph()).save(buffer, kind, **options)
    return buffer.getvalue()


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, *, depth: int = 8, colour: int = 2, extra: bytes = b"", data: bytes = b"") -> bytes:
    """A PNG that announces a size and holds what it is given."""
    start = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    body = png_chunk(b"IDAT", zlib.compress(data or b"\0" * 100))
    return b"\x89PNG\r\n\x1a\n" + start + extra + body + png_chunk(b"IEND", b"")


def patched(content: bytes, offset: int, new: bytes) -> bytes:
    return content[:offset] + new + content[offset + len(new) :]


def claiming(kind: str, side: int) -> bytes:
    """A small file whose header claims an image of ``side`` times ``side`` pixels."""
    content = encoded(kind)
    if kind == "PNG":
        return png(side, side)
    if kind == "BMP":
        return patched(content, 18, struct.pack("<ii", side, side))
    if kind == "GIF":
        return patched(content, 6, struct.pack("<HH", side, side))
    if kind == "PPM":
        return b"P6\n%d %d\n255\n" % (side, side) + b"\0" * 100
    if kind == "JPEG":
        frame = content.index(b"\xff\xc0")
        return patched(content, frame + 5, struct.pack(">HH", side, side))
    if kind == "WEBP":
        canvas = struct.pack("<I", side - 1)[:3] * 2
        chunk = b"VP8X" + struct.pack("<I", 10) + b"\0\0\0\0" + canvas + content[12:]
        return b"RIFF" + struct.pack("<I", len(chunk) + 4) + b"WEBP" + chunk
    assert kind == "TIFF"
    return tiff(side, side)


def tiff(width: int, height: int, *, next_directory: int = 0, bits: int = 8, compression: int = 1) -> bytes:
    """A little-endian TIFF of one grey strip."""
    tags = [(256, 4, width), (257, 4, height), (258, 3, bits), (259, 3, compression), (262, 3, 1), (273, 4, 200)]
    tags += [(277, 3, 1), (278, 4, height), (279, 4, 100)]
    body = struct.pack("<H", len(tags))
    for tag, kind, value in tags:
        body += struct.pack("<HHII", tag, kind, 1, value)
    return (b"II*\0" + struct.pack("<I", 8) + body + struct.pack("<I", next_directory)).ljust(200, b"\0") + b"\0" * 100


FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM")

OTHER_KINDS = {
    "text.jpg": b"hello, this is no image\n",
    "vector.png": b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>",
    "postscript.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
    "pickle.png": pickle.dumps({"a": 1}),
    "icon.png": b"\0\0\1\0\1\0\x10\x10\0\0\1\0 \0h\4\0\0\x16\0\0\0" + b"\0" * 40,
    "magic-only.jpg": b"\xff\xd8\xff\xe0",
    "zeros.bmp": b"\0" * 1000,
    "ones.gif": b"\xff" * 1000,
}

# each holds something that a shell, a terminal, a page, a log line or a format string would take for its own
STRANGE_NAMES = (
    b'it\'s "quoted".png',
    b"two\nlines.png",
    b"tab\tand \x07bell.png",
    b"\x1b[31mred\x1b[0m.png",
    b"<script>alert(1)<#script>.png",
    b"<img src=x onerror=alert(1)>.png",
    b"&amp;&#60;b&#62;.png",
    b"not utf-8 \xff\xfe.png",
    "\u202ecod.exe.png".encode(),
    "é e\u0301 ﬀ 漢字 \U0001f600.png".encode(),
    b"-rf.png",
    b"`touch owned`;&|.png",
    b"%s %n %d {0} {x!r}.png",
    b"back\\slash\\n.png",
    b"....png",
    b"a" * 251 + b".png",
    b"*?[x].png",
)


def images(folder: Path) -> list[Case]:
    """Malformed and odd images."""
    corpus = Corpus(folder)
    add, make = corpus.add, corpus.make
    rng = np.random.default_rng(0)
    for kind in FORMATS:
        content = encoded(kind)
        for share in (0.01, 0.2, 0.8):
            add(f"cut-{kind}-{share}.jpg", content[: max(1, int(share * len(content)))], "either")
        for i in range(4):
            data = np.frombuffer(content, np.uint8).copy()
            data[rng.integers(0, min(len(data), 120 if i % 2 else len(data)), 5)] = rng.integers(0, 256, 5)
            add(f"flipped-{kind}-{i}.jpg", data.tobytes(), "either")
        add(f"named-otherwise-{kind}.{'png' if kind == 'JPEG' else 'jpg'}", content, "used")
        add(f"trailing-{kind}.jpg", content + b"<script>" * 50, "used")
        add(f"claims-30000-{kind}.jpg", claiming(kind, 30_000), "refused", LIMIT)
    add("claims-12000.jpg", claiming("PNG", 12_000), "refused", LIMIT)
    add("claims-all-of-it.png", png(2**31 - 1, 2**31 - 1), "refused")
    add("empty.jpg", b"", "refused", "empty file")
    for name, content in OTHER_KINDS.items():
        add(name, content, "refused", "not an image" if name != "zeros.bmp" else "")

    for mode, name in (("L", "grey.png"), ("1", "bits.png"), ("P", "palette.png"), ("RGBA", "alpha.png")):
        add(name, encoded("PNG", photograph().convert(mode)), "used")
    add("grey-alpha.png", encoded("PNG", photograph().convert("LA")), "used")
    add("cmyk.jpg", encoded("JPEG", photograph().convert("CMYK")), "used")
    add("lab.tif", encoded("TIFF", photograph().convert("LAB")), "used")
    add("sixteen.png", encoded("PNG", Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000)), "used")
    add("sixteen.tif", encoded("TIFF", Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000)), "used")
    add("float.tif", encoded("TIFF", Image.fromarray(np.ones((8, 8), np.float32))), "refused", "floating-point")
    add("int.tif", encoded("TIFF", Image.fromarray(np.full((8, 8), 70_000, np.int32))), "refused", "32-bit")
    add("transparent-colour.png", encoded("PNG", transparency=(0, 0, 0)), "used")
    add("one-pixel.png", encoded("PNG", photograph(1, 1)), "used")
    add("strip.png", encoded("PNG", Image.new("L", (30_000, 1))), "used")
    for orientation in (1, 6, 99):
        exif = Image.Exif()
        exif[0x0112] = orientation
        add(f"turned-{orientation}.jpg", encoded("JPEG", exif=exif), "used")
    add("exif-damaged.jpg", encoded("JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff\1\x12"), "used")
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "lime", "blue")]
    for kind in ("GIF", "WEBP", "PNG", "TIFF", "MPO"):
        add(f"animated-{kind}.jpg", encoded(kind, frames[0], save_all=True, append_images=frames[1:]), "used")
        content = encoded(kind, frames[0], save_all=True, append_images=frames[1:])
        add(f"animated-cut-{kind}.jpg", content[: int(0.7 * len(content))], "either")

    bomb = zlib.compress(b"\0" * 100_000_000, 9)
    black = b"".join(b"\0" + b"\0\0\0" * 8 for _ in range(8))
    add("text-bomb.png", png(8, 8, data=black, extra=png_chunk(b"zTXt", b"Comment\0\0" + bomb)), "either")
    add("profile-bomb.png", png(8, 8, data=black, extra=png_chunk(b"iCCP", b"name\0\0" + bomb)), "either")
    add("data-bomb.png", png(8, 8, data=b"\0" * 100_000_000), "either")
    add("long-text.png", png(8, 8, data=black, extra=png_chunk(b"tEXt", b"a\0" + b"<b>" * 500_000)), "either")
    add("false-checksum.png", encoded("PNG")[:29] + b"abcd" + encoded("PNG")[33:], "refused")
    add("no-pixels.png", png(0, 0), "refused")
    add("no-pixels.ppm", b"P6\n0 0\n255\n", "refused")
    add("long-number.ppm", b"P6\n" + b"9" * 5000 + b" 4\n255\n", "refused")
    add("depth-3.png", png(8, 8, depth=3, data=black), "refused")
    add("chunk-length.png", png(8, 8, extra=b"\xff\xff\xff\xffzTXt"), "refused")
    add("upside-down.bmp", patched(encoded("BMP"), 22, struct.pack("<i", -18)), "used")
    add("endless.tif", tiff(10, 10, next_directory=8), "used")
    add("compression-9999.tif", tiff(10, 10, compression=9999), "refused")
    add("no-size.gif", patched(encoded("GIF"), 6, b"\0\0\0\0"), "either")
    add("two-frames-of-headers.jpg", encoded("JPEG")[:-2] + encoded("JPEG")[2:], "either")
    add("endless-segments.jpg", b"\xff\xd8" + b"\xff\xe1\0\2" * 5000, "refused")

    good = encoded("PNG")
    for i, name in enumerate(STRANGE_NAMES):
        if i % 2:
            add(name, good, "used")
        else:
            add(name, b"no image", "refused", "not an image")

    make("folder.jpg", Path.mkdir, reason="a folder")
    make("broken-link.jpg", lambda p: p.symlink_to(folder / "nowhere"), reason="broken link")
    make("loop.jpg", lambda p: p.symlink_to(p), reason="symbolic links")
    make("pipe.jpg", os.mkfifo, reason="not a regular file")
    make("zero-device.jpg", lambda p: p.symlink_to("/dev/zero"), reason="not a regular file")
    make("socket.jpg", _bind, reason="not a regular file")
    make("link-to-image.jpg", lambda p: p.symlink_to(folder / "grey.png"), "used")
    make("hard-link.jpg", lambda p: p.hardlink_to(folder / "grey.png"), "used")
    return corpus.cases


def _bind(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        here = os.open(path.parent, os.O_RDONLY)
        try:
            # the whole path may be too long for a socket
            made.bind(f"/proc/self/fd/{here}/{path.name}")
        finally:
            os.close(here)


# weights


class Model(nn.Module):
    """What the weights are fitted into."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)


def state(seed: int = 0) -> dict[str, Tensor]:
    """Weights that fit."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"conv.weight": (4, 3, 3, 3), "conv.bias": (4,)}
    return {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}


def safetensors(header: Any, body: bytes = b"\0" * 448, length: int | None = None) -> bytes:
    """A safetensors file with any header."""
    data = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(data) if length is None else length) + data + body


def entry(dtype: Any = "F32", shape: Any = (4, 3, 3, 3), offsets: Any = (0, 432)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


HEADERS: dict[str, Any] = {
    "not-json": b"not json at all",
    "null": None,
    "cut-json": b'{"conv.weight":{"dtype":"F32",',
    "deep": b"[" * 50_000,
    "not-utf8": b'\xff\xfe{"a":1}',
    "nan": b'{"conv.weight":NaN}',
    "same-key-twice": b"{%s,%s}" % ((b'"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}',) * 2),
    "no-dtype": {"conv.weight": {"shape": [1], "data_offsets": [0, 4]}},
    "entry-is-list": {"conv.weight": [1, 2, 3]},
    "shape-is-negative": {"conv.weight": entry(shape=[-4, 3, 3, 3])},
    "shape-overflows": {"conv.weight": entry(shape=[2**32, 2**32, 3, 3])},
    "dtype-unknown": {"conv.weight": entry(dtype="X9")},
    "dtype-is-code": {"conv.weight": entry(dtype="__import__('os').system('touch owned')")},
    "offsets-negative": {"conv.weight": entry(offsets=[-432, 0])},
    "offsets-beyond": {"conv.weight": entry(offsets=[0, 4320])},
    "offsets-short": {"conv.weight": entry(offsets=[0, 4])},
    "hole": {"conv.weight": entry(), "conv.bias": entry(shape=[4], offsets=[440, 456])},
    "not-all-used": {"conv.weight": entry()},
    "metadata-holds-numbers": {"__metadata__": {"a": 1}, "conv.weight": entry()},
    "no-tensors": {},
}

TENSORS: dict[str, dict[str, Tensor]] = {
    "wrong-shape": state() | {"conv.weight": torch.zeros(4, 3, 5, 5)},
    "no-size": state() | {"conv.weight": torch.zeros(0)},
    "integers": state() | {"conv.weight": torch.zeros(4, 3, 3, 3, dtype=torch.int64)},
    "complex": state() | {"conv.bias": torch.zeros(4, dtype=torch.complex64)},
    "nan": state() | {"conv.bias": torch.tensor([0, torch.nan, 0, 0])},
    "too-large-for-float32": state() | {"conv.bias": torch.full((4,), 1e300, dtype=torch.float64)},
    "stranger": state() | {"conv.head": torch.zeros(2)},
    "markup": state() | {"conv.<script>alert(1)</script>": torch.zeros(2)},
    "escape": state() | {"conv.\x1b[31m\n\u202eweight": torch.zeros(2)},
    "long-name": state() | {"conv." + "w" * 100_000: torch.zeros(2)},
    "empty-name": state() | {"conv.": torch.zeros(2)},
}


class Call:
    """A pickle of this calls a function when it is loaded."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.made = function, arguments

    def __reduce__(self) -> Any:
        return self.made


def calling(module: str, name: str, *arguments: str) -> bytes:
    """A pickle that names any global and calls it, whether it exists here or not."""
    words = b"".join(b"X" + struct.pack("<I", len(a.encode())) + a.encode() for a in arguments)
    return b"\x80\x02c" + f"{module}\n{name}\n".encode() + b"(" + words + b"tR."


def attacks(flag: Path) -> dict[str, bytes]:
    """Calls that would make a file if a pickle could make them."""
    code = f"open({str(flag)!r}, 'w').close()"
    touch = f"touch {flag}"
    return {
        "os.system": calling("os", "system", touch),
        "builtins.eval": calling("builtins", "eval", code),
        "python-2-eval": calling("__builtin__", "eval", code),
        "pathlib": calling("pathlib", "Path.touch", str(flag)),
        "getattr": calling("builtins", "getattr", "os", "system"),
        "torch.load": calling("torch", "load", str(flag)),
        "torch.jit": calling("torch.jit", "load", str(flag)),
        "torch-os": calling("torch.utils.data", "os.system", touch),
        "pickle.loads": calling("pickle", "loads", code),
    }


def zipped(records: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w", compression) as archive:
        warnings.simplefilter("ignore")  # of names that come twice
        for name, content in records.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def unzipped(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def saved(content: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def in_archive(pickled: bytes) -> bytes:
    """A file of torch.save with another pickle in it."""
    return zipped({k: pickled if k.endswith("data.pkl") else v for k, v in unzipped(saved(state())).items()})


def weights(folder: Path, flag: Path) -> list[Case]:
    """Malformed and malicious weights."""
    corpus = Corpus(folder)
    add, make = corpus.add, corpus.make
    whole = save(state())
    for name, content in {"safetensors": whole, "pth": saved(state())}.items():
        for share in (0.001, 0.1, 0.6, 0.99):
            add(f"cut-{share}.{name}", content[: max(1, int(share * len(content)))])
        add(f"longer.{name}", content + b"x" * 100, "either")
        add(f"empty.{name}", b"", reason="is empty")
        add(f"zeros.{name}", b"\0" * 1000)
        add(f"page.{name}", b"<!doctype html><title>404</title>")
    claimed = struct.unpack("<Q", whole[:8])[0]
    for length in (0, claimed - 1, claimed + 1, len(whole), 2**31, 2**64 - 1):
        add(f"length-{length}.safetensors", struct.pack("<Q", length) + whole[8:], reason="readable safetensors")
    for name, header in HEADERS.items():
        body = b"\0" * (4 if name == "same-key-twice" else 0 if name == "no-tensors" else 448)
        add(f"{name}.safetensors", safetensors(header, body))
    for name, tensors in TENSORS.items():
        add(f"{name}-tensors.safetensors", save(tensors))
        add(f"{name}-tensors.pth", saved(tensors))
    add("page-in-metadata.safetensors", save(state(), {"note": "<script>alert(1)</script>\n\x1b[31m"}), "used")
    for name, attack in attacks(flag).items():
        reason = "refused, since loading it could run code"
        add(f"{name}.pkl.pth", attack, reason=reason)
        add(f"{name}.zip.pth", in_archive(attack), reason=reason)
    touch = Call(os.system, f"touch {flag}")
    for name, content in {
        "in-state": {"conv.weight": touch},
        "in-model": nn.Sequential(nn.Linear(2, 2)),
        "beside": state() | {"note": touch},
        "in-wrapper": {"state_dict": state(), "hyper": {"optimizer": touch}},
    }.items():
        for zip_format in (True, False):
            content_bytes = saved(content, _use_new_zipfile_serialization=zip_format)
            add(f"{name}-{'zip' if zip_format else 'legacy'}.pth", content_bytes, reason="could run code")
    for name, content in {
        "tensor": torch.zeros(2),
        "numbers": {"epoch": 3},
        "number-key": {3: torch.zeros(1)},
        "sparse": {"conv.weight": torch.zeros(2, 2).to_sparse()},
        "meta": {"conv.weight": torch.zeros(2, device="meta")},
        "giant": {"conv.bias": torch.zeros(1).expand(10**15)},
        "nothing": {},
    }.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            add(f"holds-{name}.pth", saved(content))

    records = unzipped(saved(state()))
    key = next(k for k in records if k.endswith("data/0"))
    pickled = next(v for k, v in records.items() if k.endswith("data.pkl"))
    root = key.split("/")[0]
    add("compressed.pth", zipped(records, zipfile.ZIP_DEFLATED), reason="compressed archive")
    bomb = {**records, key: b"\0" * 100_000_000}
    add("bomb.pth", zipped(bomb, zipfile.ZIP_DEFLATED), reason="compressed archive")
    stored = zipped(records)
    place = stored.rindex(b"PK\1\2", 0, stored.rindex(key.encode()))
    sizes = struct.pack("<II", 2**31, 2**31)
    add("claims-2-gigabytes.pth", patched(stored, place + 20, sizes))
    add("storage-claims-more.pth", in_archive(pickled.replace(b"Kl", b"J\xff\xff\xff\x7f")))
    add("record-missing.pth", zipped({k: v for k, v in records.items() if k != key}))
    add("record-empty.pth", zipped({**records, key: b""}))
    add("no-pickle.pth", zipped({k: v for k, v in records.items() if not k.endswith("data.pkl")}))
    add("empty-pickle.pth", in_archive(b""))
    add("climbing.pth", zipped({**records, f"{root}/../../owned": b"x", "../owned": b"x"}), "either")
    add("empty-archive.pth", zipped({}))
    add("memo-beyond.pth", in_archive(b"\x80\x02j\xff\xff\xff\x7f."))
    add("deep.pth", in_archive(b"\x80\x02" + b"]" * 100_000 + b"."), "refused")
    add("long-number.pth", in_archive(b"\x80\x02\x8b" + struct.pack("<I", 2**31 - 1) + b"."))
    program = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), program)
    add("program.pth", program.getvalue(), reason="TorchScript")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in ("sys_info", "pickle", "tensors", "storages", "../owned"):
            info = tarfile.TarInfo(name)
            info.size = 10
            archive.addfile(info, io.BytesIO(b"x" * 10))
    add("before-zip.tar.pth", buffer.getvalue())
    add("packed.gz.pth", b"\x1f\x8b\x08" + b"\0" * 40)
    numbers = io.BytesIO()
    np.save(numbers, np.array([touch], dtype=object), allow_pickle=True)
    add("numpy.npy.pth", numbers.getvalue())
    add("safetensors-as.pth", whole)
    add("pth-as.safetensors", saved(state()))
    for name in (b"it's <b>\n\xff.pth", "\u202ehtp.safetensors".encode()):
        add(name, b"no weights")

    good = OrderedDict(state())
    for name in ("w.pth", "w.PT", "w.bin"):
        add(f"good-{name}", saved(good), "used")
    add("good-legacy.pth", saved(good, _use_new_zipfile_serialization=False), "used")
    add("good.safetensors", whole, "used")

    make("folder.pth", Path.mkdir)
    make("broken-link.pth", lambda p: p.symlink_to(folder / "nowhere"))
    make("pipe.pth", os.mkfifo)
    make("zero-device.safetensors", lambda p: p.symlink_to("/dev/zero"))
    return corpus.cases


def seeds() -> Iterator[tuple[str, bytes]]:
    """Small whole files to start mutations from."""
    for kind in FORMATS:
        yield f".{kind.lower()}", encoded(kind)
    yield ".gif", encoded("GIF", Image.new("P", (8, 8)), save_all=True, append_images=[Image.new("P", (8, 8), 1)])
    yield ".png", encoded("PNG", photograph().convert("P"), transparency=0)
    yield ".png", encoded("PNG", Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8)))
    yield ".tif", encoded("TIFF", compression="tiff_lzw")
    yield ".tif", encoded("TIFF", compression="tiff_deflate")
    yield ".safetensors", save(state())
    yield ".pth", saved(state())
    yield ".pth", saved({"state_dict": {f"module.{k}": v for k, v in state().items()}, "epoch": 3})
    yield ".pth", saved(state(), _use_new_zipfile_serialization=False)
