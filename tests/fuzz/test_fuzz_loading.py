"""The fuzz target itself: whole files are used, mutated ones keep the promise."""

import importlib.util
import random
import sys
from pathlib import Path

import pytest
from PIL import Image


@pytest.fixture
def fuzz(monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    spec = importlib.util.spec_from_file_location("fuzz_loading", Path(__file__).parent / "fuzz_loading.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_seeds_are_used_and_mutations_are_used_or_refused(fuzz):
    seeds = fuzz.seeds()
    assert [fuzz.read(data) for data in seeds] == [None] * len(seeds)
    chance = random.Random(0)
    said = [fuzz.read(fuzz.mutate(chance, chance.choice(seeds), chance.choice(seeds))) for _ in range(150)]
    assert len({reason for reason in said if reason is not None}) > 5
    assert fuzz.read(b"") == "empty file"
