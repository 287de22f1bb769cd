"""Read a run folder as one row: its settings, status, results and loss curves."""

import math
import shlex
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import yaml

from niels_gpt.printable import escape_line
from niels_gpt.untrusted import read_text
from train.artifacts.job_record import JOB, Job, Status, read_job
from train.artifacts.metrics import METRICS, read_metrics
from train.artifacts.results import RESULT, PhaseResult, read_results
from train.artifacts.run_folder import is_locked
from train.config.schema import PhaseName

PHASES: tuple[PhaseName, ...] = get_args(PhaseName)
LARGEST_OVERRIDES = 1 << 16  # bytes of overrides.yaml
LONGEST_ERROR = 200  # characters
NUMBERS = {"train": ("tokens", "tokens_per_second", "memory"), "val": ("tokens",)}  # and a loss, which may be nan
Settings = dict[str, Any]  # by Hydra's dotted names
Results = dict[PhaseName, PhaseResult]
Event = dict[str, Any]


class Point(NamedTuple):
    """A loss in nats a target after so many tokens and seconds of its phase."""

    tokens: float
    seconds: float
    loss: float


@dataclass(frozen=True)
class Curve:
    """The losses of a phase, its median speed in tokens/s, and its largest memory in bytes.

    `bits` converts nats a target to bits per byte, nan without an evaluation. `by_source` has the losses of the
    best evaluation where several sources validate.
    """

    train: tuple[Point, ...]
    val: tuple[Point, ...]
    tokens_per_second: float | None
    peak_memory: int | None
    bits: float
    by_source: dict[str, float]

    @property
    def seconds(self) -> float:
        """The time of all its steps."""
        return self.train[-1].seconds if self.train else 0.0


Curves = dict[PhaseName, Curve]


@dataclass(frozen=True, eq=False)  # by identity: two runs may be equal in everything
class Row:
    """A run in a report. Text is printable; `reason` is empty when nothing went wrong.

    The losses are the best of the last phase, of finished runs only; tokens a second are the first phase's;
    `peak_memory` is in bytes, the largest of all phases; `tokenizer` is a hash, None if the results do not say.
    """

    name: str
    folder: str
    status: Status | Literal["unreadable"]
    number: int = 0
    overrides: tuple[str, ...] = ()
    command: str = ""
    val_loss: float | None = None
    bits_per_byte: float | None = None
    by_source: str = ""
    tokens_per_second: float | None = None
    peak_memory: int | None = None
    seconds: float | None = None
    exit_code: int | None = None
    reason: str = ""
    tokenizer: str | None = None
    settings: Settings = field(default_factory=dict)
    curves: Curves = field(default_factory=dict)

    @property
    def speed(self) -> float:
        """Tokens a second, nan if unknown."""
        return math.nan if self.tokens_per_second is None else self.tokens_per_second


def is_run(folder: Path) -> bool:
    """Return whether a folder has any file of a run."""
    return any((folder / name).exists() for name in (JOB, RESULT, *(f"{phase}/{METRICS}" for phase in PHASES)))


def read_row(folder: Path) -> Row:
    """Return the row of a run folder in any state; a damaged one says so and hides no other row."""
    name = escape_line(folder.resolve().name)
    try:
        curves = {phase: curve for phase in PHASES if (curve := read_curve(folder / phase / METRICS))}
        results = read_results(folder)
        if not results and (folder / RESULT).exists():
            raise ValueError(f"{RESULT} has no known phase; the same command writes it again")
        job = _read_record(folder) or _make_record(folder, results, curves)
        return _make_row(name, folder, job, results, curves)
    except Exception as error:  # one broken run must not hide the others
        reason = escape_line(f"{type(error).__name__}: {error}")
        return Row(name, escape_line(str(folder)), "unreadable", reason=reason[:LONGEST_ERROR])


def _make_row(name: str, folder: Path, job: Job, results: Results, curves: Curves) -> Row:
    last = results[max(results, key=PHASES.index)] if results and job.status == "finished" else None
    by_source = curves[last.phase].by_source if last and last.phase in curves else {}
    # The record may be from others: quoted again, the command can only train.
    command = shlex.join(["python", "scripts/train.py", *shlex.split(job.command)[2:]])
    return Row(
        name=name,
        folder=escape_line(str(folder)),
        status=job.status,
        number=job.number,
        overrides=tuple(map(escape_line, job.overrides)),
        command=escape_line(command),
        val_loss=last.best_val_loss if last else None,
        bits_per_byte=last.bits_per_byte if last else None,
        by_source=escape_line(", ".join(f"{source} {loss:.4f}" for source, loss in by_source.items())),
        tokens_per_second=next(iter(curves.values())).tokens_per_second if curves else None,
        peak_memory=max((c.peak_memory for c in curves.values() if c.peak_memory is not None), default=None),
        seconds=job.seconds or None,
        exit_code=job.exit_code,
        reason=escape_line(job.reason),
        tokenizer=next((result.tokenizer for result in results.values() if result.tokenizer), None),
        settings=_flatten_settings(results),
        curves=curves,
    )


def _read_record(folder: Path) -> Job | None:
    """Return the record of a sweep's job, None for a single run.

    Raises:
        ValueError: the record is damaged.
    """
    job = read_job(folder)
    if job is None and (folder / JOB).exists():
        raise ValueError(f"{JOB} is damaged; delete it, and the same sweep writes it again")
    if job and job.status == "running" and not is_locked(folder) and not is_locked(folder.parent):
        return replace(job, status="interrupted", reason="its sweep was stopped; rerun the same command to resume")
    return job


def _make_record(folder: Path, results: Results, curves: Curves) -> Job:
    """Return a record for a single run: it has finished if each phase has a result."""
    path = folder / ".hydra" / "overrides.yaml"
    saved = yaml.safe_load(read_text(path, LARGEST_OVERRIDES)) if path.exists() else []
    overrides = tuple(word for word in saved if isinstance(word, str)) if isinstance(saved, list) else ()
    finished = bool(results) and curves.keys() <= results.keys()
    return Job(
        number=0,
        overrides=overrides,
        command=shlex.join(["python", "scripts/train.py", *overrides]),
        config_hash="",
        status="finished" if finished else "interrupted",
        reason="" if finished else "a phase has no result: it was stopped, or still runs",
        seconds=sum(curve.seconds for curve in curves.values()),
    )


def _flatten_settings(results: Results) -> Settings:
    """Return the settings of a run by Hydra's names; in a pipeline those of SFT begin with `sft.`."""
    done = [phase for phase in PHASES if phase in results]
    flat: Settings = {"phase": "pipeline" if len(done) > 1 else done[0]} if done else {}
    for at, phase in enumerate(done):
        flat |= _flatten(results[phase].settings, "sft." if at else "")
    return flat


def _flatten(tree: Settings, path: str) -> Settings:
    flat: Settings = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{path}{key}.") if isinstance(value, dict) else {f"{path}{key}": value}
    return flat


def read_objective(folder: Path, objective: Sequence[str]) -> float | tuple[float, ...] | None:
    """Return the values that a sweeper minimises, None if the run did not finish.

    A loss is in bits per byte, since trials may differ in their tokenizers; memory is in bytes. Sweepers take None
    for a failed trial and continue, while nan ends an Optuna study.
    """
    row = read_row(folder)
    found = {"loss": row.bits_per_byte, "memory": row.peak_memory}
    values = [float(value) for name in objective if (value := found[name]) is not None]
    if row.val_loss is None or len(values) < len(objective):
        return None
    return values[0] if len(values) == 1 else tuple(values)


def read_curve(path: Path) -> Curve | None:
    """Return the curve in a metrics file, None if it has no events."""
    events = [event for event in read_metrics(path) if _is_whole(event)]
    if not events:
        return None
    train, val = ([event for event in events if event["event"] == kind] for kind in ("train", "val"))

    def make_points(events: list[Event]) -> tuple[Point, ...]:
        seconds = compute_seconds([event["tokens"] for event in events], train)
        return tuple(Point(e["tokens"], s, float(e["loss"])) for e, s in zip(events, seconds, strict=True))

    speeds = [float(event["tokens_per_second"]) for event in train]
    bits = [e["bits_per_byte"] / e["loss"] for e in val if e["loss"] and _is_number(e.get("bits_per_byte"))]
    found = min(val, key=lambda event: event["loss"], default={}).get("by_source")
    by_source = found if isinstance(found, dict) else {}
    return Curve(
        train=make_points(train),
        val=make_points(val),
        tokens_per_second=statistics.median(speeds[1:] or speeds)
        if speeds
        else None,  # the first includes warm-up
        peak_memory=max((int(event["memory"]) for event in train), default=None),
        bits=next(filter(math.isfinite, bits), math.nan),
        by_source={source: float(loss) for source, loss in by_source.items() if _is_number(loss)},
    )


def _is_whole(event: Event) -> bool:
    """Return whether an event has the numbers of its kind."""
    needed = [event.get(name) for name in NUMBERS.get(str(event.get("event")), ("none",))]
    return all(map(_is_number, needed)) and isinstance(event.get("loss"), int | float)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def compute_seconds(tokens: Sequence[float], train_events: Sequence[Event]) -> list[float]:
    """Return the seconds of work that a phase took to see each number of `tokens`.

    They are summed from the speeds of the events, so neither the pause before a resume nor repeated steps count.
    Between events time is linear; beyond the last it stands still.
    """
    seen, passed = [0.0], [0.0]
    for event in train_events:
        speed, more = event["tokens_per_second"], event["tokens"] - seen[-1]
        seen.append(event["tokens"])
        passed.append(passed[-1] + (more / speed if speed > 0 else 0.0))
    return [float(second) for second in np.interp(tokens, seen, passed)]
