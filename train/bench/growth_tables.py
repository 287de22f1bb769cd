"""How cost grew, as a table for people and as JSON for programs."""

from dataclasses import asdict
from typing import Any

from train.bench.grow import MEMORIES, Growth, letters, peak_in_theory, size
from train.bench.shapes import Shape
from train.text_table import mib, table

FACTS = ("tokens/s", "CPU s/step", "peak MiB")


def as_text(growth: Growth) -> str:
    """Return a line for each point, what theory says in brackets, and how to read it."""
    head = ("", *(f"{fact}, {memory}" for fact in FACTS for memory in MEMORIES))
    rows = [
        (f"{axis}={size(shape, axis)}", *cells(growth, shape))
        for axis, shapes in growth.axes.items()
        for shape in shapes
    ]
    return (
        f"{table([head, *rows], right=range(1, len(head)), markdown=True)}\n"
        f"one size varied at a time around {letters(growth.middle)}; with memory off and ckpt; (in theory)\n"
        f"theory of tokens/s: {growth.share:.0%} of {growth.limit:.0f} GFLOP/s, fitted there with memory=off"
    )


def cells(growth: Growth, shape: Shape) -> list[str]:
    """Return what was measured of a shape, fact by fact, with each memory."""
    found = [point(growth, shape, memory) for memory in MEMORIES]
    return [
        *(f"{one['tokens_per_second']:,.0f} ({one['tokens_in_theory']:,.0f})" for one in found),
        *(f"{one['cpu']:.3f}" for one in found),
        *(f"{mib(one['peak'])} ({mib(one['peak_in_theory'])})" for one in found),
    ]


def point(growth: Growth, shape: Shape, memory: str) -> dict[str, Any]:
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
    """Return all of it, every turn too."""
    return {
        "effort": asdict(growth.effort),
        "middle": growth.middle.model_dump(),
        "limit_gflops": growth.limit,
        "share_of_limit": growth.share,
        "points": [
            {"axis": axis, "size": size(shape, axis), **point(growth, shape, memory)}
            | {"turns": [asdict(turn) for turn in growth.turns[shape, memory]]}
            for axis, shapes in growth.axes.items()
            for shape in shapes
            for memory in MEMORIES
        ],
    }
