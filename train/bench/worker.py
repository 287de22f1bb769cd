"""The benchmark's subprocess: it races a contestant, watches its memory over many steps or measures the machine.

The question comes in on stdin and the answer goes out on stdout, both as JSON.
"""

import json
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from niels_gpt.device import read_proc_bytes
from train.bench.contestants import CPU, prepare_contestant
from train.bench.shapes import Shape
from train.cli.subprocesses import end_with_parent
from train.hardware.cpu import prefer_onednn
from train.hardware.memory_tracker import LiveBytes

STATUS = "/proc/self/status"  # of a process: VmRSS is resident now, VmHWM at most so far
N = 2048  # rows and columns of the matrices that measure the machine
COPIED = 1 << 28  # bytes


class Laps:
    """Times of optimizer steps, wall and CPU seconds each; peak memory above what there was after the warm-up."""

    def __init__(self, warmup: int) -> None:
        self.warmup = warmup
        self.stamps = [(time.perf_counter(), time.process_time())]
        self.before = self.after = 0

    def __call__(self) -> None:
        """Note the end of a step; the first ones compile and allocate."""
        self.stamps.append((time.perf_counter(), time.process_time()))
        self.after = read_proc_bytes(STATUS, "VmHWM")
        if len(self.stamps) == self.warmup + 1:
            self.before = read_proc_bytes(STATUS, "VmRSS")
            forget_peak()

    def as_json(self) -> dict[str, Any]:
        """Return the seconds of each step; `first` is the first step's."""
        wall, cpu = (
            [after - before for before, after in pairwise(clock)] for clock in zip(*self.stamps, strict=True)
        )
        peak = self.after - self.before if self.before else None
        return {"wall": wall[self.warmup :], "cpu": cpu[self.warmup :], "first": wall[0], "peak": peak}


def forget_peak() -> None:
    """Make the peak begin again at what is resident now."""
    peak = Path("/proc/self/clear_refs")
    if peak.exists():
        peak.write_text("5")


class CountedLaps(Laps):
    """Laps with a step more to warm up, whose tensors are counted: their peak in bytes is the peak."""

    def __init__(self, warmup: int) -> None:
        super().__init__(warmup + 1)
        self.live, self.counting = LiveBytes(CPU), ExitStack()

    def __call__(self) -> None:
        """Note the end of a step; the counter is at work from the end of the last but one to warm up."""
        super().__call__()
        taken = len(self.stamps) - 1
        if taken == self.warmup - 1:
            self.counting.enter_context(self.live)
        elif taken == self.warmup:
            self.counting.close()

    def as_json(self) -> dict[str, Any]:
        """Return the seconds of each step, and the peak of the one that was counted."""
        return super().as_json() | {"peak": self.live.peak}


def race(asked: dict[str, Any]) -> dict[str, Any]:
    """Take the steps of a turn and return their times."""
    contestant = prepare_contestant(asked["contestant"], asked["threads"], frugal=asked["frugal"])
    laps = (CountedLaps if asked["counted"] else Laps)(asked["warmup"])
    contestant.take(Shape(**asked["shape"]), contestant.settings, laps.warmup + asked["steps"], laps)
    return laps.as_json()


def stay(asked: dict[str, Any]) -> list[dict[str, int]]:
    """Take the steps with evaluations and checkpoints, ten of each, and return what is held at the marks."""
    contestant = prepare_contestant(asked["contestant"], asked["threads"])
    steps, held, taken = asked["steps"], list[dict[str, int]](), 0
    often = {"eval_every": steps // 10, "ckpt_every": steps // 10}

    def lap() -> None:
        nonlocal taken
        taken += 1
        if taken in asked["marks"]:
            resident = read_proc_bytes(STATUS, "VmRSS")
            held.append({"step": taken, "resident": resident, "live": live.now, "tensors": live.count})

    with LiveBytes(CPU) as live:  # weights and all
        contestant.take(Shape(**asked["shape"]), contestant.settings | often, steps, lap)
    return held


def limits(asked: dict[str, Any]) -> dict[str, float]:
    """Return GFLOP/s of a product of N x N matrices, and GB/s read and written by a copy: the best of some tries.

    The product is made by each library that a run may use.
    """
    torch.set_num_threads(asked["threads"])
    a, b, out = torch.randn(N, N), torch.randn(N, N), torch.empty(N, N)
    here, there = torch.ones(COPIED // 4), torch.ones(COPIED // 4)

    def best(work: Callable[[], object]) -> float:
        """Return the least seconds: other work on the machine only adds."""
        seconds = []
        for _ in range(asked["tries"]):
            started = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - started)
        return min(seconds)

    product = best(lambda: torch.mm(a, b, out=out))
    if prefer_onednn():
        product = min(product, best(lambda: torch.mm(a, b, out=out)))
    copy = best(lambda: there.copy_(here))
    return {"gflops": 2 * N**3 / product / 1e9, "copy_gb": 2 * COPIED / copy / 1e9}


TASKS: dict[str, Callable[[dict[str, Any]], object]] = {"race": race, "stay": stay, "limits": limits}

if __name__ == "__main__":
    end_with_parent()
    question = json.loads(sys.stdin.read())
    print(json.dumps(TASKS[question["task"]](question)))
