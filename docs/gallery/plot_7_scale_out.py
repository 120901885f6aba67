"""
Scale out: runs in parts
========================

A report over thousands of images takes hours, and machines are taken away. So a run is a folder of *parts*, each
there whole or not at all; the same command computes what is missing. This example runs a small report, loses one of
its parts, and reads the results.
"""

# %%
# A run
# -----
#
# One stage, three methods of inverting it, four photographs.

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import pyarrow.parquet as pq

import unconv

folder = Path(tempfile.mkdtemp()) / "run"


def report(seed: int = 0) -> unconv.ReportResult:
    """The same call each time: the settings decide what belongs to the run."""
    return unconv.report(
        "cifar-vgg",
        out=folder,
        size=32,
        stages=["features.3"],
        methods=["transpose", "min-norm", "convex"],
        samples=5,
        effort=0.1,
        seed=seed,
        progress=False,
    )


written = report()
before = (folder / "results.parquet").read_bytes()
parts = sorted(file for file in (folder / "parts").rglob("*") if file.is_file())
for part in parts:
    print(part.relative_to(folder))

# %%
# Lost, and found again
# ---------------------
#
# What a crash or a full disk would leave: a part is missing. The same command computes that part and nothing else, and
# the results end in the same bytes.

parts[-1].unlink()
written = report()
print((folder / "results.parquet").read_bytes() == before)

# %%
# The page is drawn anew: ``written.page``. Another command is refused there, before anything is computed.

try:
    report(seed=1)
except unconv.UnconvError as error:
    print(str(error).replace(str(folder.parent), "..."))

# %%
# Reading the results
# -------------------
#
# ``results.parquet`` has one row per image, stage and way of inverting; any tool that reads Parquet goes on from there.

table = pq.read_table(folder / "results.parquet")
print(table.num_rows, "rows:", ", ".join(table.column_names))
rows = table.to_pylist()
files = sorted({row["file"] for row in rows})
ways = sorted({(row["from"], row["method"]) for row in rows})
figure, panel = plt.subplots(figsize=(6.5, 3.6), layout="constrained")
for column, (start, method) in enumerate(ways):
    errors = [row["relative_error"] for row in rows if (row["from"], row["method"]) == (start, method)]
    panel.plot([column] * len(errors), errors, "o", alpha=0.6)
panel.set_xticks(range(len(ways)), [f"the {start},\n{method}" for start, method in ways], fontsize=8)
panel.axhline(1, color="0.7", linewidth=1)  # what an all-zero answer gets
panel.set_ylim(bottom=0)
panel.set_ylabel("relative error, one dot per photograph")

# %%
# On the command line
# -------------------
#
# ::
#
#     unconv report resnet18 --weights my-resnet18.pth --images photos/ --out run --dry-run
#     unconv report resnet18 --weights my-resnet18.pth --images photos/ --out run
#     torchrun --nproc-per-node 4 -m unconv report resnet18 --weights my-resnet18.pth --images photos/ --out run
#
# With ``torchrun`` each process takes its own share of the images and writes its parts into the same folder; the
# results are the bytes of one process, and any number of processes completes what another number has left.
# ``--dry-run`` says how many images and stages there are, and roughly how long it takes and with how much memory.
# Statistics are streamed, so memory does not grow with the number of images; ``--batch`` sets how many are in memory at
# a time, ``--limit`` stops after the first so many, ``--device cuda`` computes on a GPU. What survives what is on the
# page :doc:`/robustness`.
