"""Draw the figures of a report as SVG: speed against memory, and losses by tokens and time."""

import base64
import html
import io
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, cycle
from typing import TYPE_CHECKING, Any

from train.config.schema import PhaseName
from train.report.findings import BITS, GIB, by_loss, loss_measure, measured, pareto_front
from train.report.rows import Curve, Point, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

MOST_POINTS = 200  # of a curve: more cannot be seen
Places = dict[Row, tuple[float, float]]
Place = Callable[[Point], float]
UNITS = (("seconds", 1, 180.0), ("minutes", 60, 3 * 3600.0), ("hours", 3600, math.inf))
HUES = ("#3b82d6", "#dd7718", "#2a9d68", "#d4508f", "#8f6bdc", "#98861b")  # legible on white
MOST_TOLD = 2 * len(HUES)  # solid, then dashed; among more runs only the best stand out
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


def speed_against_memory(rows: Sequence[Row], budget_gb: float | None) -> str:
    """Return the finished runs by peak memory and speed, with the Pareto front; empty where none was measured."""
    if not (front := pareto_front(rows)):
        return ""
    places = {row: ((row.peak_memory or 0) / GIB, row.tokens_per_second or 0.0) for row in measured(rows)}
    others = {row: place for row, place in places.items() if row not in front}
    best, pen = {row: places[row] for row in front}, pens(rows)
    alt = f"Speed against peak memory of {len(places)} runs, {len(front)} of them on the Pareto front"
    with drawing("peak memory (GiB)", "tokens/s", alt) as result:
        result.axes.plot(*zip(*best.values(), strict=True), color=FAINT, linewidth=1.2, zorder=2)
        for row, (x, y) in sorted(others.items(), key=lambda item: pen[item[0]].told):
            result.axes.plot(x, y, "o", color=pen[row].colour, markerfacecolor=PAPER, markersize=7, zorder=3)
        for row, (x, y) in best.items():
            result.axes.plot(x, y, "D", color=pen[row].colour, markersize=7, zorder=4)
        if budget_gb is not None and _is_near(budget_gb, places):
            result.axes.axvline(budget_gb, color=FAINT, linestyle=":")
        result.axes.margins(0.1)
        _number(result.axes, rows, best, above=True)
        _number(result.axes, rows, {row: at for row, at in others.items() if pen[row].told}, above=False)
        _thousands(result.axes.yaxis)
    return result.img


def _is_near(budget_gb: float, places: Places) -> bool:
    """Return whether a budget can be drawn without squeezing the runs together."""
    low, high = min(x for x, _ in places.values()), max(x for x, _ in places.values())
    return low - (high - low) <= budget_gb <= high + (high - low)


def _number(axes: "Axes", rows: Sequence[Row], places: Places, *, above: bool) -> None:
    """Write each run's number in the table at its place; runs that lie together share a label."""
    away: dict[str, Any] = (
        {"xytext": (-5, 5), "ha": "right"} if above else {"xytext": (5, -5), "ha": "left", "va": "top"}
    )
    numbers = {row: n for n, row in enumerate(rows, 1)}
    for group in _together(axes, places):
        label = ", ".join(str(n) for n in sorted(map(numbers.__getitem__, group))[:4])
        dots = " …" if len(group) > 4 else ""
        axes.annotate(label + dots, places[group[0]], textcoords="offset points", **away)


def _together(axes: "Axes", places: Places) -> list[list[Row]]:
    """Return rows in groups, each a twentieth of the figure or less from the next in its group."""
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    at = {row: complex((x - left) / (right - left), (y - low) / (high - low)) for row, (x, y) in places.items()}
    groups: list[list[Row]] = []
    for row in sorted(places, key=lambda row: places[row]):
        near = [group for group in groups if any(abs(at[row] - at[other]) <= 0.05 for other in group)]
        groups = [group for group in groups if group not in near] + [[*chain(*near), row]]
    return groups


def losses(rows: Sequence[Row], phase: PhaseName) -> list[str]:
    """Return the losses of a phase by tokens and by time; none where there is nothing to draw."""
    curves = {row: row.curves[phase] for row in rows if phase in row.curves}
    ylabel = "loss (nats a target)"
    if loss_measure(list(curves))[0] == BITS:
        ylabel, curves = f"loss ({BITS})", {row: curve.in_bits() for row, curve in curves.items()}
    longest = max((point.seconds for curve in curves.values() for point in curve.train), default=0.0)
    unit, seconds = next((u, s) for u, s, most in UNITS if longest < most)
    said = f"of {len(curves)} runs in {phase}, thin in training, marked in validation"
    drawn = (
        _losses(curves, pens(rows), lambda p: p.tokens, "tokens", ylabel, f"Loss by tokens {said}"),
        _losses(curves, pens(rows), lambda p: p.seconds / seconds, unit, ylabel, f"Loss by time {said}"),
    )
    return [img for img in drawn if img]


@dataclass(frozen=True)
class Pen:
    """How a run is drawn wherever it is drawn; `told` if it stands out from the rest."""

    colour: str = FAINT
    dashed: bool = False
    told: bool = False


def _losses(
    curves: dict[Row, Curve], pen: dict[Row, Pen], place: Place, xlabel: str, ylabel: str, alt: str
) -> str:
    if not (limits := _limits(curves)):
        return ""
    with drawing(xlabel, ylabel, alt) as result:
        for row, curve in sorted(curves.items(), key=lambda item: pen[item[0]].told):
            _trace(result.axes, curve, place, pen[row])
        result.axes.set_ylim(*limits)
        result.axes.set_xlim(left=0)
        if xlabel == "tokens":
            _thousands(result.axes.xaxis)
    return result.img


def _trace(axes: "Axes", curve: Curve, place: Place, pen: Pen) -> None:
    """Draw a run: validation on top of training; of one among many, a thin line of validation alone."""
    style: dict[str, Any] = {"color": pen.colour, "linestyle": "--" if pen.dashed else "-", "markersize": 3.5}
    losses = _xy(curve.val, place)
    if pen.told:
        axes.plot(*_xy(curve.train, place), linewidth=0.8, alpha=0.45, **style)
        axes.plot(*losses, linewidth=1.6, marker="o", **style)
    else:
        axes.plot(*losses, linewidth=0.8, marker="" if len(losses[0]) > 1 else ".", **style)


def _xy(points: Sequence[Point], place: Place) -> tuple[list[float], list[float]]:
    """Return what is to be drawn of a curve, thinned out; its last point stays."""
    able = [point for point in points if math.isfinite(point.loss)]
    every = max(1, math.ceil(len(able) / MOST_POINTS))
    kept = able[::-every][::-1]
    return [place(point) for point in kept], [point.loss for point in kept]


def _limits(curves: dict[Row, Curve]) -> tuple[float, float] | None:
    """Return the range of losses to draw: the steep first tenth of a run may leave it at the top."""
    seen = list(chain.from_iterable(_settled(curve) for curve in curves.values()))
    if not seen:
        return None
    margin = 0.05 * (max(seen) - min(seen)) or 0.1
    return min(seen) - margin, max(seen) + margin


def _settled(curve: Curve) -> Iterator[float]:
    points = [point for point in (*curve.train, *curve.val) if math.isfinite(point.loss)]
    end = max((point.tokens for point in points), default=0.0)
    yield from (point.loss for point in points if point.tokens >= end / 10)


def _thousands(axis: "Axis") -> None:
    """Write 12 k for 12000."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    axis.set_major_formatter(EngFormatter(sep=" "))
    axis.set_major_locator(MaxNLocator(6))


def pens(rows: Sequence[Row]) -> dict[Row, Pen]:
    """Return a pen for each row: all differ where they are few, else those of the lowest losses do."""
    drawn = [row for row in rows if row.curves]
    chosen = drawn if len(drawn) <= MOST_TOLD else by_loss(drawn)[: len(HUES) // 2]
    hues = zip(chosen, cycle(HUES), strict=False)
    told = {row: Pen(hue, n >= len(HUES), True) for n, (row, hue) in enumerate(hues)}
    return {row: told.get(row, Pen()) for row in rows}


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
