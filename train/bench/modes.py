"""What the benchmark can do: a race, how cost grows, whether memory does; each is told and returned for JSON."""

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from train.bench import growth_tables, overhead, steady, tables
from train.bench.contestants import CONTESTANTS
from train.bench.grow import Effort, grow
from train.bench.growth_figure import draw
from train.bench.race import Course, race
from train.bench.shapes import SHAPES
from train.known import require_known

Say = Callable[[str], None]


def require_racers(contestants: Collection[str], shapes: Collection[str]) -> None:
    """Refuse names that nothing has.

    Raises:
        ConfigError: there are such names.
    """
    one_program = "; all precisions are one program on the CPU; on a Mac scripts/doctor.py times each"
    require_known("contestant", contestants, CONTESTANTS, one_program)
    require_known("shape", shapes, SHAPES)


def raced(courses: Sequence[Course], names: Sequence[str], reference: str, say: Say) -> dict[str, Any]:
    """Race on each course."""
    results = []
    for course in courses:
        found = race(course, names, say)
        say(tables.as_table(found, reference))
        results.append(tables.as_json(found, reference))
    return {"races": results}


def grown(
    shape: str, axes: Sequence[str], factors: Sequence[float], effort: Effort, figure: Path | None, say: Say
) -> dict[str, Any]:
    """Vary the sizes of a shape, one at a time, and draw what comes of it."""
    found = grow(SHAPES[shape], axes, factors, effort, say)
    say(growth_tables.as_text(found))
    if figure:
        draw(found, figure)
        say(f"drew {figure}")
    return {"growth": growth_tables.as_json(found)}


def stayed(shapes: Sequence[str], names: Sequence[str], steps: int, threads: int, say: Say) -> dict[str, Any]:
    """Take many steps of each shape and look at what is held."""
    results = {}
    for shape in shapes:
        found = [steady.stay(name, SHAPES[shape], steps, threads) for name in names]
        say(steady.as_table(found))
        results[shape] = steady.as_json(found)
    return {"steady": results}


def overheads(shapes: Sequence[str], effort: Effort, say: Say) -> dict[str, Any]:
    """Measure what a run adds to the learning; files go to the working folder for a while."""
    return overhead.measured(shapes, effort.steps, effort.warmup, effort.threads, effort.rounds, say)
