"""What a logger is told of a phase, and what it has to do."""

from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

PROJECT = "niels_gpt"  # where runs are listed, unless the environment names another place


class LoggedPhase(NamedTuple):
    """A phase, whose run has one `id` in all its phases and processes; `group` is the sweep's name.

    `config` is flat, with the git commit. `first` is the number of steps of the phases before. Points of the step
    `since` and of later ones may have been logged already, by a process that was killed.
    """

    id: str
    name: str
    phase: str
    out: Path
    group: str | None
    config: dict[str, Any]
    first: int
    since: int


class Point(NamedTuple):
    """The numbers of an event, under names such as pretrain/train/loss; `time` is in seconds since 1970."""

    event: str
    step: int
    time: float
    numbers: dict[str, float]


class Backend(Protocol):
    """A logger, in a process of its own: it may raise, block and print.

    `repeated` points, which a killed process has logged before, are `replaced` from `since` on, `ignored`, or
    `kept` as second ones.
    """

    repeated: Literal["replaced", "ignored", "kept"]

    def __init__(self, phase: LoggedPhase) -> None: ...

    def log(self, points: list[Point]) -> None:
        """Write points to the disk, in the order of their steps."""

    def close(self, curves: Path | None, *, complete: bool) -> None:
        """Add the picture of the curves, and end; `complete` if the phase has taken all its steps."""
