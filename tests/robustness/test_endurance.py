"""Memory and file handles over many images; a hundred thousand by hand, see many_images.py."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_memory_and_file_handles_stay_flat_over_many_images(capsys):
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("there is no /proc to read memory and file handles from")
    words = [sys.executable, str(Path(__file__).parent / "many_images.py"), "--images", "100000"]
    environ = os.environ | {"OMP_NUM_THREADS": "1"}
    found = json.loads(subprocess.run(words, check=True, capture_output=True, text=True, env=environ).stdout)
    with capsys.disabled():
        print(f"\n{found}")
    assert (found["used"], found["skipped"]) == (90_000, 10_000)
    assert found["open_files"]["end"] == found["open_files"]["start"]
    # names and reasons of ten thousand skipped images are a few MiB
    assert found["resident_mib"]["end"] < found["resident_mib"]["start"] + 16
