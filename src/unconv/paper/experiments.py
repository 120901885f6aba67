"""The paper's tables and figures by name: what runs each of them, on what, and how it is shown."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from unconv.paper.context import Context, Result, Table

    Run = Callable[[ModuleType, Any, Callable[[], Context]], Result]


@dataclass(frozen=True)
class Experiment:
    """One table or figure.

    Attributes:
        title: Its heading.
        module: Its file in this folder, with ``run``, ``tables`` and, where it has a figure, ``draw``.
        run: Calls ``run`` of the module with options, and with a function that opens the network where it needs one.
        suffix: Of its figure's file; pictures are no vectors.
    """

    title: str
    module: str
    run: Run = lambda module, options, context: module.run(context())
    suffix: str = ".svg"

    def load(self) -> ModuleType:
        """Return the module."""
        return importlib.import_module(f"unconv.paper.{self.module}")

    def tables(self, result: Result) -> Mapping[str, Table]:
        """Return header and rows by caption."""
        return self.load().tables(result)

    def draw(self, result: Result) -> Figure | None:
        """Return the figure, ``None`` where there is none."""
        draw = getattr(self.load(), "draw", None)
        return None if draw is None else draw(result)


def _sizes(options: Any) -> Any:
    from unconv.paper.thm31 import Sizes

    return Sizes(*options.sizes)


def _with_decoders(module: ModuleType, options: Any, context: Callable[[], Context]) -> Result:
    opened = context()
    return module.run(opened, opened.open_decoders(options.decoders))


EXPERIMENTS = {
    "prop1": Experiment("Proposition 1: perfect reconstruction, and filters in pairs", "prop1"),
    "fig1": Experiment("Figure 1: the architecture", "fig1"),
    "fig2": Experiment(
        "Figure 2: one-dimensional Gaussian layers",
        "fig2",
        lambda module, options, context: module.run(options.draws, options.seed, _sizes(options)),
    ),
    "thm31": Experiment(
        "Theorem 3.1: the sufficient condition",
        "thm31",
        lambda module, options, context: module.run(_sizes(options)),
    ),
    "thm33": Experiment(
        "Theorem 3.3: one-step IHT and its bound",
        "thm33",
        lambda module, options, context: module.run(draws=options.samples, seed=options.seed),
    ),
    "table1": Experiment(
        "Table 1: CIFAR-10 with random and with learned filters",
        "table1",
        lambda module, options, context: module.run(),
    ),
    "table2": Experiment("Table 2: sparsity", "table2"),
    "fig3": Experiment(
        "Figure 3: model-RIP of a late layer",
        "fig3",
        lambda module, options, context: module.run(
            context(), options.samples, options.recovered, options.steps, options.fractions
        ),
    ),
    "table3": Experiment("Table 3: one-step IHT in activation space and in image space", "table3", _with_decoders),
    "fig4": Experiment("Figure 4: decoded images", "fig4", _with_decoders, ".png"),
    "table4": Experiment("Table 4: coherence", "table4"),
}
