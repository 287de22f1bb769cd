"""Charts as SVG images on a white card, which is legible on a light page and on a dark one."""

import base64
import html
import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, LINE, FAINT, PAPER = "#1b1e23", "#dcdfe4", "#8d95a1", "#ffffff"
SIZE = (5.2, 3.6)  # inches: as wide as a phone, so that its text is legible there
STYLE: dict[Any, Any] = {
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
    """A chart and, once it is drawn, its <img> element."""

    axes: "Axes"
    img = ""


@contextmanager
def drawing(xlabel: str, ylabel: str, alt: str) -> Iterator[Drawing]:
    """Give axes to draw into, and make an <img> of them at the end; `alt` is its text for a screen reader."""
    from matplotlib import rc_context  # here: importing it takes as long as ten steps
    from matplotlib.figure import Figure

    result, file = Drawing(), io.BytesIO()
    with rc_context(
        STYLE | {"svg.fonttype": "none", "svg.hashsalt": alt}
    ):  # text stays text; the same bytes again
        figure = Figure(figsize=SIZE)
        figure.subplots_adjust(left=0.14, right=0.97, bottom=0.14, top=0.96)
        result.axes = figure.subplots()
        result.axes.set(xlabel=xlabel, ylabel=ylabel)
        yield result
        figure.savefig(file, format="svg", facecolor=PAPER, metadata={"Date": None})
    content = base64.b64encode(file.getvalue()).decode()
    result.img = f'<img alt="{html.escape(alt)}" src="data:image/svg+xml;base64,{content}">'
