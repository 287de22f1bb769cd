"""Measure what libgomp's spin count costs and gains: steps alone, and beside a busy process for each core."""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import median
from typing import Any

from train.bench.race import run_worker
from train.bench.shapes import SHAPES
from train.cli.output import format_table

BUSY = """
import os, sys, threading
threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0))).start()
while True: pass
"""  # it ends with the process that started it
DEFAULT = 300_000  # libgomp's own spin count while OMP_WAIT_POLICY is not set


def measure_spinning(name: str, counts: Sequence[int], rounds: int, steps: int) -> dict[str, Any]:
    """Time steps at a shape with each spin count and libgomp's own, in turns, and print a table of medians."""
    shape = SHAPES[name]
    speeds: dict[int, dict[str, list[float]]] = {n: {"quiet": [], "busy": []} for n in (DEFAULT, *counts)}
    asked = {"contestant": "ours", "shape": shape.model_dump(), "steps": steps, "peak": None}
    for number in range(rounds):
        for count, found in speeds.items():
            for load, processes in (("quiet", 0), ("busy", os.cpu_count() or 1)):
                with busy_processes(processes):
                    turn = run_worker("turn", asked, {"GOMP_SPINCOUNT": str(count)})
                found[load].append(shape.tokens / turn["wall"])
                print(f"{name} round {number + 1}: spin count {count:<9,} {load}: {found[load][-1]:,.0f} tokens/s")
    print(format_spinning(speeds))
    return {"shape": name, "steps": steps, "tokens_per_second": speeds}


def format_spinning(speeds: dict[int, dict[str, list[float]]]) -> str:
    """Return a line for each spin count; shares are of the quiet speed with libgomp's own."""
    whole = median(speeds[DEFAULT]["quiet"])
    rows = [("spin count", "quiet tokens/s", "share", "busy tokens/s", "share")]
    for count, found in speeds.items():
        quiet, busy = (median(found[load]) for load in ("quiet", "busy"))
        rows.append((f"{count:,}", f"{quiet:,.0f}", f"{quiet / whole:.0%}", f"{busy:,.0f}", f"{busy / whole:.0%}"))
    return format_table(rows)


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Keep so many cores busy with a process each."""
    started = [subprocess.Popen([sys.executable, "-c", BUSY], stdin=subprocess.PIPE) for _ in range(count)]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()
