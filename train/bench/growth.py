"""Measure how the cost of a step grows with each size of a shape, and compare with theory.

Theory of speed: the share of the machine's limit that the shape in the middle reaches with memory off is fixed;
tokens/s at other sizes follow from their work alone. Theory of memory is that of train/hardware/step_cost.py.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from niels_gpt.errors import ConfigError
from train.bench.contestants import CONTESTANTS, CPU, train_cfg
from train.bench.race import Effort, Say, Turn, measure_limits, take_turn
from train.bench.shapes import Shape
from train.cli.output import MIB, mib, table
from train.hardware.step_cost import theory
from train.report.figures import HUES, STYLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MEMORIES = {"off": "ours", "ckpt": "ours-ckpt"}  # -> who takes the steps
ON_ANY_PAGE = "#7a7f87"  # legible on white and on black: the page is not known here
FACTS = ("tokens/s", "CPU s/step", "peak MiB")
ROWS = (("tokens/s", "tokens_per_second", "tokens_in_theory", 1), ("peak MiB", "peak", "peak_in_theory", MIB))


@dataclass(frozen=True)
class Growth:
    """The shapes of each axis, ascending, the turns of each shape with each memory, and the limit in GFLOP/s."""

    effort: Effort
    middle: Shape
    axes: dict[str, list[Shape]]
    turns: dict[tuple[Shape, str], list[Turn]]
    limit: float

    def wall(self, shape: Shape, memory: str) -> float:
        """Return the median seconds of a step."""
        return median(turn.seconds("wall") for turn in self.turns[shape, memory])

    def cpu(self, shape: Shape, memory: str) -> float:
        """Return the median CPU seconds of a step, all threads together."""
        return median(turn.seconds("cpu") for turn in self.turns[shape, memory])

    def peak(self, shape: Shape, memory: str) -> int:
        """Return the most bytes of tensors there were in a step, above weights and optimizer state."""
        return max(turn.peak or 0 for turn in self.turns[shape, memory])

    @property
    def share(self) -> float:
        """The share of the limit that the middle reaches with memory off: the one number fitted."""
        return self.middle.flops / self.wall(self.middle, "off") / 1e9 / self.limit

    def tokens_in_theory(self, shape: Shape, memory: str) -> float:
        """Return the tokens a second that this share gives."""
        work = shape.flops + (shape.flops_again if memory == "ckpt" else 0)
        return shape.tokens * self.share * self.limit * 1e9 / work


def peak_in_theory(shape: Shape, memory: str) -> int:
    """Return the bytes that a step takes above weights and optimizer state."""
    return theory(shape.model, train_cfg(shape, CONTESTANTS[MEMORIES[memory]].settings, 1), CPU)


def grow(middle: Shape, axes: Sequence[str], factors: Sequence[float], effort: Effort, say: Say) -> Growth:
    """Measure every shape with each memory, each turn in a fresh process, round by round.

    Raises:
        ConfigError: a shape cannot be.
        RaceFailed: one could not take its steps.
    """
    shapes = {axis: [varied(middle, axis, factor) for factor in sorted({1.0, *factors})] for axis in axes}
    points = list(
        dict.fromkeys((shape, memory) for row in shapes.values() for shape in row for memory in MEMORIES)
    )
    limit = measure_limits(effort.threads)["gflops"]
    turns: dict[tuple[Shape, str], list[Turn]] = {point: [] for point in points}
    for number in range(effort.rounds):
        for shape, memory in points:
            turn = take_turn(MEMORIES[memory], shape, effort, counted=True)
            turns[shape, memory].append(turn)
            say(f"round {number + 1}: {letters(shape)} memory={memory}: {turn.seconds('wall'):.3f} s a step")
    return Growth(effort, middle, shapes, turns, limit)


def size(shape: Shape, axis: str) -> int:
    """Return how large a shape is along an axis."""
    return int(shape.B if axis == "B" else getattr(shape.model, axis))


def varied(shape: Shape, axis: str, factor: float) -> Shape:
    """Return the shape with one size that many times as large.

    Raises:
        ConfigError: there is no such shape.
    """
    changed = size(shape, axis) * factor
    given = shape.model_dump()
    (given if axis == "B" else given["model"])[axis] = int(changed) if changed == int(changed) else changed
    try:
        return Shape(**given)
    except ValidationError as error:
        why = error.errors()[0]["msg"]
        raise ConfigError(
            f"{axis}={size(shape, axis)} times {factor:g} is {changed:g}: {why}", "choose other --factors"
        ) from None


def letters(shape: Shape) -> str:
    """Return the sizes of a shape."""
    m = shape.model
    sizes = f"T={m.T} C={m.C} L={m.L} H={m.H} d_ff={m.d_ff} V={m.V} B={shape.B}"
    return sizes + (f" accum_steps={shape.accum_steps}" if shape.accum_steps > 1 else "")


def as_text(growth: Growth) -> str:
    """Return a line for each point, theory in brackets, and how to read it."""
    head = ("", *(f"{fact}, {memory}" for fact in FACTS for memory in MEMORIES))
    rows = [
        (f"{axis}={size(shape, axis)}", *_cells(growth, shape))
        for axis, shapes in growth.axes.items()
        for shape in shapes
    ]
    return (
        f"{table([head, *rows], right=range(1, len(head)), markdown=True)}\n"
        f"one size varied at a time around {letters(growth.middle)}; with memory off and ckpt; (in theory)\n"
        f"theory of tokens/s: {growth.share:.0%} of {growth.limit:.0f} GFLOP/s, fitted there with memory=off"
    )


def _cells(growth: Growth, shape: Shape) -> list[str]:
    found = [_point(growth, shape, memory) for memory in MEMORIES]
    return [
        *(f"{one['tokens_per_second']:,.0f} ({one['tokens_in_theory']:,.0f})" for one in found),
        *(f"{one['cpu']:.3f}" for one in found),
        *(f"{mib(one['peak'])} ({mib(one['peak_in_theory'])})" for one in found),
    ]


def _point(growth: Growth, shape: Shape, memory: str) -> dict[str, Any]:
    """Return what was measured of a shape with a memory, and what theory says."""
    wall = growth.wall(shape, memory)
    return {
        "memory": memory,
        "wall": wall,
        "cpu": growth.cpu(shape, memory),
        "tokens_per_second": shape.tokens / wall,
        "tokens_in_theory": growth.tokens_in_theory(shape, memory),
        "peak": growth.peak(shape, memory),
        "peak_in_theory": peak_in_theory(shape, memory),
    }


def as_json(growth: Growth) -> dict[str, Any]:
    """Return all of it for programs, every turn too."""
    return {
        "effort": asdict(growth.effort),
        "middle": growth.middle.model_dump(),
        "limit_gflops": growth.limit,
        "share_of_limit": growth.share,
        "points": [
            {"axis": axis, "size": size(shape, axis), **_point(growth, shape, memory)}
            | {"turns": [asdict(turn) for turn in growth.turns[shape, memory]]}
            for axis, shapes in growth.axes.items()
            for shape in shapes
            for memory in MEMORIES
        ],
    }


def draw(growth: Growth, path: Path) -> None:
    """Draw speed and peak memory against each size, measured and in theory; the name's ending is the format."""
    from matplotlib import rc_context  # here: importing it takes as long as ten steps
    from matplotlib.figure import Figure

    style = STYLE | {key: ON_ANY_PAGE for key, value in STYLE.items() if str(value).startswith("#")}
    with rc_context(style | {"svg.hashsalt": "growth", "grid.alpha": 0.35}):
        figure = Figure(figsize=(2.5 * len(growth.axes) + 0.6, 5.0), layout="constrained")
        panels = figure.subplots(len(ROWS), len(growth.axes), sharex="col", sharey="row", squeeze=False)
        for row, facts in zip(panels, ROWS, strict=True):
            for axes, axis in zip(row, growth.axes, strict=True):
                _panel(axes, growth, axis, facts)
            row[0].set_ylabel(facts[0])
        for axes, axis in zip(panels[-1], growth.axes, strict=True):
            axes.set_xlabel(axis)
        handles, labels = panels[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False)
        metadata = {"Date": None} if path.suffix == ".svg" else None
        figure.savefig(path, transparent=True, dpi=160, metadata=metadata)


def _panel(axes: "Axes", growth: Growth, axis: str, facts: tuple[str, str, str, int]) -> None:
    """Draw one fact against one size: dots are measured, dashes are theory."""
    from matplotlib.ticker import EngFormatter, LogLocator, NullLocator

    _, measured, in_theory, unit = facts
    shapes = growth.axes[axis]
    sizes = [size(shape, axis) for shape in shapes]
    for memory, hue in zip(MEMORIES, HUES, strict=False):
        points = [_point(growth, shape, memory) for shape in shapes]
        axes.plot(sizes, [one[in_theory] / unit for one in points], "--", color=hue, label=f"{memory}, theory")
        axes.plot(sizes, [one[measured] / unit for one in points], "o", color=hue, label=f"memory={memory}")
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(value) if value < 10_000 else f"{value >> 10}Ki" for value in sizes])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(EngFormatter(sep=""))
