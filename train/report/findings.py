"""Compare runs: the best, the Pareto front, differing settings, and equal training split differently."""

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from train.config.schema import PhaseName
from train.report.rows import Row

GIB, BITS = 2**30, "bits per byte"
UNTOLD = {"data.cache_dir"}  # where files are kept says nothing about a run
TOKENS_OF = ("model.V", "data.tokenizer")  # settings of the tokenizer
TEXT_OF = ("phase", "data.", "model.T", "train.eval_sequences")  # prefixes of what decides the evaluated text
TOLERANCE = 0.02  # nats: float rounding, which training lets grow
SPLIT = {
    "B",
    "accum_steps",
    "effective_batch",
    "activation_checkpointing",
}  # may differ: how a step is carried out
TOLD_ONLY = {"log_every", "ckpt_every", "keep_last", "cache_dir"}  # may differ: nothing is learned from them


@dataclass(frozen=True)
class Best:
    """The run that is best by some measure; none where no run can be, and `why` then says so."""

    title: str
    row: Row | None
    why: str


def finite(number: float | None) -> bool:
    """Return whether there is a number that can be compared."""
    return number is not None and math.isfinite(number)


def labels(rows: Sequence[Row]) -> dict[Row, str]:
    """Return what to call each row among the others: of one named by overrides, those that not all share."""
    named = [row for row in rows if row.overrides and "=" in row.name]
    shared = set[str]().union(*(row.overrides for row in named)).intersection(*(row.overrides for row in named))
    own = {row: ",".join(word for word in row.overrides if word not in shared) for row in named}
    short = {row: own.get(row) or row.name for row in rows}
    return short if len(set(short.values())) == len(rows) else {row: row.name for row in rows}


def best(rows: Sequence[Row], budget_gb: float | None) -> list[Best]:
    """Return the run of lowest loss, and the fastest one within the memory budget in GiB; of finished runs."""
    done = [row for row in rows if row.status == "finished"]
    return [_lowest_loss(done), _fastest(done, budget_gb)]


def loss_measure(rows: Sequence[Row]) -> tuple[str, Callable[[Row], float | None]]:
    """Return by what losses compare: nats a token, or bits per byte where tokenizers differ.

    An older result has no tokenizer's hash; its settings stand in, and never equal a hash.
    """
    known = [row for row in rows if row.settings]
    if len({row.tokenizer or json.dumps([row.settings.get(key) for key in TOKENS_OF]) for row in known}) > 1:
        return BITS, lambda row: row.bits_per_byte
    return "val loss", lambda row: row.val_loss


def by_loss(rows: Sequence[Row]) -> list[Row]:
    """Return the finished rows that have a finite loss, the lowest first."""
    done = [row for row in rows if row.status == "finished"]
    _, loss = loss_measure(done)
    return sorted((row for row in done if finite(loss(row))), key=lambda row: loss(row) or 0.0)


def caveats(rows: Sequence[Row]) -> list[str]:
    """Return what to bear in mind when losses are compared, a sentence each."""
    varied = [key for key in differing(rows) if key.removeprefix("sft.") not in TOKENS_OF]
    if text := [key for key in varied if key.removeprefix("sft.").startswith(TEXT_OF)]:
        return [f"The losses are not of the same text, and compare with care: runs differ in {', '.join(text)}."]
    return []


def _lowest_loss(done: Sequence[Row]) -> Best:
    ranked = by_loss(done)
    name, loss = loss_measure(done)
    if not ranked:
        return Best("Lowest loss", None, "no finished run has a validation loss")
    return Best("Lowest loss", ranked[0], f"{name} {loss(ranked[0]):.4f}")


def _fastest(done: Sequence[Row], budget_gb: float | None) -> Best:
    title = "Fastest" if budget_gb is None else f"Fastest within {budget_gb:g} GiB"
    timed = [row for row in done if finite(row.tokens_per_second)]
    fitting = [row for row in timed if budget_gb is None or _gib(row) <= budget_gb]
    if not timed:
        return Best(title, None, "no finished run has a measured speed")
    if not fitting:
        return Best(title, None, f"no finished run keeps to it: the least takes {min(map(_gib, timed)):.2f} GiB")
    row = max(fitting, key=lambda row: row.tokens_per_second or 0.0)
    return Best(title, row, f"{row.tokens_per_second:,.0f} tokens/s")


def _gib(row: Row) -> float:
    return math.inf if row.peak_memory is None else row.peak_memory / GIB


def measured(rows: Sequence[Row]) -> list[Row]:
    """Return the finished rows of known speed and memory."""
    return [row for row in rows if row.status == "finished" and finite(row.tokens_per_second) and row.peak_memory]


def pareto_front(rows: Sequence[Row]) -> list[Row]:
    """Return the finished rows that no other one beats: as fast with less memory, or faster with no more.

    In the order of memory; rows that are equal in both stand side by side.
    """
    ordered = sorted(measured(rows), key=lambda row: (row.peak_memory, -(row.tokens_per_second or 0.0)))
    front: list[Row] = []
    for row in ordered:
        if not front or _place(row) == _place(front[-1]) or _place(row)[1] > _place(front[-1])[1]:
            front.append(row)
    return front


def _place(row: Row) -> tuple[int, float]:
    return row.peak_memory or 0, row.tokens_per_second or 0.0


def differing(rows: Sequence[Row]) -> dict[str, list[Any]]:
    """Return the settings that differ among the rows that have them, with each row's value or None.

    A setting of SFT that follows its namesake in every row is not told twice.
    """
    known = [row.settings for row in rows if row.settings]
    keys = dict.fromkeys(key for settings in known for key in settings)
    varied = [key for key in keys if len({json.dumps(settings[key]) for settings in known if key in settings}) > 1]
    told = [key for key in varied if key.removeprefix("sft.") not in UNTOLD and not _follows(key, known)]
    return {key: [row.settings.get(key) for row in rows] for key in told}


def _follows(key: str, known: Sequence[dict[str, Any]]) -> bool:
    leader = key.removeprefix("sft.")
    return leader != key and all(settings[key] == settings.get(leader) for settings in known if key in settings)


@dataclass(frozen=True)
class Split:
    """Runs that must have learned the same: `difference` is the largest of any validation loss, in nats."""

    rows: tuple[Row, ...]
    effective_batch: str
    difference: float
    evaluations: int

    @property
    def coincide(self) -> bool:
        """Whether the losses differ by no more than rounding explains."""
        return self.difference < TOLERANCE


def splits(rows: Sequence[Row]) -> list[Split]:
    """Return the groups of finished rows without dropout whose steps are the same sequences, split differently."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        dropout = (value for key, value in row.settings.items() if key.endswith(".dropout"))
        if row.status == "finished" and row.settings and not any(dropout):
            groups[_training(row)].append(row)
    return [split for group in groups.values() if len(group) > 1 and (split := _split(group))]


def sentence(split: Split, rows: Sequence[Row]) -> str:
    """Return what was found, for a person; runs are told by their numbers among `rows`."""
    numbers = [str(number) for number, row in enumerate(rows, 1) if row in split.rows]
    who = f"Runs {', '.join(numbers[:-1])} and {numbers[-1]} (effective batch {split.effective_batch}, dropout 0)"
    found = f"largest difference {split.difference:.2g} nats over {split.evaluations} evaluations"
    if split.coincide:
        return f"{who} are the same training, split differently: their validation losses coincide, {found}."
    return (
        f"{who} are the same training, split differently, but their validation losses do not coincide: {found}, "
        f"more than {TOLERANCE}. This must not be, since they learn from the same sequences; "
        "try them with precision=off, and report it if it stays."
    )


def _split(group: Sequence[Row]) -> Split | None:
    ranges = list(_ranges(group))
    batches = " and ".join(dict.fromkeys(map(str, _batches(group[0]))))
    return Split(tuple(group), batches, max(ranges), len(ranges)) if ranges else None


def _ranges(group: Sequence[Row]) -> Iterator[float]:
    """Yield, for each evaluation that two rows share, the distance of the highest loss from the lowest."""
    losses: dict[tuple[PhaseName, float], list[float]] = defaultdict(list)
    for row in group:
        for phase, curve in row.curves.items():
            for point in curve.val:
                losses[phase, point.tokens].append(point.loss)
    for shared in losses.values():
        if len(shared) > 1:
            yield max(shared) - min(shared) if all(map(math.isfinite, shared)) else math.inf


def _training(row: Row) -> str:
    """Return what equal training shares: all settings but the split, the effective batch, the tokenizer."""
    kept = {k: value for k, value in row.settings.items() if k.rpartition(".")[2] not in SPLIT | TOLD_ONLY}
    return json.dumps([kept, _batches(row), row.tokenizer], sort_keys=True)


def _batches(row: Row) -> list[int | None]:
    """Return the effective batch of each phase; batch=auto records it in place of B and accum_steps."""
    return [_batch(row, prefix) for prefix in ("", "sft.") if f"{prefix}train.seed" in row.settings]


def _batch(row: Row, prefix: str) -> int | None:
    B, accum_steps = (row.settings.get(f"{prefix}train.{name}") for name in ("B", "accum_steps"))
    given = row.settings.get(f"{prefix}train.effective_batch")
    return B * accum_steps if given is None and B is not None and accum_steps is not None else given
