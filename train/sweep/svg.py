"""A figure as SVG to stand within a page, whose colours and type it takes on."""

import html
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, LINE, FAINT, PAPER = "#010203", "#010204", "#010205", "#010206"  # stand-ins for colours that the page knows
CSS = {INK: "currentColor", LINE: "var(--line)", FAINT: "var(--faint)", PAPER: "var(--paper)"}
SIZE = (5.2, 3.6)  # inches: as wide as a phone, so that its text is legible there
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text and takes the page's type
    "text.parse_math": False,  # a name with a $ in it is a name
    "font.size": 10,
    "axes.labelcolor": INK,
    "axes.edgecolor": LINE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "text.color": INK,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
}


class Drawing:
    """A figure and, once it is drawn, the SVG of it."""

    axes: "Axes"
    svg = ""


@contextmanager
def drawing(xlabel: str, ylabel: str, alt: str) -> Iterator[Drawing]:
    """Give axes to draw into, and make SVG of them at the end; `alt` is what one hears who does not see it."""
    from matplotlib import rc_context  # here: importing it takes as long as ten steps
    from matplotlib.figure import Figure

    result, file = Drawing(), io.StringIO()
    with rc_context(STYLE | {"svg.hashsalt": alt}):  # ids are the same each time, and of this figure alone
        figure = Figure(figsize=SIZE)
        figure.subplots_adjust(left=0.14, right=0.97, bottom=0.14, top=0.96)
        result.axes = figure.subplots()
        result.axes.set(xlabel=xlabel, ylabel=ylabel)
        yield result
        figure.savefig(file, format="svg", transparent=True)
    result.svg = _inline(file.getvalue(), alt)


def _inline(svg: str, alt: str) -> str:
    """Return the element alone, with the page's colours, of the page's width, without ids that would repeat."""
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.S)
    svg = re.sub(r'<g id="[\w.]+_\d+">', "<g>", svg).replace("xlink:href", "href")
    view = re.search(r'viewBox="[\d. ]+"', svg)
    opening = f'<svg {view[0] if view else ""} role="img" aria-label="{html.escape(alt)}">'
    svg = opening + svg[svg.index(">") + 1 :]
    for stand_in, colour in CSS.items():
        svg = svg.replace(stand_in, colour)
    return svg
