"""The losses of a phase, by tokens and by time: metrics.jsonl read with the doubt that a damaged file deserves."""

import math
import statistics
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from train.metrics import read_metrics, seconds_after

NUMBERS = {"train": ("tokens", "tokens_per_second", "memory"), "val": ("tokens",)}  # and a loss, which may be nan
Event = dict[str, Any]


class Point(NamedTuple):
    """A loss in nats a target after so many tokens and seconds of its phase."""

    tokens: float
    seconds: float
    loss: float


@dataclass(frozen=True)
class Curve:
    """A phase as it went on: its losses, the tokens a second between them, the largest memory in bytes.

    A nat a target of its validation text is `bits` per byte; nan without an evaluation. `by_source` has the losses
    of its best evaluation where several sources validate.
    """

    train: tuple[Point, ...]
    val: tuple[Point, ...]
    speeds: tuple[float, ...]
    peak_memory: int | None
    bits: float
    by_source: dict[str, float]

    @property
    def seconds(self) -> float:
        """The time of all its steps."""
        return self.train[-1].seconds if self.train else 0.0

    @property
    def tokens_per_second(self) -> float | None:
        """The median; the first measurement, in which things warm up, counts only where it is alone."""
        return statistics.median(self.speeds[1:] or self.speeds) if self.speeds else None

    def in_bits(self) -> "Curve":
        """Return the curve with its losses in bits per byte."""
        train, val = ([p._replace(loss=p.loss * self.bits) for p in points] for points in (self.train, self.val))
        return replace(self, train=tuple(train), val=tuple(val))


def read_curve(path: Path) -> Curve | None:
    """Return the curve in a metrics file, None where it has no events."""
    events = [event for event in read_metrics(path) if isinstance(event, dict) and _is_whole(event)]
    if not events:
        return None
    train, val = ([event for event in events if event["event"] == kind] for kind in ("train", "val"))
    bits = [e["bits_per_byte"] / e["loss"] for e in val if e["loss"] and _is_number(e.get("bits_per_byte"))]
    return Curve(
        train=_points(train, train),
        val=_points(val, train),
        speeds=tuple(float(event["tokens_per_second"]) for event in train),
        peak_memory=max((int(event["memory"]) for event in train), default=None),
        bits=next(filter(math.isfinite, bits), math.nan),
        by_source=_by_source(min(val, key=lambda event: event["loss"], default={})),
    )


def _by_source(event: Event) -> dict[str, float]:
    found = event.get("by_source")
    return {str(k): float(v) for k, v in found.items() if _is_number(v)} if isinstance(found, dict) else {}


def _is_whole(event: Event) -> bool:
    """Return whether an event has the numbers of its kind."""
    needed = [event.get(name) for name in NUMBERS.get(str(event.get("event")), ("none",))]
    return all(map(_is_number, needed)) and isinstance(event.get("loss"), int | float)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _points(events: list[Event], train: list[Event]) -> tuple[Point, ...]:
    seconds = seconds_after([event["tokens"] for event in events], train)
    return tuple(Point(e["tokens"], s, float(e["loss"])) for e, s in zip(events, seconds, strict=True))
