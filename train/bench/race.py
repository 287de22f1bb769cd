"""Race contestants in turns, each turn in a fresh process, and print the results."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from niels_gpt.errors import NielsError
from train.bench.contestants import CONTESTANTS
from train.bench.shapes import SHAPES, Shape
from train.cli.output import format_mib, format_table
from train.cli.subprocesses import run_module

SEPARATE_MAPPINGS = {"MALLOC_MMAP_THRESHOLD_": "65536"}  # glibc then gives freed memory back at once
TRIES = 12  # of each measurement of the machine
Say = Callable[[str], None]


class RaceFailed(NielsError):
    """A contestant could not take its steps."""


@dataclass(frozen=True)
class RaceTurn:
    """One turn of a contestant: wall and CPU seconds of each step, wall seconds of the first; peak in bytes."""

    wall: list[float]
    cpu: list[float]
    first: float
    peak: int | None

    def seconds(self, clock: str) -> float:
        """Return the median step by a clock."""
        return median(self.wall if clock == "wall" else self.cpu)


@dataclass(frozen=True)
class TimingOptions:
    """Rounds of turns, timed steps in a turn after the warm-up, and threads."""

    rounds: int
    steps: int
    warmup: int
    threads: int


@dataclass(frozen=True)
class Race:
    """The turns of each contestant, its peak memory in bytes, and the machine's limits before and after."""

    shape: str
    effort: TimingOptions
    turns: dict[str, list[RaceTurn]]
    peaks: dict[str, int | None]
    limits: list[dict[str, float]]


def race(shape: str, names: Sequence[str], effort: TimingOptions, say: Say) -> Race:
    """Race the contestants.

    Raises:
        RaceFailed: one of them failed; it quotes the last line of its error.
    """
    limits = [measure_limits(effort.threads)]
    turns: dict[str, list[RaceTurn]] = {name: [] for name in names}
    for number in range(effort.rounds):
        for name in names:
            turn = take_turn(name, SHAPES[shape], effort)
            turns[name].append(turn)
            say(f"{shape} round {number + 1}: {name:<16} {turn.seconds('wall'):.3f} s a step")
    one_step = TimingOptions(1, 1, effort.warmup, effort.threads)
    peaks = {name: take_turn(name, SHAPES[shape], one_step, peak="resident").peak for name in names}
    return Race(shape, effort, turns, peaks, [*limits, measure_limits(effort.threads)])


def take_turn(name: str, shape: Shape, effort: TimingOptions, *, peak: str | None = None) -> RaceTurn:
    """Return a turn in a fresh process.

    With peak="resident" the process keeps no freed memory, which would hide the peak, and gives each tensor a
    mapping. With peak="tensors" one more step finds the peak of the bytes of tensors.
    """
    asked = {"contestant": name, "shape": shape.model_dump(), "peak": peak}
    return RaceTurn(**run_worker("turn", asked | asdict(effort), SEPARATE_MAPPINGS if peak == "resident" else {}))


def measure_limits(threads: int) -> dict[str, float]:
    """Return the GFLOP/s and GB/s that the machine reaches."""
    limits: dict[str, float] = run_worker("limits", {"threads": threads, "tries": TRIES})
    return limits


def run_worker(task: str, question: dict[str, Any], variables: dict[str, str] | None = None) -> Any:
    """Return the result of a task of train/bench/worker.py in a fresh process."""
    text, threads = json.dumps({"task": task} | question), question["threads"]
    done = run_module("train.bench.worker", text, threads=threads, variables=variables or {})
    if done.returncode:
        words = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        way_out = "pip install -e '.[bench]'" if "transformers" in words else ""
        raise RaceFailed(f"{question.get('contestant', task)}: {words}", way_out)
    return json.loads(done.stdout.strip().splitlines()[-1])


def race_table(race: Race, reference: str) -> str:
    """Return a line for each contestant; each ratio has its lowest and highest round beside it."""
    rows: list[tuple[str, ...]] = [
        (
            *("", "wall s/step", "CPU s/step", f"x {reference}, wall", f"x {reference}, CPU"),
            *("tokens/s", "of the limit", "peak MiB", "first step s"),
        )
    ]
    for name in race.turns:
        facts = summarize(race, name, reference)
        ratios = [facts["wall_ratio"], facts["cpu_ratio"]]
        rows.append(
            (
                *(name, f"{facts['wall']:.4f}", f"{facts['cpu']:.4f}"),
                *(f"{ratio['median']:.3f} ({ratio['lowest']:.2f}-{ratio['highest']:.2f})" for ratio in ratios),
                *(f"{facts['tokens_per_second']:,.0f}", f"{facts['share_of_limit']:.0%}"),
                *(format_mib(facts["peak"]), f"{facts['first']:.1f}"),
            )
        )
    return format_table(rows)


def summarize(race: Race, name: str, reference: str) -> dict[str, Any]:
    """Return a contestant's measurements, medians over the rounds."""
    turns, shape = race.turns[name], SHAPES[race.shape]
    wall = median(turn.seconds("wall") for turn in turns)
    return {
        "says": CONTESTANTS[name].says,
        "wall": wall,
        "cpu": median(turn.seconds("cpu") for turn in turns),
        "wall_ratio": compare_rounds(race.turns[reference], turns, "wall"),
        "cpu_ratio": compare_rounds(race.turns[reference], turns, "cpu"),
        "tokens_per_second": shape.tokens / wall,
        "gflops": shape.flops / wall / 1e9,
        "share_of_limit": shape.flops / wall / 1e9 / max(one["gflops"] for one in race.limits),
        "peak": race.peaks[name],
        "first": median(turn.first for turn in turns),
    }


def compare_rounds(reference: list[RaceTurn], turns: list[RaceTurn], clock: str) -> dict[str, float]:
    """Return how many times faster a contestant is than the reference, compared round by round."""
    values = [theirs.seconds(clock) / own.seconds(clock) for theirs, own in zip(reference, turns, strict=True)]
    return {"median": median(values), "lowest": min(values), "highest": max(values)}


def race_to_json(race: Race, reference: str) -> dict[str, Any]:
    """Return the race with every turn."""
    return {
        "shape": race.shape,
        "effort": asdict(race.effort),
        "reference": reference,
        "limits": race.limits,
        "contestants": {name: summarize(race, name, reference) for name in race.turns},
        "turns": {name: [asdict(turn) for turn in turns] for name, turns in race.turns.items()},
    }
