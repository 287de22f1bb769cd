"""One contestant in a process of its own: what to do comes in on stdin, the laps go out on stdout, as JSON."""

import json
import sys
import time
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

from niels_gpt.device import bytes_of
from train.bench.contestants import CPU, readied
from train.bench.shapes import Shape
from train.lifeline import end_with_parent
from train.live_bytes import LiveBytes

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


def main() -> None:
    """Race."""
    asked = json.loads(sys.stdin.read())
    contestant = readied(asked["contestant"], asked["threads"], frugal=asked["frugal"])
    laps = (CountedLaps if asked["counted"] else Laps)(asked["warmup"])
    contestant.take(Shape(**asked["shape"]), contestant.settings, laps.warmup + asked["steps"], laps)
    print(json.dumps(laps.as_json()))


if __name__ == "__main__":
    end_with_parent()
    main()
