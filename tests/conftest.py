"""Shared by all tests: one thread (the tensors are tiny), and where research data is looked for."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def research_data() -> Path:
    """The folder that UNCONV_DATA names, or a skip that says so."""
    folder = os.environ.get("UNCONV_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("research data absent: set UNCONV_DATA to the folder that holds it")
    return Path(folder)


@pytest.fixture(scope="session")
def smooth_pictures():
    """Writes pictures without fine detail into a folder, the same ones every time."""

    def write(folder: Path, count: int, size: tuple[int, int] = (16, 16)) -> list[Path]:
        folder.mkdir(exist_ok=True)
        rng = np.random.default_rng(0)
        for i in range(count):
            coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8))
            coarse.resize(size, Image.Resampling.BICUBIC).save(folder / f"{i:02d}.png")
        return sorted(folder.glob("*.png"))

    return write
