"""Compare runs: the best, the Pareto front, differing settings, and equal training split differently."""

import json
import math
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from train.config.schema import PhaseName
from train.report.rows import Row

GIB, BITS = 2**30, "bits per byte"
IRRELEVANT = {"data.cache_dir"}
TOKENIZER = ("model.V", "data.tokenizer")
EVALUATED_TEXT = ("phase", "data.", "model.T", "train.eval_sequences")  # prefixes
TOLERANCE = 0.02  # nats: float rounding, which training lets grow
MAY_DIFFER = {  # between runs of equal training
    *("B", "accum_steps", "effective_batch", "activation_checkpointing"),
    *("log_every", "ckpt_every", "keep_last", "cache_dir"),
}


@dataclass(frozen=True)
class BestRun:
    """The best run by some measure; `row` is None if no run qualifies, and `why` then gives the reason."""

    title: str
    row: Row | None
    why: str


@dataclass(frozen=True)
class EquivalentRuns:
    """Runs that train on the same sequences; `difference` is the largest of any validation loss, in nats."""

    rows: tuple[Row, ...]
    effective_batch: str
    difference: float
    coincide: bool
    sentence: str


@dataclass(frozen=True)
class Findings:
    """Everything that a report says about its runs; a budget is in GiB, None for no bound.

    `measure` is the loss by which runs compare, "val loss" in nats a target or "bits per byte" where tokenizers
    differ. `ranking` has the finished runs of finite loss, the lowest first; `measured` the finished runs of known
    speed and memory; `front` those of them that no other run beats, in the order of memory.
    """

    rows: Sequence[Row]
    budget_gb: float | None
    labels: dict[Row, str]
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
    measure = _choose_measure(rows)
    losses = {row: row.bits_per_byte if measure == BITS else row.val_loss for row in done}
    finite = {row: loss for row, loss in losses.items() if loss is not None and math.isfinite(loss)}
    ranking = sorted(finite, key=finite.__getitem__)
    timed = [row for row in done if math.isfinite(row.speed)]
    measured = [row for row in timed if row.peak_memory]
    lowest = BestRun("Lowest loss", None, "no finished run has a validation loss")
    if ranking:
        lowest = BestRun("Lowest loss", ranking[0], f"{measure} {finite[ranking[0]]:.4f}")
    differing = _find_differing(rows)
    short = shorten_names({row.name: row.overrides for row in rows})
    return Findings(
        rows=rows,
        budget_gb=budget_gb,
        labels={row: short[row.name] for row in rows},
        measure=measure,
        ranking=ranking,
        measured=measured,
        front=_find_front(measured),
        best=[lowest, _choose_fastest(timed, budget_gb)],
        equal_training=_find_equal_training(rows),
        caveats=_list_caveats(differing),
        differing=differing,
    )


def shorten_names(runs: Mapping[str, Collection[str]]) -> dict[str, str]:
    """Map the names of runs to labels; in a name made of overrides, those that all runs share are left out."""
    named = {name: overrides for name, overrides in runs.items() if overrides and "=" in name}
    shared = set[str]().union(*named.values()).intersection(*named.values())
    own = {name: ",".join(word for word in words if word not in shared) for name, words in named.items()}
    labels = {name: own.get(name) or name for name in runs}
    return labels if len(set(labels.values())) == len(labels) else {name: name for name in runs}


def _choose_measure(rows: Sequence[Row]) -> str:
    """Return the loss to compare by; an older result has no tokenizer hash, so its settings stand in."""
    known = [row for row in rows if row.settings]
    tokenizers = {row.tokenizer or json.dumps([row.settings.get(key) for key in TOKENIZER]) for row in known}
    return BITS if len(tokenizers) > 1 else "val loss"


def _choose_fastest(timed: Sequence[Row], budget_gb: float | None) -> BestRun:
    title = "Fastest" if budget_gb is None else f"Fastest within {budget_gb:g} GiB"
    memory = {row: math.inf if row.peak_memory is None else row.peak_memory / GIB for row in timed}
    fitting = [row for row in timed if budget_gb is None or memory[row] <= budget_gb]
    if not timed:
        return BestRun(title, None, "no finished run has a measured speed")
    if not fitting:
        return BestRun(title, None, f"no finished run fits; the smallest takes {min(memory.values()):.2f} GiB")
    row = max(fitting, key=lambda row: row.speed)
    return BestRun(title, row, f"{row.speed:,.0f} tokens/s")


def _find_front(measured: Sequence[Row]) -> list[Row]:
    """Return the rows that no other one beats: as fast with less memory, or faster with no more."""
    places = {row: (row.peak_memory or 0, row.speed) for row in measured}
    front: list[Row] = []
    for row in sorted(measured, key=lambda row: (places[row][0], -row.speed)):
        if not front or row.speed > front[-1].speed or places[row] == places[front[-1]]:
            front.append(row)
    return front


def _find_differing(rows: Sequence[Row]) -> dict[str, list[Any]]:
    """Return each setting that differs with every row's value or None; sft.X only where it differs from X."""
    known = [row.settings for row in rows if row.settings]
    keys = dict.fromkeys(key for settings in known for key in settings)
    varied = [key for key in keys if len({json.dumps(settings[key]) for settings in known if key in settings}) > 1]

    def repeats(key: str) -> bool:
        leader = key.removeprefix("sft.")
        return leader != key and all(s[key] == s.get(leader) for s in known if key in s)

    relevant = [key for key in varied if key.removeprefix("sft.") not in IRRELEVANT and not repeats(key)]
    return {key: [row.settings.get(key) for row in rows] for key in relevant}


def _list_caveats(differing: Mapping[str, Any]) -> list[str]:
    plain = {key: key.removeprefix("sft.") for key in differing}
    text = [key for key, name in plain.items() if name not in TOKENIZER and name.startswith(EVALUATED_TEXT)]
    if not text:
        return []
    return [f"Compare the losses with care: they are not of the same text. Runs differ in {', '.join(text)}."]


def _find_equal_training(rows: Sequence[Row]) -> list[EquivalentRuns]:
    """Return the groups of finished rows without dropout whose steps have the same sequences."""
    groups: dict[str, list[int]] = defaultdict(list)
    for number, row in enumerate(rows, 1):
        dropout = (value for key, value in row.settings.items() if key.endswith(".dropout"))
        if row.status == "finished" and row.settings and not any(dropout):
            kept = {key: v for key, v in row.settings.items() if key.rpartition(".")[2] not in MAY_DIFFER}
            groups[json.dumps([kept, _list_batches(row), row.tokenizer], sort_keys=True)].append(number)
    found = []
    for numbers in groups.values():
        group = tuple(rows[number - 1] for number in numbers)
        if ranges := list(_list_loss_ranges(group)):
            found.append(_compare_group(group, numbers, ranges))
    return found


def _compare_group(group: tuple[Row, ...], numbers: Sequence[int], ranges: Sequence[float]) -> EquivalentRuns:
    batches = " and ".join(dict.fromkeys(map(str, _list_batches(group[0]))))
    difference = max(ranges)
    runs = f"Runs {', '.join(map(str, numbers[:-1]))} and {numbers[-1]} (effective batch {batches}, dropout 0)"
    found = f"largest difference {difference:.2g} nats over {len(ranges)} evaluations"
    sentence = f"{runs} are the same training, split differently"
    if coincide := difference < TOLERANCE:
        sentence += f": their validation losses coincide, {found}."
    else:
        sentence += (
            f", but their validation losses do not coincide: {found}, more than {TOLERANCE}. They train on the "
            "same sequences, so this is a bug. Try precision=off, and report it if the difference remains."
        )
    return EquivalentRuns(group, batches, difference, coincide, sentence)


def _list_loss_ranges(group: Sequence[Row]) -> Iterator[float]:
    """Yield the highest minus the lowest loss of each evaluation that two rows share."""
    losses: dict[tuple[PhaseName, float], list[float]] = defaultdict(list)
    for row in group:
        for phase, curve in row.curves.items():
            for point in curve.val:
                losses[phase, point.tokens].append(point.loss)
    for shared in losses.values():
        if len(shared) > 1:
            yield max(shared) - min(shared) if all(map(math.isfinite, shared)) else math.inf


def _list_batches(row: Row) -> list[int | None]:
    """Return the effective batch of each phase; batch=auto records it in place of B and accum_steps."""
    batches = []
    for train in ("train", "sft.train"):
        if f"{train}.seed" in row.settings:
            B, accum_steps, effective = (
                row.settings.get(f"{train}.{name}") for name in ("B", "accum_steps", "effective_batch")
            )
            batches.append(B * accum_steps if effective is None and B and accum_steps else effective)
    return batches
