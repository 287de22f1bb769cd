"""Measure how the cost of a step grows with each size of a shape, and compare with theory.

The theory of speed fits one number, the operations a second that the middle shape reaches with memory off; the
tokens/s at other sizes follow from their work alone. The theory of memory is predict_peak's.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from niels_gpt.errors import ConfigError
from train.bench.contestants import CONTESTANTS, CPU, make_train_cfg
from train.bench.race import measure_limit, take_turn
from train.bench.shapes import Shape
from train.cli.output import MIB, format_mib, format_table
from train.hardware.step_cost import predict_peak
from train.report.figures import HUES, STYLE

MEMORIES = {"off": "ours", "ckpt": "ours-ckpt"}  # -> the contestant that takes the steps
FACTS = ("tokens/s", "CPU s/step", "peak MiB")
PANELS = (("tokens/s", "tokens_per_second", "tokens_in_theory", 1), ("peak MiB", "peak", "peak_in_theory", MIB))


def measure_growth(middle: Shape, axes: Sequence[str], factors: Sequence[float], steps: int) -> dict[str, Any]:
    """Measure every shape with each memory, each in a fresh process; return the points for JSON.

    ConfigError if a factor gives an impossible shape. NielsError if a turn failed.
    """
    factors = sorted({1.0, *factors})
    shapes = [(axis, scale_shape(middle, axis, factor)) for axis in axes for factor in factors]
    limit, turns = measure_limit(), {}
    for shape in dict.fromkeys(shape for _, shape in shapes):
        for memory, contestant in MEMORIES.items():
            turn = take_turn(contestant, shape, steps, peak="tensors")
            print(f"{shape} memory={memory}: {turn.wall:.3f} s a step")
            turns[shape, memory] = turn
    reached = middle.flops / turns[middle, "off"].wall
    points = []
    for axis, shape in shapes:
        for memory, contestant in MEMORIES.items():
            turn = turns[shape, memory]
            work = shape.flops + (shape.flops_again if memory == "ckpt" else 0)
            cfg = make_train_cfg(shape, CONTESTANTS[contestant].settings, steps)
            points.append(
                {"axis": axis, "size": get_size(shape, axis), "memory": memory}
                | turn._asdict()
                | {"tokens_per_second": shape.tokens / turn.wall}
                | {"tokens_in_theory": shape.tokens * reached / work}
                | {"peak_in_theory": predict_peak(shape.model, cfg, CPU)}
            )
    found = {"middle": str(middle), "steps": steps, "gflops_limit": limit / 1e9}
    return found | {"share_of_limit": reached / limit, "points": points}


def get_size(shape: Shape, axis: str) -> int:
    """Return the size of a shape along an axis."""
    return int(shape.B if axis == "B" else getattr(shape.model, axis))


def scale_shape(shape: Shape, axis: str, factor: float) -> Shape:
    """Return the shape with one size multiplied by a factor. ConfigError if no shape has that size."""
    changed = get_size(shape, axis) * factor
    given = shape.model_dump()
    (given if axis == "B" else given["model"])[axis] = int(changed) if changed.is_integer() else changed
    try:
        return Shape(**given)
    except ValidationError as error:
        raise ConfigError(f"{axis}={changed:g}: {error.errors()[0]['msg']}", "choose other --factors") from None


def format_growth(growth: dict[str, Any]) -> str:
    """Return a line for each size, theory in brackets, and how to read it."""
    rows: list[list[str]] = [["", *(f"{fact}, {memory}" for fact in FACTS for memory in MEMORIES)]]
    points = growth["points"]
    for both in zip(points[::2], points[1::2], strict=True):
        rows.append(
            [
                "{axis}={size}".format(**both[0]),
                *("{tokens_per_second:,.0f} ({tokens_in_theory:,.0f})".format(**point) for point in both),
                *("{cpu:.3f}".format(**point) for point in both),
                *(f"{format_mib(point['peak'])} ({format_mib(point['peak_in_theory'])})" for point in both),
            ]
        )
    return (
        f"{format_table(rows, right=range(1, len(rows[0])), markdown=True)}\n"
        f"one size varied at a time around {growth['middle']}; memory off and ckpt; (in theory)\n"
        f"theory of tokens/s: {growth['share_of_limit']:.0%} of {growth['gflops_limit']:.0f} GFLOP/s, "
        "fitted there with memory=off"
    )


def draw_growth(growth: dict[str, Any], path: Path) -> None:
    """Draw speed and peak memory against each size as SVG, dots measured and dashes in theory."""
    from matplotlib import rc_context  # here: importing it takes as long as ten steps
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, LogLocator, NullLocator

    axes = list(dict.fromkeys(point["axis"] for point in growth["points"]))
    with rc_context(STYLE):
        figure = Figure(figsize=(2.5 * len(axes) + 0.6, 5.0), layout="constrained")
        panels = figure.subplots(len(PANELS), len(axes), sharex="col", sharey="row", squeeze=False)
        for row, (label, measured, in_theory, unit) in zip(panels, PANELS, strict=True):
            row[0].set_ylabel(label)
            for panel, axis in zip(row, axes, strict=True):
                for memory, hue in zip(MEMORIES, HUES, strict=False):
                    points = [p for p in growth["points"] if (p["axis"], p["memory"]) == (axis, memory)]
                    sizes = [point["size"] for point in points]
                    theory, dots = ([point[key] / unit for point in points] for key in (in_theory, measured))
                    panel.plot(sizes, theory, "--", color=hue, label=f"{memory}, theory")
                    panel.plot(sizes, dots, "o", color=hue, label=f"memory={memory}")
                panel.set_xscale("log", base=2)
                panel.set_xticks(sizes, [f"{size >> 10}Ki" if size >= 10_000 else str(size) for size in sizes])
                panel.xaxis.set_minor_locator(NullLocator())
                panel.set_yscale("log")
                panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                panel.yaxis.set_minor_locator(NullLocator())
                panel.yaxis.set_major_formatter(EngFormatter(sep=""))
        for panel, axis in zip(panels[-1], axes, strict=True):
            panel.set_xlabel(axis)
        handles, labels = panels[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False)
        figure.savefig(path, format="svg", facecolor="white")
