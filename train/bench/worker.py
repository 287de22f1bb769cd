"""The benchmark's subprocess: take a contestant's turn, watch its memory over many steps, or measure the machine.

It reads the task from stdin and prints the result, both as JSON.
"""

import json
import sys
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch

from niels_gpt.device import read_proc_bytes, reset_peak_memory
from train.bench.contestants import CPU, prepare_contestant
from train.bench.shapes import Shape
from train.cli.subprocesses import end_with_parent
from train.hardware.cpu import prefer_onednn
from train.hardware.memory_tracker import LiveBytes
from train.hardware.step_cost import StepTimer, time_steps

STATUS = "/proc/self/status"  # VmRSS is the resident size now, VmHWM its peak
N = 2048  # rows and columns of the matrices that measure the machine
COPIED = 1 << 28  # bytes


class TurnRecorder:
    """Record a turn: the seconds of each step and, as `peak` asks, the most memory above that after the warm-up.

    "resident" is the process's resident size; "tensors" is the bytes of tensors in one more step of warm-up.
    """

    def __init__(self, warmup: int, peak: str | None) -> None:
        self.peak, self.warmup = peak, warmup + (peak == "tensors")
        self.timer, self.live, self.counting = StepTimer(CPU), LiveBytes(CPU), ExitStack()
        self.before = self.after = 0

    def __call__(self) -> None:
        """Note the end of a step; the first ones compile and allocate."""
        self.timer()
        taken = len(self.timer.stamps) - 1
        if self.peak == "tensors" and taken == self.warmup - 1:
            self.counting.enter_context(self.live)
        elif self.peak == "tensors" and taken == self.warmup:
            self.counting.close()
        elif self.peak == "resident" and taken == self.warmup:
            reset_peak_memory(CPU)
            self.before = read_proc_bytes(STATUS, "VmRSS")
        elif self.peak == "resident":
            self.after = read_proc_bytes(STATUS, "VmHWM")

    def to_json(self) -> dict[str, Any]:
        """Return the seconds of the timed steps and of the very first one, and the peak in bytes."""
        steps = self.timer.seconds
        peak = self.live.peak if self.peak == "tensors" else self.after - self.before if self.before else None
        timed = steps[self.warmup :]
        return {
            "wall": [s.wall for s in timed],
            "cpu": [s.cpu for s in timed],
            "first": steps[0].wall,
            "peak": peak,
        }


def take_turn(asked: dict[str, Any]) -> dict[str, Any]:
    """Take the steps of a turn and return their times."""
    contestant = prepare_contestant(asked["contestant"], asked["threads"], frugal=asked["peak"] == "resident")
    recorder = TurnRecorder(asked["warmup"], asked["peak"])
    steps = recorder.warmup + asked["steps"]
    contestant.take(Shape(**asked["shape"]), contestant.settings, steps, recorder)
    return recorder.to_json()


def watch_memory(asked: dict[str, Any]) -> list[dict[str, int]]:
    """Take steps with ten evaluations and ten checkpoints; return the memory held after the marked steps."""
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


def measure_limits(asked: dict[str, Any]) -> dict[str, float]:
    """Return the best GFLOP/s of an N x N matrix product, and the best GB/s of a copy, read and written.

    Each library that a run may use makes the product.
    """
    torch.set_num_threads(asked["threads"])
    a, b, out = torch.randn(N, N), torch.randn(N, N), torch.empty(N, N)
    here, there = torch.ones(COPIED // 4), torch.ones(COPIED // 4)
    multiply, copy = partial(torch.mm, a, b, out=out), partial(there.copy_, here)

    def best(work: Callable[[], object]) -> float:
        return min(taken.wall for taken in time_steps(work, asked["tries"], CPU))  # other work only adds time

    product = best(multiply)
    if prefer_onednn():
        product = min(product, best(multiply))
    return {"gflops": 2 * N**3 / product / 1e9, "copy_gb": 2 * COPIED / best(copy) / 1e9}


TASKS: dict[str, Callable[[dict[str, Any]], object]] = {
    "turn": take_turn,
    "memory": watch_memory,
    "limits": measure_limits,
}

if __name__ == "__main__":
    end_with_parent()
    question = json.loads(sys.stdin.read())
    print(json.dumps(TASKS[question["task"]](question)))
