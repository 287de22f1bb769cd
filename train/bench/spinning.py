"""Measure what libgomp's spin count costs and gains: steps alone, and beside a busy process for each core."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

from train.bench.race import take_turn
from train.bench.shapes import SHAPES
from train.cli.output import format_table

BUSY = "import os\nparent = os.getppid()\nwhile os.getppid() == parent: pass"  # it ends with its parent
COUNTS = [300_000, 30_000, 10_000, 3_000, 1_000, 0]  # the first is libgomp's own while OMP_WAIT_POLICY is not set


def measure_spinning(name: str, rounds: int, steps: int) -> dict[str, Any]:
    """Time steps at a shape with each spin count, in turns; print medians and shares of the first one, alone."""
    shape, rows = SHAPES[name], [("spin count", "quiet tokens/s", "share", "busy tokens/s", "share")]
    speeds: dict[int, dict[str, list[float]]] = {n: {"quiet": [], "busy": []} for n in COUNTS}
    for number in range(rounds):
        for count, found in speeds.items():
            for load, processes in (("quiet", 0), ("busy", os.cpu_count() or 1)):
                with busy_processes(processes):
                    turn = take_turn("ours", shape, steps, variables={"GOMP_SPINCOUNT": str(count)})
                found[load].append(shape.tokens / turn.wall)
                print(f"{name} round {number + 1}: spin count {count:<9,} {load}: {found[load][-1]:,.0f} tokens/s")
    whole = median(speeds[COUNTS[0]]["quiet"])
    for count, found in speeds.items():
        quiet, busy = (median(found[load]) for load in ("quiet", "busy"))
        rows.append((f"{count:,}", f"{quiet:,.0f}", f"{quiet / whole:.0%}", f"{busy:,.0f}", f"{busy / whole:.0%}"))
    print(format_table(rows))
    return {"shape": name, "steps": steps, "tokens_per_second": speeds}


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Keep so many cores busy with a process each."""
    started = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(count)]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()
