"""Equal training, different split: whether runs that differ only in how a step is cut up learned the same."""

import json
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from train.schema import PhaseName
from train.sweep.row import Row

TOLERANCE = 0.02  # nats: float rounding, which training lets grow
SPLIT = {
    "B",
    "accum_steps",
    "effective_batch",
    "activation_checkpointing",
}  # may differ: how a step is carried out
TOLD_ONLY = {"log_every", "ckpt_every", "keep_last", "cache_dir"}  # may differ: nothing is learned from them


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
