"""More side information, smaller errors: ``python experiments/side_information.py MODEL --images FILES --out FILE``.

Mean relative errors of the default method after few passes, for layers of a network and every kind of side
information that it has.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import unconv
from unconv.evaluate.run_directory import environment
from unconv.images import find_images
from unconv.io import write_json

KINDS = ("none", "switches", "gates")


def main() -> None:
    """Invert, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--every", type=int, default=1, help="take every N-th image of the folder")
    parser.add_argument("--limit", type=int, default=10)
    parser.add_argument("--size", type=int)
    parser.add_argument("--layers", nargs="+", required=True)
    parser.add_argument("--passes", type=int, default=30)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    paths = find_images(options.images)[:: options.every][: options.limit]
    files = [str(path) for path in paths]
    config = {name: value for name, value in vars(options).items() if name not in {"images", "out"}}
    names = [str(path.relative_to(options.images)) for path in paths]
    result: dict[str, Any] = {"config": config, "images": names, "environment": environment()}
    result["layers"] = {}
    for layer in options.layers:
        row: dict[str, Any] = {}
        shared = {"size": options.size, "batch": options.limit}
        row["linear"] = unconv.invert(options.model, layer, files, method="linear", **shared).relative_error.tolist()
        for kind in KINDS:
            found = unconv.invert(options.model, layer, files, side_info=kind, passes=options.passes, **shared)
            if found.side_info == kind:
                row[kind] = found.relative_error.tolist()
        result["layers"][layer] = row
        print(layer, {kind: round(sum(errors) / len(errors), 4) for kind, errors in row.items()}, flush=True)
        write_json(options.out, result)


if __name__ == "__main__":
    main()
