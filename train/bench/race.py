"""Race contestants in turns, each turn in a fresh process, and print the results."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from niels_gpt.errors import NielsError
from train.bench.contestants import CONTESTANTS
from train.bench.shapes import SHAPES, Shape
from train.cli.output import mib, table
from train.cli.subprocesses import run_module

OWN_MAPPINGS = {"MALLOC_MMAP_THRESHOLD_": "65536"}  # glibc then gives freed memory back at once
TRIES = 12  # of each measurement of the machine
Say = Callable[[str], None]


class RaceFailed(NielsError):
    """A contestant could not take its steps."""


@dataclass(frozen=True)
class Turn:
    """One turn of one contestant: seconds of each step, wall and CPU, the first step's; peak in bytes."""

    wall: list[float]
    cpu: list[float]
    first: float
    peak: int | None

    def seconds(self, clock: str) -> float:
        """Return the median step by a clock."""
        return median(self.wall if clock == "wall" else self.cpu)


@dataclass(frozen=True)
class Effort:
    """Rounds of turns, timed steps of each turn after those that warm up, and threads."""

    rounds: int
    steps: int
    warmup: int
    threads: int


@dataclass(frozen=True)
class Race:
    """The turns of each contestant, its peak memory in bytes, and the machine's limits before and after."""

    shape: str
    effort: Effort
    turns: dict[str, list[Turn]]
    peaks: dict[str, int | None]
    limits: list[dict[str, float]]


def race(shape: str, names: Sequence[str], effort: Effort, say: Say) -> Race:
    """Race the contestants.

    Raises:
        RaceFailed: one of them failed, with its last words.
    """
    limits = [measure_limits(effort.threads)]
    turns: dict[str, list[Turn]] = {name: [] for name in names}
    for number in range(effort.rounds):
        for name in names:
            turn = take_turn(name, SHAPES[shape], effort)
            turns[name].append(turn)
            say(f"{shape} round {number + 1}: {name:<16} {turn.seconds('wall'):.3f} s a step")
    one_step = Effort(1, 1, effort.warmup, effort.threads)
    peaks = {name: take_turn(name, SHAPES[shape], one_step, frugal=True).peak for name in names}
    return Race(shape, effort, turns, peaks, [*limits, measure_limits(effort.threads)])


def take_turn(name: str, shape: Shape, effort: Effort, *, frugal: bool = False, counted: bool = False) -> Turn:
    """Return a turn in a fresh process.

    A `frugal` process keeps no freed memory, which would hide the peak, and has each tensor in a mapping of its
    own. With `counted` the peak is that of the bytes of tensors, wherever the allocator puts them, which one more
    step finds out.
    """
    asked = {"contestant": name, "shape": shape.model_dump(), "frugal": frugal, "counted": counted}
    return Turn(**answer("race", asked | asdict(effort), OWN_MAPPINGS if frugal else {}))


def measure_limits(threads: int) -> dict[str, float]:
    """Return the GFLOP/s and GB/s that the machine reaches."""
    found: dict[str, float] = answer("limits", {"threads": threads, "tries": TRIES}, {})
    return found


def answer(task: str, question: dict[str, Any], variables: dict[str, str]) -> Any:
    """Let a fresh process do a task of train/bench/worker.py, and return its answer."""
    text, threads = json.dumps({"task": task} | question), question["threads"]
    done = run_module("train.bench.worker", text, threads=threads, variables=variables)
    if done.returncode:
        words = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        way_out = "pip install -e '.[bench]'" if "transformers" in words else ""
        raise RaceFailed(f"{question.get('contestant', task)}: {words}", way_out)
    return json.loads(done.stdout.strip().splitlines()[-1])


def as_table(race: Race, reference: str) -> str:
    """Return the race, a line for each contestant; a ratio stands with its lowest and highest round."""
    head = (
        *("", "wall s/step", "CPU s/step", f"x {reference}, wall", f"x {reference}, CPU"),
        *("tokens/s", "of the limit", "peak MiB", "first step s"),
    )
    return table([head, *(_row(name, _summary(race, name, reference)) for name in race.turns)])


def _row(name: str, facts: dict[str, Any]) -> tuple[str, ...]:
    ratios = [facts["wall_ratio"], facts["cpu_ratio"]]
    return (
        *(name, f"{facts['wall']:.4f}", f"{facts['cpu']:.4f}"),
        *(f"{ratio['median']:.3f} ({ratio['lowest']:.2f}-{ratio['highest']:.2f})" for ratio in ratios),
        *(f"{facts['tokens_per_second']:,.0f}", f"{facts['share_of_limit']:.0%}"),
        *(mib(facts["peak"]), f"{facts['first']:.1f}"),
    )


def _summary(race: Race, name: str, reference: str) -> dict[str, Any]:
    """Return what was measured of one contestant, medians over the rounds."""
    turns, shape = race.turns[name], SHAPES[race.shape]
    wall = median(turn.seconds("wall") for turn in turns)
    limit = max(one["gflops"] for one in race.limits)
    return {
        "says": CONTESTANTS[name].says,
        "wall": wall,
        "cpu": median(turn.seconds("cpu") for turn in turns),
        "wall_ratio": _ratio(race.turns[reference], turns, "wall"),
        "cpu_ratio": _ratio(race.turns[reference], turns, "cpu"),
        "tokens_per_second": shape.tokens / wall,
        "gflops": shape.flops / wall / 1e9,
        "share_of_limit": shape.flops / wall / 1e9 / limit,
        "peak": race.peaks[name],
        "first": median(turn.first for turn in turns),
    }


def _ratio(reference: list[Turn], turns: list[Turn], clock: str) -> dict[str, float]:
    """Return how many times faster a contestant is than the reference, compared round by round."""
    values = [theirs.seconds(clock) / own.seconds(clock) for theirs, own in zip(reference, turns, strict=True)]
    return {"median": median(values), "lowest": min(values), "highest": max(values)}


def as_json(race: Race, reference: str) -> dict[str, Any]:
    """Return the race for programs, every turn of it."""
    return {
        "shape": race.shape,
        "effort": asdict(race.effort),
        "reference": reference,
        "limits": race.limits,
        "contestants": {name: _summary(race, name, reference) for name in race.turns},
        "turns": {name: [asdict(turn) for turn in turns] for name, turns in race.turns.items()},
    }
