"""The paper's tables and figures by name: what runs each of them, on what, and how it is shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure

from unconv.evaluate.decoders import OpenedDecoder, open_decoders
from unconv.paper import fig1, fig2, fig3, fig4, prop1, table1, table2, table3, table4, thm31, thm33
from unconv.paper.context import Context, Result, Table
from unconv.paper.thm31 import Sizes

if TYPE_CHECKING:
    from unconv.options import Reproduce


@dataclass(frozen=True)
class Experiment:
    """One table or figure."""

    # computes it with options, and with a function that opens the network where it needs one
    run: Callable[[Reproduce, Callable[[], Context]], Result]
    tables: Callable[[Result], Mapping[str, Table]]  # header and rows of a result, by caption
    draw: Callable[[Result], Figure | None] = lambda result: None  # the figure of a result, where it has one
    suffix: str = ".svg"  # of its figure's file; pictures are no vectors


def _decoders(options: Any, context: Context) -> dict[str, OpenedDecoder]:
    return open_decoders(context.network, context.blocks, options.decoders)


EXPERIMENTS = {
    "prop1": Experiment(lambda options, context: prop1.run(context()), prop1.tables, prop1.draw),
    "fig1": Experiment(lambda options, context: fig1.run(context()), fig1.tables, fig1.draw),
    "fig2": Experiment(
        lambda options, context: fig2.run(options.draws, options.seed, Sizes(*options.sizes)), fig2.tables, fig2.draw
    ),
    "thm31": Experiment(lambda options, context: thm31.run(Sizes(*options.sizes)), thm31.tables),
    "thm33": Experiment(lambda options, context: thm33.run(draws=options.samples, seed=options.seed), thm33.tables),
    "table1": Experiment(lambda options, context: table1.run(), table1.tables),
    "table2": Experiment(lambda options, context: table2.run(context()), table2.tables),
    "fig3": Experiment(
        lambda options, context: fig3.run(
            context(), options.samples, options.recovered, options.steps, options.fractions
        ),
        fig3.tables,
        fig3.draw,
    ),
    "table3": Experiment(
        lambda options, context: table3.run(found := context(), _decoders(options, found)), table3.tables
    ),
    "fig4": Experiment(
        lambda options, context: fig4.run(found := context(), _decoders(options, found)), fig4.tables, fig4.draw, ".png"
    ),
    "table4": Experiment(lambda options, context: table4.run(context()), table4.tables),
}
