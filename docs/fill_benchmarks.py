"""Fill the tables of benchmarks.md from ``benchmarks/*.json``: ``python docs/fill_benchmarks.py``."""

from __future__ import annotations

from typing import Any

from tables import DOCS, fill_page, markdown, read

Document = dict[str, Any]


def floors(document: Document) -> str:
    """Every step beside its floor, over all settings, and its target."""
    steps: dict[str, list[Document]] = {}
    for row in document["rows"]:
        steps.setdefault(row["name"], []).append(row)
    rows = []
    for name, found in steps.items():
        target = found[0]["target"]
        met = [row["ratio"] <= target for row in found if row["target"] is not None]
        ratios = span([row["ratio"] for row in found])
        rows.append((name, len(found), ratios, f"≤ {target:g}", f"{sum(met)} of {len(met)}"))
    return markdown(("step", "settings", "ratio", "target", "met"), rows)


def span(values: list[float]) -> str:
    """From the least to the largest."""
    return f"{min(values):.2g} to {max(values):.2g}"


def peers(document: Document) -> str:
    """Every peer beside ours."""
    rows = []
    for row in document["rows"]:
        ratio = "not reached by ours" if row["steps"]["ours"] is None else "not reached by the peer"
        if row["ratio"] is not None:
            ratio = f"{row['ratio']:.3g}"
        steps = f"{row['steps']['ours'] or '-'} / {row['steps']['peer'] or '-'}"
        rows.append((row["name"], f"{row['peer']}, {row['method']}", f"{row['error']:.3g}", steps, ratio))
    return markdown(("problem, ours", "peer", "relative error", "steps ours / peer", "its time by ours"), rows)


def image(document: Document) -> str:
    """The image beside other solvers, over all photographs."""
    rows = []
    for name, found in document["images"].items():
        seconds, steps = (sum(one[key] for one in found) for key in ("seconds", "steps"))
        fit = document["fit_seconds"] + document["preconditioner_seconds"] if name == "ours" else 0.0
        rows.append((name, f"{steps / len(found):.3g}", f"{seconds:.2g}", f"{seconds + fit:.2g}"))
    return markdown(("solver", "steps per image", "seconds for all", "with the fit"), rows)


def spectra(document: Document) -> str:
    """Every bound of the largest singular value, over all conv blocks."""
    blocks = [row["bounds"] for row in document["rows"] if "bounds" in row]
    attained = [bounds["attained (Lanczos)"]["value"] for bounds in blocks]
    rows = []
    for name in blocks[0]:
        found = [bounds[name] for bounds in blocks]
        ratios = [bound["value"] / norm for bound, norm in zip(found, attained, strict=True)]
        seconds = sum(bound["seconds"] for bound in found)
        rows.append((name, f"{min(ratios):.3f} to {max(ratios):.3f}", f"{seconds:.2g}"))
    return markdown(("bound", "over the attained norm", "seconds"), rows)


def setting(document: Document) -> str:
    """The machine and the versions."""
    where = document["environment"]
    return (
        f"{where['cpus']} CPUs ({where['threads']} threads), torch {where['packages']['torch']}, {document['side']} px."
    )


TABLES = {
    "setting": (setting, "floors"),
    "floors": (floors, "floors"),
    "peers": (peers, "peers"),
    "image": (image, "image_peers"),
    "spectra": (spectra, "spectra"),
}


def made(kind: str, name: str) -> str:
    """One table from its results."""
    table, results = TABLES[name]
    return table(read(DOCS.parent / "benchmarks" / f"{results}.json"))


if __name__ == "__main__":
    fill_page("benchmarks.md", made)
