"""Many steps in a process of its own: what is held at some of them goes out on stdout, as JSON."""

import json
import sys

from niels_gpt.device import bytes_of
from train.bench.contestants import CPU, readied
from train.bench.racer import STATUS
from train.bench.shapes import Shape
from train.lifeline import end_with_parent
from train.live_bytes import LiveBytes


def main() -> None:
    """Take the steps with evaluations and checkpoints, ten of each, and note what is held at the marks."""
    asked = json.loads(sys.stdin.read())
    contestant = readied(asked["contestant"], asked["threads"])
    steps, marks, held, taken = asked["steps"], asked["marks"], [], 0
    often = {"eval_every": steps // 10, "ckpt_every": steps // 10}

    def lap() -> None:
        nonlocal taken
        taken += 1
        if taken in marks:
            resident = bytes_of(STATUS, "VmRSS")
            held.append({"step": taken, "resident": resident, "live": live.now, "tensors": live.count})

    with LiveBytes(CPU) as live:  # weights and all
        contestant.take(Shape(**asked["shape"]), contestant.settings | often, steps, lap)
    print(json.dumps(held))


if __name__ == "__main__":
    end_with_parent()
    main()
