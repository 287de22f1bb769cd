"""Compare runs: the best, the Pareto front, differing settings, and equal training split differently."""

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from niels_gpt.errors import NonFiniteError
from train.artifacts.results import NO_EFFECT
from train.report.rows import Row

BITS = "bits per byte"
EVALUATED_TEXT = ("phase", "data.", "model.T", "train.eval_sequences")  # prefixes
DIVERGED = (
    "A run diverged if its loss became nan or infinite, or if its last validation loss is no lower than a "
    "unigram model's, although another run's is. It is neither the fastest nor on the Pareto front, and its "
    "curves may be cut off in the figures."
)
TOLERANCE = 0.02  # nats: float rounding, which training lets grow
# Between runs of equal training, whose effective batch is the same.
MAY_DIFFER = NO_EFFECT - {"max_minutes"} | {"B", "accum_steps", "activation_checkpointing"}


@dataclass(frozen=True)
class BestRun:
    """The best run by some measure; `row` is None if no run qualifies, and `why` then gives the reason.

    `ties` are the other runs with the same number, as it is shown.
    """

    title: str
    row: Row | None
    why: str
    ties: Sequence[Row] = ()


@dataclass(frozen=True)
class EquivalentRuns:
    """Runs that train on the same sequences, and the largest difference of any validation loss in nats."""

    jobs: list[str]
    largest_difference: float
    coincide: bool
    sentence: str


@dataclass(frozen=True)
class Findings:
    """Everything that a report says about its runs; a budget is in GiB, None for no bound.

    `numbers` are those of a sweep's jobs, or count the rows. `diverged` has the runs that DIVERGED describes.
    `measure` is the loss by which runs compare, "val loss" in nats per target or "bits per byte" where tokenizers
    differ. `ranking` has the finished runs with a loss, the lowest first; `measured` the finished runs of known
    speed and memory; `front` those of them that no other run beats, in the order of memory.
    """

    rows: Sequence[Row]
    budget_gb: float | None
    numbers: dict[Row, int]
    diverged: list[Row]
    measure: str
    ranking: list[Row]
    measured: list[Row]
    front: list[Row]
    best: list[BestRun]
    equal_training: list[EquivalentRuns]
    caveats: list[str]
    differing: dict[str, list[Any]]


def analyze_runs(rows: Sequence[Row], budget_gb: float | None) -> Findings:
    """Return the findings about runs."""
    done = [row for row in rows if row.status == "finished"]
    diverged = _find_diverged(rows)
    tokenizers = {(row.tokenizer, row.settings.get("model.V")) for row in done if row.settings}  # older: no hash
    measure = BITS if len(tokenizers) > 1 else "val loss"
    losses = {row: row.bits_per_byte if measure == BITS else row.val_loss for row in done}
    known = {row: loss for row, loss in losses.items() if loss is not None}
    ranking = sorted(known, key=known.__getitem__)
    lowest = BestRun("Lowest loss", None, "no finished run has a validation loss")
    if ranking:
        first, *others = ranking
        shown = f"{known[first]:.4f}"
        ties = [row for row in others if f"{known[row]:.4f}" == shown]
        lowest = BestRun("Lowest loss", first, f"{measure} {shown}", ties)
    measured = [row for row in done if row.tokens_per_second and row.peak_memory_gib]
    differing = _find_differing(rows)
    own = [row.number for row in rows]
    counted = own if 0 not in own and len(set(own)) == len(own) else range(1, len(own) + 1)
    numbers = dict(zip(rows, counted, strict=True))
    return Findings(
        rows=rows,
        budget_gb=budget_gb,
        numbers=numbers,
        diverged=diverged,
        measure=measure,
        ranking=ranking,
        measured=measured,
        front=_find_front([row for row in measured if row not in diverged]),
        best=[lowest, _choose_fastest([row for row in done if row not in diverged], budget_gb)],
        equal_training=_find_equal_training({r: n for r, n in numbers.items() if r not in diverged}),
        caveats=_list_caveats(_find_differing(done)),
        differing=differing,
    )


def _find_diverged(rows: Sequence[Row]) -> list[Row]:
    losses = {row: (row.last_loss, row.unigram_loss) for row in rows}
    learned = {row: last < unigram for row, (last, unigram) in losses.items() if last is not None and unigram}
    failed = [row for row in rows if row.exit_code == NonFiniteError.exit_code]
    return failed + [row for row, better in learned.items() if not better and any(learned.values())]


def _choose_fastest(done: Sequence[Row], budget_gb: float | None) -> BestRun:
    title = "Fastest" if budget_gb is None else f"Fastest within {budget_gb:g} GiB"
    speeds = {row: row.tokens_per_second for row in done if row.tokens_per_second}
    if budget_gb is not None:
        speeds = {row: v for row, v in speeds.items() if row.peak_memory_gib and row.peak_memory_gib <= budget_gb}
    if not speeds:
        return BestRun(title, None, f"no finished run {'has a measured speed' if budget_gb is None else 'fits'}")
    row = max(speeds, key=speeds.__getitem__)
    return BestRun(title, row, f"{speeds[row]:,.0f} tokens/s")


def _find_front(measured: Sequence[Row]) -> list[Row]:
    """Return the rows that no other one beats: as fast with less memory, or faster with no more."""
    places = {row: (row.peak_memory_gib or 0, -(row.tokens_per_second or 0)) for row in measured}
    front: list[Row] = []
    for row in sorted(measured, key=places.__getitem__):
        if not front or places[row][1] < places[front[-1]][1] or places[row] == places[front[-1]]:
            front.append(row)
    return front


def _find_differing(rows: Sequence[Row]) -> dict[str, list[Any]]:
    """Return each setting that differs with every row's value or None; sft.X only where it differs from X."""
    known = [row.settings for row in rows if row.settings]
    differing = {}
    for key in dict.fromkeys(key for settings in known for key in settings):
        name = key.removeprefix("sft.")
        values = {json.dumps(settings[key]) for settings in known if key in settings}
        repeats = name != key and all(s[key] == s.get(name) for s in known if key in s)
        if len(values) > 1 and name != "data.cache_dir" and not repeats:
            differing[key] = [row.settings.get(key) for row in rows]
    return differing


def _list_caveats(differing: Iterable[str]) -> list[str]:
    names = {key: key.removeprefix("sft.") for key in differing}
    text = [key for key, name in names.items() if name != "data.tokenizer" and name.startswith(EVALUATED_TEXT)]
    if not text:
        return []
    return [f"Compare the losses with care: they come from different text. The runs differ in {', '.join(text)}."]


def _find_equal_training(numbers: dict[Row, int]) -> list[EquivalentRuns]:
    """Compare the groups of finished rows without dropout whose steps have the same sequences."""
    groups: dict[str, dict[int, Row]] = defaultdict(dict)
    for row, number in numbers.items():
        dropout = (value for key, value in row.settings.items() if key.endswith(".dropout"))
        if row.status == "finished" and row.settings and not any(dropout):
            kept = {key: v for key, v in row.settings.items() if key.rpartition(".")[2] not in MAY_DIFFER}
            groups[json.dumps([kept, row.tokenizer], sort_keys=True)][number] = row
    return [_compare_group(group, ranges) for group in groups.values() if (ranges := _list_ranges(group.values()))]


def _list_ranges(group: Iterable[Row]) -> list[float]:
    """Return the highest minus the lowest loss of each evaluation that two rows share."""
    losses: dict[tuple[str, float], list[float]] = defaultdict(list)
    for row in group:
        for phase, curve in row.curves.items():
            for point in curve.val:
                losses[phase, point.tokens].append(point.loss)
    return [max(found) - min(found) for found in losses.values() if len(found) > 1]


def _compare_group(group: dict[int, Row], ranges: Sequence[float]) -> EquivalentRuns:
    *numbers, last = group
    runs = f"Runs {', '.join(map(str, numbers))} and {last} (dropout 0)"
    found = f"largest difference {max(ranges):.2g} nats over {len(ranges)} evaluations"
    sentence = f"{runs} are the same training, split differently"
    if coincide := max(ranges) < TOLERANCE:
        sentence += f": their validation losses coincide, {found}."
    else:
        sentence += (
            f", but their validation losses do not coincide: {found}, more than {TOLERANCE}. They train on the "
            "same sequences, so this is a bug. Try precision=off, and report it if the difference remains."
        )
    return EquivalentRuns([row.name for row in group.values()], max(ranges), coincide, sentence)
