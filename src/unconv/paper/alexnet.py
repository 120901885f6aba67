"""The paper's measures on AlexNet, whose poolings overlap (3x3 at stride 2): sparsity, coherence, one step, RIP."""

from __future__ import annotations

from typing import Any

from unconv.paper import fig3, table2, table3, table4
from unconv.paper.experiment_context import Subject
from unconv.sparsity import Window

TABLES = {"table2": table2.table, "table3": table3.table, "table4": table4.table, "fig3": fig3.table}


def run(subject: Subject, samples: int = 1000, recovered: int = 4, steps: int = 300) -> dict[str, Any]:
    """Run the experiments of the main text on the network of the appendix.

    Args:
        subject: AlexNet, or another network with overlapping poolings.
        samples: Number of random codes of the sampled model-RIP.
        recovered: Number of images whose codes Algorithm 2 finds.
        steps: Largest number of its steps.

    Returns:
        ``name``, ``paper``, ``ours`` and ``notes``, fit for JSON.
    """
    results = {
        "table2": table2.run(subject),
        "table3": table3.run(subject),
        "table4": table4.run(subject),
        "fig3": fig3.run(subject, samples, recovered, steps),
    }
    overlapping = [
        stage.name for stage in subject.stages if isinstance(stage.pooling, Window) and stage.pooling.overlapping
    ]
    return {
        "name": "alexnet",
        # the printed numbers are VGG-16's; a table takes what it is given, so it is given none
        "paper": {
            "table2": {},
            "table3": {"activation space": {}},
            "table4": {"as_printed": {}, "one_layer_later": {}},
            "fig3": {"printed": {}, "checked": {}},
        },
        "ours": {name: result["ours"] for name, result in results.items()},
        "notes": [
            "The appendix repeats the measures on AlexNet; its numbers are not transcribed here, so ours stand alone.",
            f"Overlapping poolings: {', '.join(overlapping) or 'none in this network'}. Their regions are taken as "
            "they are: one place can win twice, unpooling puts it back once, and k counts regions.",
            *(f"{name}: {note}" for name, result in results.items() for note in result["notes"]),
        ],
    }


def work(subject: Subject) -> int:
    """Units of work, for a progress bar.

    Args:
        subject: The network and the images.

    Returns:
        The number.
    """
    return table2.work(subject) + table3.work(subject) + fig3.work(subject)


def tables(result: dict[str, Any]) -> dict[str, tuple[tuple[str, ...], list[tuple[Any, ...]]]]:
    """The four tables.

    Args:
        result: What ``run`` returned.

    Returns:
        Header and rows by name.
    """
    return {name: make({"paper": result["paper"][name], "ours": result["ours"][name]}) for name, make in TABLES.items()}
