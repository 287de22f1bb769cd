"""The race as tables: seconds, ratios to one contestant, shares of the machine's limit, memory."""

from dataclasses import asdict
from statistics import median
from typing import Any

from train.bench.contestants import CONTESTANTS
from train.bench.race import Race
from train.bench.shapes import SHAPES
from train.text_table import mib, table


def ratios(race: Race, name: str, reference: str, clock: str) -> list[float]:
    """Return, round by round, how many times faster a contestant is than the reference."""
    pairs = zip(race.turns[reference], race.turns[name], strict=True)
    return [theirs.seconds(clock) / own.seconds(clock) for theirs, own in pairs]


def as_table(race: Race, reference: str) -> str:
    """Return the race, a line for each contestant."""
    head = (
        "",
        "wall s/step",
        "CPU s/step",
        f"x {reference}, wall",
        f"x {reference}, CPU",
        "tokens/s",
        "of the limit",
        "peak MiB",
        "first step s",
    )
    rows = [head] + [row(race, name, reference) for name in race.turns]
    return table(rows)


def row(race: Race, name: str, reference: str) -> tuple[str, ...]:
    """Return the cells of one contestant; a ratio stands with its lowest and highest round."""
    facts = summary(race, name, reference)
    spread = [
        f"{r['median']:.3f} ({r['lowest']:.2f}-{r['highest']:.2f})"
        for r in (facts["wall_ratio"], facts["cpu_ratio"])
    ]
    return (
        name,
        f"{facts['wall']:.4f}",
        f"{facts['cpu']:.4f}",
        *spread,
        f"{facts['tokens_per_second']:,.0f}",
        f"{facts['share_of_limit']:.0%}",
        mib(race.peaks[name]),
        f"{facts['first']:.1f}",
    )


def summary(race: Race, name: str, reference: str) -> dict[str, Any]:
    """Return what was measured of one contestant, medians over the rounds."""
    turns, shape = race.turns[name], SHAPES[race.course.shape]
    wall = median(turn.seconds("wall") for turn in turns)
    limit = max(one["gflops"] for one in race.limits)
    return {
        "says": CONTESTANTS[name].says,
        "wall": wall,
        "cpu": median(turn.seconds("cpu") for turn in turns),
        "wall_ratio": spread(ratios(race, name, reference, "wall")),
        "cpu_ratio": spread(ratios(race, name, reference, "cpu")),
        "tokens_per_second": shape.tokens / wall,
        "gflops": shape.flops / wall / 1e9,
        "share_of_limit": shape.flops / wall / 1e9 / limit,
        "peak": race.peaks[name],
        "first": median(turn.first for turn in turns),
    }


def spread(values: list[float]) -> dict[str, float]:
    """Return the middle and both ends."""
    return {"median": median(values), "lowest": min(values), "highest": max(values)}


def as_json(race: Race, reference: str) -> dict[str, Any]:
    """Return the race for programs, every turn of it."""
    return {
        "course": asdict(race.course),
        "reference": reference,
        "limits": race.limits,
        "contestants": {name: summary(race, name, reference) for name in race.turns},
        "turns": {name: [asdict(turn) for turn in turns] for name, turns in race.turns.items()},
    }
