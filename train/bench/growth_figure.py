"""How cost grew, as a figure of small multiples that is legible on a white page and on a dark one."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from train.bench.grow import MEMORIES, Growth, size
from train.bench.growth_tables import point
from train.sweep.pens import HUES
from train.sweep.svg import FAINT, INK, LINE, STYLE
from train.text_table import MIB

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ON_ANY_PAGE = {INK: "#7a7f87", LINE: "#7a7f87", FAINT: "#7a7f87"}  # a page's own colours are not known here
ROOM = 10_000  # a size from here on is written in 1024s
ROWS = (
    ("tokens/s", "tokens_per_second", "tokens_in_theory", 1),
    ("peak MiB", "peak", "peak_in_theory", MIB),
)


def draw(growth: Growth, path: Path) -> None:
    """Draw speed and peak memory against each size, measured and in theory; the name's ending is the format."""
    from matplotlib import rc_context  # here: importing it takes as long as ten steps
    from matplotlib.figure import Figure

    style = {key: ON_ANY_PAGE.get(value, value) for key, value in STYLE.items()}
    with rc_context(style | {"svg.fonttype": "path", "svg.hashsalt": "growth", "grid.alpha": 0.35}):
        figure = Figure(figsize=(2.5 * len(growth.axes) + 0.6, 5.0), layout="constrained")
        panels = figure.subplots(len(ROWS), len(growth.axes), sharex="col", sharey="row", squeeze=False)
        for row, facts in zip(panels, ROWS, strict=True):
            for axes, axis in zip(row, growth.axes, strict=True):
                panel(axes, growth, axis, facts)
            row[0].set_ylabel(facts[0])
        for axes, axis in zip(panels[-1], growth.axes, strict=True):
            axes.set_xlabel(axis)
        handles, labels = panels[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False)
        metadata = {"Date": None} if path.suffix == ".svg" else None
        figure.savefig(path, transparent=True, dpi=160, metadata=metadata)


def panel(axes: "Axes", growth: Growth, axis: str, facts: tuple[str, str, str, int]) -> None:
    """Draw one fact against one size: dots are measured, dashes are theory."""
    from matplotlib.ticker import EngFormatter, LogLocator, NullLocator

    _, measured, in_theory, unit = facts
    shapes = growth.axes[axis]
    sizes = [size(shape, axis) for shape in shapes]
    for memory, hue in zip(MEMORIES, HUES, strict=False):
        points: list[dict[str, Any]] = [point(growth, shape, memory) for shape in shapes]
        axes.plot(sizes, [one[in_theory] / unit for one in points], "--", color=hue, label=f"{memory}, theory")
        axes.plot(sizes, [one[measured] / unit for one in points], "o", color=hue, label=f"memory={memory}")
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(value) if value < ROOM else f"{value >> 10}Ki" for value in sizes])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(EngFormatter(sep=""))
