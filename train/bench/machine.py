"""The machine's own limits: what a large float32 product and a large copy reach, in a process of their own."""

import json
import sys
import time
from collections.abc import Callable

import torch

from train.cpu import prefer_onednn
from train.lifeline import end_with_parent

N = 2048  # rows and columns of the matrices
COPIED = 1 << 28  # bytes


def limits(tries: int) -> dict[str, float]:
    """Return GFLOP/s of a product of N x N matrices, and GB/s read and written by a copy: the best of `tries`.

    The product is made by each library that a run may use.
    """
    a, b = torch.randn(N, N), torch.randn(N, N)
    out = torch.empty(N, N)
    here, there = torch.ones(COPIED // 4), torch.ones(COPIED // 4)
    product = best(lambda: torch.mm(a, b, out=out), tries)
    if prefer_onednn():
        product = min(product, best(lambda: torch.mm(a, b, out=out), tries))
    copy = best(lambda: there.copy_(here), tries)
    return {"gflops": 2 * N**3 / product / 1e9, "copy_gb": 2 * COPIED / copy / 1e9}


def best(work: Callable[[], object], tries: int) -> float:
    """Return the least seconds that some work took: other work on the machine only adds."""
    seconds = []
    for _ in range(tries):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


if __name__ == "__main__":
    end_with_parent()
    asked = json.loads(sys.stdin.read())
    torch.set_num_threads(asked["threads"])
    print(json.dumps(limits(asked["tries"])))
