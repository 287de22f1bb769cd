"""The benchmark's subprocess: take a turn, watch memory over many steps, tokenize, or measure the machine.

It reads the task from stdin and prints the result, both as JSON.
"""

import json
import sys
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from statistics import median
from typing import Any

import torch

from niels_gpt.device import read_proc_bytes, reset_peak_memory
from train.bench.contestants import CONTESTANTS, CPU, run_hugging_face
from train.bench.shapes import Shape
from train.bench.tokenizing import build_token_files, encode_batches
from train.cli.subprocesses import end_with_parent
from train.hardware.cpu import prefer_onednn, prepare_cpu
from train.hardware.memory_tracker import LiveBytes
from train.hardware.step_cost import read_clocks, subtract_times, time_steps

STATUS = "/proc/self/status"  # VmRSS is the resident size now, VmHWM its peak
WARMUP_STEPS = 2  # steps of a turn that do not count: the first compiles and allocates
N = 2048  # rows and columns of the matrices that measure the machine


def take_turn(asked: dict[str, Any]) -> dict[str, Any]:
    """Take the steps of a turn; return their seconds and, as `peak` asks, the most bytes above those held before.

    "resident" is the process's resident size in the timed steps, "tensors" the bytes of tensors in a warm-up step.
    """
    contestant, how = CONTESTANTS[asked["contestant"]], asked["peak"]
    stamps, live, counting, before = [read_clocks(CPU)], LiveBytes(), ExitStack(), 0

    def lap() -> None:
        nonlocal before
        taken = len(stamps)
        stamps.append(read_clocks(CPU))
        if how == "tensors" and taken == WARMUP_STEPS - 1:
            counting.enter_context(live)
        elif how == "tensors" and taken == WARMUP_STEPS:
            counting.close()
        elif how == "resident" and taken == WARMUP_STEPS:
            reset_peak_memory(CPU)
            before = read_proc_bytes(STATUS, "VmRSS")

    if contestant.take is not run_hugging_face and how != "resident":
        prepare_cpu(CPU)
    contestant.take(Shape(**asked["shape"]), contestant.settings, WARMUP_STEPS + asked["steps"], lap)
    resident = read_proc_bytes(STATUS, "VmHWM") - before if before else None
    peak = {"tensors": live.peak, "resident": resident}.get(how)
    first, *seconds = subtract_times(stamps)
    wall, cpu = map(median, zip(*seconds[WARMUP_STEPS - 1 :], strict=True))
    return {"wall": wall, "cpu": cpu, "first": first.wall, "peak": peak}


def watch_memory(asked: dict[str, Any]) -> list[dict[str, int]]:
    """Take steps with ten evaluations and ten checkpoints; return the memory held after a tenth and at the end."""
    contestant, samples = CONTESTANTS[asked["contestant"]], list[dict[str, int]]()
    steps, taken = asked["steps"], 0
    tenth = steps // 10

    def lap() -> None:
        nonlocal taken
        taken += 1
        if taken in (tenth, steps):
            resident = read_proc_bytes(STATUS, "VmRSS")
            samples.append({"step": taken, "resident": resident, "tensors": live.count, "bytes": live.now})

    if contestant.take is not run_hugging_face:
        prepare_cpu(CPU)
    settings = contestant.settings | {"eval_every": tenth, "ckpt_every": tenth}
    with LiveBytes() as live:  # weights and all
        contestant.take(Shape(**asked["shape"]), settings, steps, lap)
    return samples


def measure_limit(asked: dict[str, Any]) -> float:
    """Return the most operations a second of a product of N x N matrices, by each library that a run may use."""
    a, b, out = torch.randn(N, N), torch.randn(N, N), torch.empty(N, N)
    multiply = partial(torch.mm, a, b, out=out)
    times = time_steps(multiply, asked["tries"], CPU)
    if prefer_onednn():
        times += time_steps(multiply, asked["tries"], CPU)
    return 2 * N**3 / min(product.wall for product in times)  # other work only adds time


TASKS: dict[str, Callable[[dict[str, Any]], object]] = {
    task.__name__: task for task in (take_turn, watch_memory, measure_limit, build_token_files, encode_batches)
}

if __name__ == "__main__":
    end_with_parent()
    question = json.loads(sys.stdin.read())
    print(json.dumps(TASKS[question["task"]](question)))
