"""Whether memory grows over a long run: what is held after a tenth of its steps, and at its end."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from train.bench.contestants import SEQUENCES
from train.bench.race import answered
from train.bench.shapes import Shape
from train.text_table import mib, table

NOISE = 0.02  # of what is resident: pages come and go with the allocator


@dataclass(frozen=True)
class Held:
    """What a process holds after a step: tensors and their bytes; resident bytes, 0 where the system is silent."""

    step: int
    resident: int
    live: int
    tensors: int


@dataclass(frozen=True)
class Stay:
    """What a contestant held early and late."""

    contestant: str
    early: Held
    late: Held

    @property
    def grew(self) -> bool:
        """Whether there are more tensors, or more is resident than the allocator's noise."""
        more = (self.late.live, self.late.tensors) > (self.early.live, self.early.tensors)
        return more or self.late.resident > self.early.resident * (1 + NOISE)


def stay(name: str, shape: Shape, steps: int, threads: int) -> Stay:
    """Take that many steps in a fresh process; look at what is held after some of them and after the last.

    Some are a tenth, and if there are that many, those that draw two epochs: of so many the order is held.

    Raises:
        RaceFailed: it could not take them.
    """
    two_epochs = 2 * SEQUENCES // (shape.B * shape.accum_steps) + 1
    marks = [max(steps // 10, two_epochs if two_epochs < steps else 0), steps]
    asked = {"contestant": name, "shape": shape.model_dump(), "steps": steps, "marks": marks, "threads": threads}
    early, late = (Held(**held) for held in answered("stayer", asked, {}))
    return Stay(name, early, late)


def as_table(stays: Sequence[Stay]) -> str:
    """Return two lines for each contestant."""
    rows: list[tuple[str, ...]] = [("", "step", "resident MiB", "tensors", "their bytes", "")]
    for one in stays:
        for held in (one.early, one.late):
            verdict = ("grew" if one.grew else "did not grow") if held is one.late else ""
            facts = (str(held.step), mib(held.resident or None), str(held.tensors), f"{held.live:,}")
            rows.append((one.contestant, *facts, verdict))
    return table(rows)


def as_json(stays: Sequence[Stay]) -> list[dict[str, Any]]:
    """Return them for programs."""
    return [asdict(one) | {"grew": one.grew} for one in stays]
