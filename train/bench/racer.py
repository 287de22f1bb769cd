"""One contestant in a process of its own: what to do comes in on stdin, the laps go out on stdout, as JSON."""

import json
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from niels_gpt.device import bytes_of
from train.bench.contestants import CONTESTANTS
from train.bench.shapes import SHAPES
from train.config import TrainCfgSchema
from train.cpu import prepare_cpu
from train.lifeline import end_with_parent

STATUS = "/proc/self/status"  # of a process: VmRSS is resident now, VmHWM at most so far


class Laps:
    """Times of optimizer steps, wall and CPU seconds each; peak memory above what there was after the warm-up."""

    def __init__(self, warmup: int) -> None:
        self.warmup = warmup
        self.stamps = [(time.perf_counter(), time.process_time())]
        self.before = self.after = 0

    def __call__(self) -> None:
        """Note the end of a step; the first ones compile and allocate."""
        self.stamps.append((time.perf_counter(), time.process_time()))
        self.after = bytes_of(STATUS, "VmHWM")
        if len(self.stamps) == self.warmup + 1:
            self.before = bytes_of(STATUS, "VmRSS")
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


def main() -> None:
    """Race."""
    asked = json.loads(sys.stdin.read())
    contestant, shape = CONTESTANTS[asked["contestant"]], SHAPES[asked["shape"]]
    torch.set_num_threads(asked["threads"])
    if contestant.as_a_run and not asked["frugal"]:
        prepare_cpu(torch.device("cpu"), TrainCfgSchema(**contestant.settings))
    laps = Laps(asked["warmup"])
    contestant.take(shape, contestant.settings, asked["warmup"] + asked["steps"], laps)
    print(json.dumps(laps.as_json()))


if __name__ == "__main__":
    end_with_parent()
    main()
