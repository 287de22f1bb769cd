"""Measure how the cost of a step grows with each size of a shape, and compare with theory.

The theory of speed fits one number, the share of the machine's limit that the middle shape reaches with memory
off; the tokens/s at other sizes follow from their work alone. The theory of memory is predict_peak's.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from niels_gpt.errors import ConfigError
from train.bench.contestants import CONTESTANTS, CPU, make_train_cfg
from train.bench.race import RaceTurn, Say, TimingOptions, measure_limits, take_turn
from train.bench.shapes import Shape
from train.cli.output import MIB, format_mib, format_table
from train.hardware.step_cost import predict_peak
from train.report.figures import HUES, STYLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MEMORIES = {"off": "ours", "ckpt": "ours-ckpt"}  # -> who takes the steps
FACTS = ("tokens/s", "CPU s/step", "peak MiB")
ROWS = (("tokens/s", "tokens_per_second", "tokens_in_theory", 1), ("peak MiB", "peak", "peak_in_theory", MIB))


@dataclass(frozen=True)
class Growth:
    """The shapes of each axis, ascending, the turns of each shape with each memory, and the limit in GFLOP/s."""

    effort: TimingOptions
    middle: Shape
    axes: dict[str, list[Shape]]
    turns: dict[tuple[Shape, str], list[RaceTurn]]
    limit: float

    def wall(self, shape: Shape, memory: str) -> float:
        """Return the median seconds of a step."""
        return median(turn.seconds("wall") for turn in self.turns[shape, memory])

    @property
    def share(self) -> float:
        """The share of the limit that the middle reaches with memory off; only this number is fitted."""
        return self.middle.flops / self.wall(self.middle, "off") / 1e9 / self.limit


def measure_growth(
    middle: Shape, axes: Sequence[str], factors: Sequence[float], effort: TimingOptions, say: Say
) -> Growth:
    """Measure every shape with each memory, each turn in a fresh process, round by round.

    Raises:
        ConfigError: a factor gives an impossible shape.
        RaceFailed: a turn failed.
    """
    shapes = {axis: [scale_shape(middle, axis, factor) for factor in sorted({1.0, *factors})] for axis in axes}
    points = dict.fromkeys((shape, memory) for row in shapes.values() for shape in row for memory in MEMORIES)
    limit = measure_limits(effort.threads)["gflops"]
    turns: dict[tuple[Shape, str], list[RaceTurn]] = {point: [] for point in points}
    for number in range(effort.rounds):
        for shape, memory in points:
            turn = take_turn(MEMORIES[memory], shape, effort, peak="tensors")
            turns[shape, memory].append(turn)
            say(
                f"round {number + 1}: {describe_shape(shape)} memory={memory}: {turn.seconds('wall'):.3f} s a step"
            )
    return Growth(effort, middle, shapes, turns, limit)


def get_size(shape: Shape, axis: str) -> int:
    """Return the size of a shape along an axis."""
    return int(shape.B if axis == "B" else getattr(shape.model, axis))


def scale_shape(shape: Shape, axis: str, factor: float) -> Shape:
    """Return the shape with one size multiplied by a factor.

    Raises:
        ConfigError: no shape has that size.
    """
    changed = get_size(shape, axis) * factor
    given = shape.model_dump()
    (given if axis == "B" else given["model"])[axis] = int(changed) if changed.is_integer() else changed
    try:
        return Shape(**given)
    except ValidationError as error:
        why = error.errors()[0]["msg"]
        raise ConfigError(
            f"{axis}={get_size(shape, axis)} times {factor:g} is {changed:g}: {why}", "choose other --factors"
        ) from None


def describe_shape(shape: Shape) -> str:
    """Return the sizes of a shape."""
    m = shape.model
    sizes = f"T={m.T} C={m.C} L={m.L} H={m.H} d_ff={m.d_ff} V={m.V} B={shape.B}"
    return sizes + (f" accum_steps={shape.accum_steps}" if shape.accum_steps > 1 else "")


def growth_table(growth: Growth) -> str:
    """Return a line for each point, theory in brackets, and how to read it."""
    rows: list[list[str]] = [["", *(f"{fact}, {memory}" for fact in FACTS for memory in MEMORIES)]]
    for axis, shapes in growth.axes.items():
        for shape in shapes:
            points = [_compare_point(growth, shape, memory) for memory in MEMORIES]
            rows.append(
                [
                    f"{axis}={get_size(shape, axis)}",
                    *(f"{one['tokens_per_second']:,.0f} ({one['tokens_in_theory']:,.0f})" for one in points),
                    *(f"{one['cpu']:.3f}" for one in points),
                    *(f"{format_mib(one['peak'])} ({format_mib(one['peak_in_theory'])})" for one in points),
                ]
            )
    return (
        f"{format_table(rows, right=range(1, len(rows[0])), markdown=True)}\n"
        f"one size varied at a time around {describe_shape(growth.middle)}; memory off and ckpt; (in theory)\n"
        f"theory of tokens/s: {growth.share:.0%} of {growth.limit:.0f} GFLOP/s, fitted there with memory=off"
    )


def _compare_point(growth: Growth, shape: Shape, memory: str) -> dict[str, Any]:
    """Return the measurements of a shape with a memory, beside theory."""
    turns, wall = growth.turns[shape, memory], growth.wall(shape, memory)
    work = shape.flops + (shape.flops_again if memory == "ckpt" else 0)
    cfg = make_train_cfg(shape, CONTESTANTS[MEMORIES[memory]].settings, 1)
    return {
        "memory": memory,
        "wall": wall,
        "cpu": median(turn.seconds("cpu") for turn in turns),
        "tokens_per_second": shape.tokens / wall,
        "tokens_in_theory": shape.tokens * growth.share * growth.limit * 1e9 / work,
        "peak": max(turn.peak or 0 for turn in turns),
        "peak_in_theory": predict_peak(shape.model, cfg, CPU),
    }


def growth_to_json(growth: Growth) -> dict[str, Any]:
    """Return the growth with every turn."""
    return {
        "effort": asdict(growth.effort),
        "middle": growth.middle.model_dump(),
        "limit_gflops": growth.limit,
        "share_of_limit": growth.share,
        "points": [
            {"axis": axis, "size": get_size(shape, axis), **_compare_point(growth, shape, memory)}
            | {"turns": [asdict(turn) for turn in growth.turns[shape, memory]]}
            for axis, shapes in growth.axes.items()
            for shape in shapes
            for memory in MEMORIES
        ],
    }


def draw_growth(growth: Growth, path: Path) -> None:
    """Draw speed and peak memory against each size, dots measured and dashes in theory, to an .svg or .png."""
    from matplotlib import rc_context  # here: importing it takes as long as ten steps
    from matplotlib.figure import Figure

    with rc_context(STYLE | {"svg.hashsalt": "growth"}):
        figure = Figure(figsize=(2.5 * len(growth.axes) + 0.6, 5.0), layout="constrained")
        panels = figure.subplots(len(ROWS), len(growth.axes), sharex="col", sharey="row", squeeze=False)
        for row, facts in zip(panels, ROWS, strict=True):
            for axes, axis in zip(row, growth.axes, strict=True):
                _draw_panel(axes, growth, axis, facts)
            row[0].set_ylabel(facts[0])
        for axes, axis in zip(panels[-1], growth.axes, strict=True):
            axes.set_xlabel(axis)
        handles, labels = panels[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False)
        metadata = {"Date": None} if path.suffix == ".svg" else None
        figure.savefig(path, facecolor="white", dpi=160, metadata=metadata)


def _draw_panel(axes: "Axes", growth: Growth, axis: str, facts: tuple[str, str, str, int]) -> None:
    """Draw one fact against one size."""
    from matplotlib.ticker import EngFormatter, LogLocator, NullLocator

    _, measured, in_theory, unit = facts
    shapes = growth.axes[axis]
    sizes = [get_size(shape, axis) for shape in shapes]
    for memory, hue in zip(MEMORIES, HUES, strict=False):
        points = [_compare_point(growth, shape, memory) for shape in shapes]
        axes.plot(sizes, [one[in_theory] / unit for one in points], "--", color=hue, label=f"{memory}, theory")
        axes.plot(sizes, [one[measured] / unit for one in points], "o", color=hue, label=f"memory={memory}")
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(value) if value < 10_000 else f"{value >> 10}Ki" for value in sizes])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(EngFormatter(sep=""))
