"""The race: contestants in turns, each turn in a fresh process, so that what disturbs one disturbs all."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from niels_gpt.errors import NielsError
from train.ask import ask
from train.bench.shapes import SHAPES, Shape

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
class Course:
    """What is raced: the shape's name, rounds, timed steps of each turn after those that warm up."""

    shape: str
    rounds: int
    steps: int
    warmup: int
    threads: int


@dataclass(frozen=True)
class Race:
    """The turns of each contestant, its peak memory in bytes, and the machine's limits before and after."""

    course: Course
    turns: dict[str, list[Turn]]
    peaks: dict[str, int | None]
    limits: list[dict[str, float]]


def race(course: Course, names: Sequence[str], say: Say) -> Race:
    """Race the contestants.

    Raises:
        RaceFailed: one of them failed, with its last words.
    """
    limits = [limits_now(course.threads)]
    turns: dict[str, list[Turn]] = {name: [] for name in names}
    for number in range(course.rounds):
        for name in names:
            turn = taken(name, SHAPES[course.shape], course.steps, course.warmup, course.threads)
            turns[name].append(turn)
            say(f"{course.shape} round {number + 1}: {name:<16} {turn.seconds('wall'):.3f} s a step")
    peaks = {name: peak(course, name) for name in names}
    return Race(course, turns, peaks, [*limits, limits_now(course.threads)])


def taken(
    name: str,
    shape: Shape,
    steps: int,
    warmup: int,
    threads: int,
    *,
    frugal: bool = False,
    counted: bool = False,
) -> Turn:
    """Return a turn in a fresh process.

    A `frugal` process keeps no freed memory, which would hide the peak. With `counted` the peak is that of the
    bytes of tensors, wherever the allocator puts them, which one more step finds out.
    """
    asked = {"contestant": name, "shape": shape.model_dump(), "frugal": frugal, "counted": counted}
    asked |= {"steps": steps, "warmup": warmup, "threads": threads}
    return Turn(**answered("racer", asked, OWN_MAPPINGS if frugal else {}))


def peak(course: Course, name: str) -> int | None:
    """Return the peak memory of a step above what the warm-up left, each tensor in a mapping of its own."""
    return taken(name, SHAPES[course.shape], 1, course.warmup, course.threads, frugal=True).peak


def limits_now(threads: int) -> dict[str, float]:
    """Measure the machine."""
    found: dict[str, float] = answered("machine", {"threads": threads, "tries": TRIES}, {})
    return found


def answered(module: str, question: dict[str, Any], variables: dict[str, str]) -> Any:
    """Run a module of the benchmark in a fresh process and return what it answers."""
    text = json.dumps(question)
    done = ask(f"train.bench.{module}", text, threads=question["threads"], variables=variables)
    if done.returncode:
        words = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        way_out = "pip install -e '.[bench]'" if "transformers" in words else ""
        raise RaceFailed(f"{question.get('contestant', module)}: {words}", way_out)
    return json.loads(done.stdout.strip().splitlines()[-1])
