"""How each run is drawn, in every figure and legend alike."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle

from train.sweep.findings import by_loss
from train.sweep.row import Row
from train.sweep.svg import FAINT

HUES = ("#3b82d6", "#dd7718", "#2a9d68", "#d4508f", "#8f6bdc", "#98861b")  # legible on white
MOST_TOLD = 2 * len(HUES)  # solid, then dashed; among more runs only the best stand out


@dataclass(frozen=True)
class Pen:
    """How a run is drawn wherever it is drawn; `told` if it stands out from the rest."""

    colour: str = FAINT
    dashed: bool = False
    told: bool = False


def pens(rows: Sequence[Row]) -> dict[Row, Pen]:
    """Return a pen for each row: all differ where they are few, else those of the lowest losses do."""
    drawn = [row for row in rows if row.curves]
    chosen = drawn if len(drawn) <= MOST_TOLD else by_loss(drawn)[: len(HUES) // 2]
    hues = zip(chosen, cycle(HUES), strict=False)
    told = {row: Pen(hue, n >= len(HUES), True) for n, (row, hue) in enumerate(hues)}
    return {row: told.get(row, Pen()) for row in rows}
