"""Race contestants in turns, each turn in a fresh process, and print the results."""

import json
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

import torch

from niels_gpt.errors import NielsError
from train.bench.shapes import SHAPES, Shape
from train.cli.output import format_mib, format_table
from train.cli.subprocesses import run_module

SEPARATE_MAPPINGS = {"MALLOC_MMAP_THRESHOLD_": "65536"}  # glibc then gives freed memory back at once
TRIES = 12  # of the matrix product that measures the machine
HEAD = ("", "wall s/step", "CPU s/step", "times faster", "tokens/s", "of the limit", "peak MiB", "first step s")


class RaceTurn(NamedTuple):
    """Median wall and CPU seconds of a turn's steps, wall seconds of its first, and the peak in bytes."""

    wall: float
    cpu: float
    first: float
    peak: int | None


def race(name: str, contestants: Sequence[str], rounds: int, steps: int) -> dict[str, Any]:
    """Race contestants at a shape and print a table; return the results for JSON.

    `times_faster` compares CPU seconds with the last contestant's, round by round.

    NielsError if one of them failed; it quotes the last line of its error.
    """
    shape, limit = SHAPES[name], measure_limit()
    turns: dict[str, list[RaceTurn]] = {contestant: [] for contestant in contestants}
    for number in range(rounds):
        for contestant, taken in turns.items():
            taken.append(take_turn(contestant, shape, steps))
            print(f"{name} round {number + 1}: {contestant:<16} {taken[-1].wall:.3f} s a step")
    results, reference = {}, turns[contestants[-1]]
    for contestant, taken in turns.items():
        wall = median(turn.wall for turn in taken)
        ratios = [theirs.cpu / own.cpu for theirs, own in zip(reference, taken, strict=True)]
        results[contestant] = {
            "wall": wall,
            "cpu": median(turn.cpu for turn in taken),
            "times_faster": {"median": median(ratios), "lowest": min(ratios), "highest": max(ratios)},
            "tokens_per_second": shape.tokens / wall,
            "share_of_limit": shape.flops / wall / limit,
            "peak": take_turn(contestant, shape, 1, peak="resident").peak,
            "first": median(turn.first for turn in taken),
            "turns": [turn._asdict() for turn in taken],
        }
    print(format_results(results))
    return {"shape": name, "steps": steps, "gflops_limit": limit / 1e9, "contestants": results}


def format_results(results: dict[str, dict[str, Any]]) -> str:
    """Return a line for each contestant; the lowest and highest round stand beside each ratio."""
    rows: list[tuple[str, ...]] = [HEAD]
    for contestant, facts in results.items():
        seconds = (f"{facts['wall']:.4f}", f"{facts['cpu']:.4f}")
        ratio = "{median:.3f} ({lowest:.2f}-{highest:.2f})".format(**facts["times_faster"])
        speed = (f"{facts['tokens_per_second']:,.0f}", f"{facts['share_of_limit']:.0%}")
        rows.append((contestant, *seconds, ratio, *speed, format_mib(facts["peak"]), f"{facts['first']:.1f}"))
    return format_table(rows)


def take_turn(
    contestant: str, shape: Shape, steps: int, *, peak: str | None = None, variables: Mapping[str, str] = {}
) -> RaceTurn:
    """Return a turn in a fresh process.

    With peak="resident" the process keeps no freed memory, which would hide the peak, and gives each tensor a
    mapping. With peak="tensors" a warm-up step finds the peak of the bytes of tensors.
    """
    asked = {"contestant": contestant, "shape": shape.model_dump(), "steps": steps, "peak": peak}
    return RaceTurn(**run_worker("take_turn", asked, SEPARATE_MAPPINGS if peak == "resident" else variables))


def measure_limit() -> float:
    """Return the operations a second that the machine reaches in a large product of matrices."""
    return float(run_worker("measure_limit", {"tries": TRIES}))


def run_worker(task: str, question: dict[str, Any], variables: Mapping[str, str] = {}) -> Any:
    """Return the result of a task of train/bench/worker.py in a fresh process with as many threads as this one."""
    text, threads = json.dumps({"task": task} | question), torch.get_num_threads()
    done = run_module("train.bench.worker", text, threads=threads, variables=variables)
    if done.returncode:
        words = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        way_out = "pip install 'niels_gpt[bench]'" if "transformers" in words else ""
        raise NielsError(f"{question.get('contestant', task)}: {words}", way_out)
    return json.loads(done.stdout.strip().splitlines()[-1])
