"""Read the metrics of a phase as a curve: its losses by tokens and time, its speed and its memory."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pydantic import BaseModel, FiniteFloat, TypeAdapter

from train.artifacts.metrics import read_metrics


class Event(BaseModel):
    """An event of metrics.jsonl: steps have a speed and a memory, evaluations the losses from bits_per_byte on."""

    step: int
    tokens: FiniteFloat
    loss: float
    tokens_per_second: FiniteFloat = 0.0
    memory: int = 0
    bits_per_byte: float = math.nan
    by_source: dict[str, float] = {}


EVENTS = TypeAdapter(list[Event])


class Point(NamedTuple):
    """A loss in nats per target after so many tokens and seconds of its phase."""

    tokens: float
    seconds: float
    loss: float


@dataclass(frozen=True)
class Curve:
    """The losses of a phase up to a step, its median speed in tokens/s, and its largest memory in bytes.

    `bits` converts nats per target to bits per byte, nan without an evaluation. `by_source` has the losses of the
    best evaluation where several sources validate.
    """

    train: list[Point]
    val: list[Point]
    seconds: float
    tokens_per_second: float | None
    peak_memory: int | None
    bits: float
    by_source: dict[str, float]
    step: int


def read_curve(path: Path) -> Curve | None:
    """Return the curve in a metrics file, None if it has no events."""
    events = list(read_metrics(path))
    train, val = (EVENTS.validate_python([e for e in events if e["event"] == kind]) for kind in ("train", "val"))
    if not train and not val:
        return None
    steps = _place_in_time(train, train)
    speeds = [event.tokens_per_second for event in train]
    return Curve(
        train=steps,
        val=_place_in_time(val, train),
        seconds=steps[-1].seconds if steps else 0.0,
        tokens_per_second=statistics.median(speeds[1:] or speeds) if speeds else None,  # the first warms up
        peak_memory=max((event.memory for event in train), default=None),
        bits=next((event.bits_per_byte / event.loss for event in val if event.loss), math.nan),
        by_source=min(val, key=lambda event: event.loss).by_source if val else {},
        step=max(event.step for event in train + val),
    )


def _place_in_time(events: Sequence[Event], steps: Sequence[Event]) -> list[Point]:
    """Return the points of events; `steps` say how long the phase took to see their tokens.

    Time is summed from the speeds, so neither the pause before a resume nor repeated steps count. Between steps it
    is linear; after the last it stands still.
    """
    seen = [0.0, *(step.tokens for step in steps)]
    took = ((b - a) / max(1.0, step.tokens_per_second) for (a, b), step in zip(pairwise(seen), steps, strict=True))
    seconds = np.interp([event.tokens for event in events], seen, list(accumulate(took, initial=0.0)))
    return [Point(e.tokens, float(s), e.loss) for e, s in zip(events, seconds, strict=True)]
