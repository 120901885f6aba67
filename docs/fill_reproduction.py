"""Fill the tables of reproduction.md from the committed results: ``python docs/fill_reproduction.py``.

A table stands at ``<!-- table: FILE CHOICE -->``; ``FILE`` is under ``experiments/results``, without ``.json``.
``CHOICE`` may name ``tables`` by their captions, ``columns`` by their numbers (by caption where there are several
tables), and texts, ``without``, whose rows are left out. Every result names the command that made it, which is put
under its table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tables import RESULTS, fill_page, markdown, read

from unconv.paper.experiments import EXPERIMENTS

VGG19 = "--model vgg19 --weights vgg19-blocks1-3.safetensors --mean 123.68,116.779,103.939 --std 1"
DECODERS = " ".join(f"experiments/decoders/vgg19-caffe-features.{n}.safetensors" for n in (2, 7, 16))


def made(
    kind: str,
    name: str,
    tables: Sequence[str] = (),
    columns: Sequence[int] | Mapping[str, Sequence[int]] = (),
    without: Sequence[str] = (),
) -> str:
    """The chosen part of one result's tables and its command, or that there is none."""
    file = RESULTS / f"{name}.json"
    if not file.exists():
        return "*Not run here.*"
    result = read(file)
    found = EXPERIMENTS[result["name"]].tables(result)
    captions = tables or list(found)
    lines = []
    for caption in captions:
        header, rows = found[caption]
        chosen = columns[caption] if isinstance(columns, Mapping) else columns or range(len(header))
        kept = [row for row in rows if not set(without) & set(map(str, row))]
        lines += [f"*{caption}*", ""] if len(captions) > 1 else []
        lines += [markdown([header[i] for i in chosen], ([row[i] for i in chosen] for row in kept)), ""]
    if len(result.get("commands", ())) > 1:
        return "\n".join([*lines, f"The commands stand in `experiments/results/{name}.json`."])
    command = result["command"].replace(VGG19, "$VGG19").replace(DECODERS, "$DECODERS")
    return "\n".join([*lines, f"`{command}`"])


if __name__ == "__main__":
    fill_page("reproduction.md", made)
