"""Draw the figures of a report as SVG on white: speed against memory, and losses by tokens and time."""

import base64
import html
import io
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any, NamedTuple

from train.config.schema import PhaseName
from train.report.findings import BITS, GIB, Findings
from train.report.rows import Curve, Point, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_POINTS = 200  # of a curve: more cannot be seen
UNITS = (("seconds", 1, 180.0), ("minutes", 60, 3 * 3600.0), ("hours", 3600, math.inf))
HUES = ("#3b82d6", "#dd7718", "#2a9d68", "#d4508f", "#8f6bdc", "#98861b")  # legible on white
MAX_STYLES = 2 * len(HUES)  # solid, then dashed; among more runs only the best stand out
INK, LINE, FAINT = "#1b1e23", "#dcdfe4", "#8d95a1"
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


class LineStyle(NamedTuple):
    """The look of a run in every figure."""

    colour: str = FAINT
    dashed: bool = False


Styles = dict[Row, LineStyle]  # of the runs that stand out


def choose_line_styles(findings: Findings) -> Styles:
    """Return a style for each run with curves; among many, for those of the lowest losses only."""
    drawn = [row for row in findings.rows if row.curves]
    if len(drawn) > MAX_STYLES:
        drawn = [row for row in findings.ranking if row.curves][: len(HUES) // 2]
    return {
        row: LineStyle(hue, n >= len(HUES)) for n, (row, hue) in enumerate(zip(drawn, cycle(HUES), strict=False))
    }


def draw_speed_against_memory(findings: Findings, styles: Styles) -> str:
    """Return the finished runs by peak memory and speed, with the Pareto front; empty if none was measured."""
    places = {row: ((row.peak_memory or 0) / GIB, row.speed) for row in findings.measured}
    numbers = {row: number for number, row in enumerate(findings.rows, 1)}

    def paint(axes: "Axes") -> None:
        axes.plot(*zip(*(places[row] for row in findings.front), strict=True), color=FAINT, linewidth=1.2)
        for row in sorted(places, key=lambda row: (row in findings.front, row in styles)):
            look: dict[str, Any] = {"marker": "o", "markerfacecolor": "white"}
            if row in findings.front:
                look = {"marker": "D"}
            axes.plot(*places[row], color=styles.get(row, LineStyle()).colour, markersize=7, **look)
        axes.margins(0.1)
        limits = axes.get_xlim()
        if findings.budget_gb is not None:
            axes.axvline(findings.budget_gb, color=FAINT, linestyle=":")
        axes.set_xlim(limits)
        _write_numbers(
            axes, {numbers[row]: places[row] for row in places if row in styles or row in findings.front}
        )

    alt = f"Speed against peak memory of {len(places)} runs, {len(findings.front)} of them on the Pareto front"
    return _draw("peak memory (GiB)", "tokens/s", alt, paint) if places else ""


def _write_numbers(axes: "Axes", places: dict[int, tuple[float, float]]) -> None:
    """Write the numbers of runs beside their places; runs that lie together share a label."""
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    groups: dict[tuple[int, int], list[int]] = defaultdict(list)
    for number, (x, y) in places.items():
        groups[round(16 * (x - left) / (right - left)), round(16 * (y - low) / (high - low))].append(number)
    for numbers in groups.values():
        label = ", ".join(map(str, numbers[:4])) + (" …" if len(numbers) > 4 else "")
        axes.annotate(label, places[numbers[0]], (-5, 5), textcoords="offset points", ha="right")


def draw_losses(findings: Findings, phase: PhaseName, styles: Styles) -> list[str]:
    """Return the losses of a phase by tokens and by time; none if there is nothing to draw."""
    curves = {row: row.curves[phase] for row in findings.rows if phase in row.curves}
    in_bits = findings.measure == BITS
    points = {row: _choose_points(curve, curve.bits if in_bits else 1.0) for row, curve in curves.items()}
    late = [point.loss for train, val in points.values() for point in _skip_start([*train, *val])]
    if not late:
        return []
    margin = 0.05 * (max(late) - min(late)) or 0.1
    longest = max(curve.seconds for curve in curves.values())
    unit, length = next((unit, length) for unit, length, most in UNITS if longest < most)

    def paint(axes: "Axes", place: Callable[[Point], float]) -> None:
        for row in sorted(points, key=styles.__contains__):
            _paint_run(axes, *points[row], place, styles.get(row))
        axes.set(xlim=(0, None), ylim=(min(late) - margin, max(late) + margin))

    of, ylabel = f"of {len(curves)} runs in {phase}", f"loss ({BITS if in_bits else 'nats a target'})"
    return [
        _draw("tokens", ylabel, f"Loss by tokens {of}", lambda axes: paint(axes, lambda p: p.tokens)),
        _draw(unit, ylabel, f"Loss by time {of}", lambda axes: paint(axes, lambda p: p.seconds / length)),
    ]


def _choose_points(curve: Curve, factor: float) -> tuple[list[Point], list[Point]]:
    """Return the finite losses of training and validation times a factor, thinned out; the last of each stays."""

    def thin(points: Sequence[Point]) -> list[Point]:
        finite = [p._replace(loss=p.loss * factor) for p in points if math.isfinite(p.loss * factor)]
        return finite[:: -max(1, math.ceil(len(finite) / MOST_POINTS))][::-1]

    return thin(curve.train), thin(curve.val)


def _skip_start(points: Sequence[Point]) -> list[Point]:
    """Drop the steep first tenth of a run, which may run off the top of the figure."""
    end = max((point.tokens for point in points), default=0.0)
    return [point for point in points if point.tokens >= end / 10]


def _paint_run(
    axes: "Axes", train: list[Point], val: list[Point], place: Callable[[Point], float], style: LineStyle | None
) -> None:
    """Draw validation on top of training; for a run that does not stand out, a thin line of validation alone."""
    look: dict[str, Any] = {
        "color": FAINT,
        "linewidth": 0.8,
        "marker": "" if len(val) > 1 else ".",
        "markersize": 3.5,
    }
    if style:
        look |= {
            "color": style.colour,
            "linestyle": "--" if style.dashed else "-",
            "linewidth": 1.6,
            "marker": "o",
        }
        thin = look | {"linewidth": 0.8, "alpha": 0.45, "marker": ""}
        axes.plot([place(point) for point in train], [point.loss for point in train], **thin)
    axes.plot([place(point) for point in val], [point.loss for point in val], **look)


def _draw(xlabel: str, ylabel: str, alt: str, paint: Callable[["Axes"], None]) -> str:
    """Return an <img> of what `paint` draws; `alt` is its text for a screen reader."""
    from matplotlib import rc_context  # here: importing it takes as long as ten steps
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, MaxNLocator

    file = io.BytesIO()
    svg = {"svg.fonttype": "none", "svg.hashsalt": alt}  # text stays text; equal figures are equal bytes
    with rc_context(STYLE | svg):
        figure = Figure(figsize=SIZE)
        figure.subplots_adjust(left=0.14, right=0.97, bottom=0.14, top=0.96)
        axes = figure.subplots()
        axes.set(xlabel=xlabel, ylabel=ylabel)
        paint(axes)
        for axis, label in ((axes.xaxis, xlabel), (axes.yaxis, ylabel)):
            axis.set_major_locator(MaxNLocator(5))
            if label.startswith("tokens"):
                axis.set_major_formatter(EngFormatter(sep=" "))  # 12 k for 12000
        figure.savefig(file, format="svg", facecolor="white", metadata={"Date": None})
    content = base64.b64encode(file.getvalue()).decode()
    return f'<img alt="{html.escape(alt)}" src="data:image/svg+xml;base64,{content}">'
