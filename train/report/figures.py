"""Draw the figures of a report as SVG on white: speed against memory, and losses by tokens and time."""

import base64
import html
import io
import math
from collections.abc import Callable, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

from train.config.schema import PhaseName
from train.report.curves import Point
from train.report.findings import BITS, Findings
from train.report.rows import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_POINTS = 200  # of a curve: more cannot be seen
HUES = ("#3b82d6", "#dd7718", "#2a9d68", "#d4508f", "#8f6bdc", "#98861b")  # legible on white
LINE_STYLES = tuple(product(("-", "--"), HUES))  # among more runs only the best stand out
FAINT = "#8d95a1"
STYLE: dict[Any, Any] = {
    "text.parse_math": False,  # a name with a $ in it is a name
    "axes.edgecolor": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dcdfe4",
    "grid.linewidth": 0.6,
}
Styles = dict[Row, tuple[str, str]]  # the line and the colour, in every figure, of the runs that stand out


def choose_line_styles(findings: Findings) -> Styles:
    """Return a style for each run with curves; among many, for those of the lowest losses only."""
    drawn = [row for row in findings.rows if row.curves]
    if len(drawn) > len(LINE_STYLES):
        drawn = [row for row in findings.ranking if row.curves][:3]
    return dict(zip(drawn, LINE_STYLES, strict=False))


def draw_speed_against_memory(findings: Findings, styles: Styles) -> str:
    """Return the finished runs by peak memory and speed, with the Pareto front; empty if none was measured."""
    places = {row: (row.peak_memory_gib or 0.0, row.tokens_per_second or 0.0) for row in findings.measured}

    def paint(axes: "Axes") -> None:
        axes.plot(*zip(*(places[row] for row in findings.front), strict=True), color=FAINT)
        for row, place in places.items():
            best = row in findings.front
            look: dict[str, Any] = {"marker": "D"} if best else {"marker": "o", "markerfacecolor": "white"}
            axes.plot(*place, color=styles.get(row, ("", FAINT))[1], zorder=2 + best, **look)
            if best or row in styles:
                axes.annotate(str(findings.numbers[row]), place, (-5, 5), textcoords="offset points", ha="right")
        axes.margins(0.1)
        if findings.budget_gb and findings.budget_gb < axes.get_xlim()[1]:
            axes.axvline(findings.budget_gb, color=FAINT, linestyle=":")

    alt = f"Speed against peak memory of {len(places)} runs, {len(findings.front)} of them on the Pareto front"
    return _draw("peak memory (GiB)", "tokens/s", alt, paint) if places else ""


def draw_losses(findings: Findings, phase: PhaseName, styles: Styles) -> list[str]:
    """Return the losses of a phase by tokens and by time; none if there is nothing to draw."""
    curves = {row: row.curves[phase] for row in findings.rows if phase in row.curves}
    factors = {row: curve.bits if findings.measure == BITS else 1.0 for row, curve in curves.items()}
    train = {row: _thin_points(curve.train, factors[row]) for row, curve in curves.items()}
    val = {row: _thin_points(curve.val, factors[row]) for row, curve in curves.items()}
    converged = [row for row in curves if row not in findings.diverged] or list(curves)
    lines = [line for row in converged for line in (train[row], val[row]) if line]
    if not lines:
        return []
    # The steep first tenth of a run may leave the figure at the top, and so may a run that diverged.
    late = [point.loss for line in lines for point in line if point.tokens >= line[-1].tokens / 10]
    margin = 0.05 * (max(late) - min(late)) or 0.1

    def paint(axes: "Axes", place: Callable[[Point], float]) -> None:
        def plot(points: Sequence[Point], **look: Any) -> None:
            axes.plot([place(point) for point in points], [point.loss for point in points], **look)

        for row in sorted(curves, key=styles.__contains__):
            line, colour = styles.get(row, ("-", FAINT))
            if row in styles:
                plot(train[row], color=colour, linestyle=line, linewidth=0.8, alpha=0.45)
            marker = "o" if row in styles or len(val[row]) == 1 else ""
            width = 1.6 if row in styles else 0.8
            plot(val[row], color=colour, linestyle=line, linewidth=width, marker=marker, markersize=3.5)
        axes.set(xlim=(0, None), ylim=(min(late) - margin, max(late) + margin))

    of = f"of {len(curves)} runs in {phase}"
    ylabel = f"loss ({BITS if findings.measure == BITS else 'nats per target'})"
    return [
        _draw("tokens", ylabel, f"Loss by tokens {of}", lambda axes: paint(axes, lambda p: p.tokens)),
        _draw("minutes", ylabel, f"Loss by time {of}", lambda axes: paint(axes, lambda p: p.seconds / 60)),
    ]


def _thin_points(points: Sequence[Point], factor: float) -> list[Point]:
    """Return the finite losses times a factor, at most `MOST_POINTS` and the last always."""
    finite = [p._replace(loss=p.loss * factor) for p in points if math.isfinite(p.loss * factor)]
    return finite[:: -max(1, math.ceil(len(finite) / MOST_POINTS))][::-1]


def _draw(xlabel: str, ylabel: str, alt: str, paint: Callable[["Axes"], None]) -> str:
    """Return an <img> of what `paint` draws; `alt` is its text for a screen reader."""
    from matplotlib import rc_context  # here: importing it takes as long as ten steps
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    file = io.BytesIO()
    svg = {"svg.fonttype": "none", "svg.hashsalt": alt}  # text stays text; equal figures are equal bytes
    with rc_context(STYLE | svg):
        figure = Figure(figsize=(5.2, 3.6), layout="constrained")  # inches: text is legible on a phone
        axes = figure.subplots()
        axes.set(xlabel=xlabel, ylabel=ylabel)
        paint(axes)
        axes.locator_params(nbins=5)
        if xlabel == "tokens":
            axes.xaxis.set_major_formatter(EngFormatter(sep=" "))  # 12 k for 12000
        figure.savefig(file, format="svg", facecolor="white", metadata={"Date": None})
    content = base64.b64encode(file.getvalue()).decode()
    return f'<img alt="{html.escape(alt)}" src="data:image/svg+xml;base64,{content}">'
