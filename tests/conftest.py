"""Shared by all tests: one thread (the tensors are tiny), and where research data is looked for."""

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def research_data() -> Path:
    """The folder that UNCONV_DATA names, or a skip that says so."""
    folder = os.environ.get("UNCONV_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("research data absent: set UNCONV_DATA to the folder that holds it")
    return Path(folder)
