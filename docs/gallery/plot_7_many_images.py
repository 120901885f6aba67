"""
Many images: runs that resume
=============================

A report over thousands of images takes hours, and machines are taken away. So finished work is kept in the run
directory, and the same command computes what is missing. This example runs a small report twice and reads its results.
"""

# %%
# A run
# -----
#
# One layer, two photographs at 16x16 pixels, five passes each.

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import pyarrow.parquet as pq

import unconv

folder = Path(tempfile.mkdtemp()) / "run"


def report(seed: int = 0) -> unconv.ReportResult:
    """The same call each time: the settings decide what belongs to the run."""
    return unconv.report(
        "cifar-vgg", out=folder, size=32, layers=("features.6",), limit=2, samples=5, passes=5, seed=seed
    )


report()
before = (folder / "results.parquet").read_bytes()
print(sorted(file.name for file in folder.iterdir()))

# %%
# The same command again
# ----------------------
#
# Everything is there, so nothing is computed, and the results are the same bytes. Another command is refused in that
# directory, before anything is computed.

report()
print((folder / "results.parquet").read_bytes() == before)
try:
    report(seed=1)
except unconv.UnconvError as error:
    print(str(error).replace(str(folder.parent), "..."))

# %%
# Reading the results
# -------------------
#
# ``results.parquet`` has one row per image, layer, method and side information; any tool that reads Parquet goes on
# from there.

table = pq.read_table(folder / "results.parquet")
print(table.num_rows, "rows:", ", ".join(table.column_names))
rows = table.to_pylist()
series = sorted({(row["method"], row["side_info"]) for row in rows})
figure, panel = plt.subplots(figsize=(6.5, 3.6), layout="constrained")
for column, key in enumerate(series):
    errors = [row["relative_error"] for row in rows if (row["method"], row["side_info"]) == key]
    panel.plot([column] * len(errors), errors, "o", alpha=0.6)
panel.set_xticks(range(len(series)), [f"{method},\n{known}" for method, known in series], fontsize=8)
panel.axhline(1, color="0.7", linewidth=1)  # what an all-zero answer gets
panel.set_ylim(bottom=0)
panel.set_ylabel("relative error, one dot per photograph")

# %%
# On several cores, GPUs or machines
# ----------------------------------
#
# ::
#
#     unconv report resnet18 --weights my-resnet18.pth --images photos/ --out run --ray
#     unconv report resnet18 --weights my-resnet18.pth --images photos/ --out run --ray ADDRESS
#
# Ray hands blocks of images to its workers and brings rows and pictures back; the results are those of one process
# (:doc:`/many-images`).
