"""Read a run folder as one row: its settings, status, results and loss curves."""

import math
import shlex
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import yaml

from niels_gpt.printable import printable
from niels_gpt.untrusted import read_text
from train.artifacts.job_record import JOB, Job, Status, read_job
from train.artifacts.metrics import METRICS, read_metrics
from train.artifacts.results import RESULT, PhaseResult, read_results
from train.artifacts.run_folder import is_held
from train.config.schema import PhaseName

PHASES: tuple[PhaseName, ...] = get_args(PhaseName)
LARGEST_OVERRIDES = 1 << 16  # bytes of overrides.yaml
MOST_SAID = 200  # characters of what is wrong with a damaged run
Settings = dict[str, Any]  # by Hydra's dotted names
Results = dict[PhaseName, PhaseResult]
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


Curves = dict[PhaseName, Curve]


@dataclass(frozen=True, eq=False)  # a row is itself: two runs may be alike in all
class Row:
    """A run among others. Text is printable; `reason` is empty when nothing went wrong.

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


def is_run(folder: Path) -> bool:
    """Return whether there is anything of a run in a folder."""
    return any((folder / name).exists() for name in (JOB, RESULT, *(f"{phase}/{METRICS}" for phase in PHASES)))


def read_row(folder: Path) -> Row:
    """Return the row of a run folder in any state; one that is damaged says so and hides no other row."""
    name = printable(folder.resolve().name)
    try:
        curves = {phase: curve for phase in PHASES if (curve := read_curve(folder / phase / METRICS))}
        results = read_results(folder)
        if not results and (folder / RESULT).exists():
            raise ValueError(f"{RESULT} tells of no phase that is known; the same command makes it anew")
        job = _job(folder) or _as_job(folder, results, curves)
        return Row(name, printable(str(folder)), **_standing(job) | _reached(job.status, results, curves))
    except Exception as error:  # whatever is wrong with one run, the report of the others must come out
        said = printable(f"{type(error).__name__}: {error}")
        return Row(name, printable(str(folder)), "unreadable", reason=said[:MOST_SAID])


def _standing(job: Job) -> dict[str, Any]:
    """Return what a row has from its job."""
    return {
        "status": job.status,
        "number": job.number,
        "overrides": tuple(map(printable, job.overrides)),
        "command": printable(_to_paste(job.command)),
        "seconds": job.seconds or None,
        "exit_code": job.exit_code,
        "reason": printable(job.reason),
    }


def _to_paste(command: str) -> str:
    """Return a command that can only train, its words quoted anew: in a record from others a shell may find more.

    Raises:
        ValueError: its quotes do not close.
    """
    return shlex.join(["python", "scripts/train.py", *shlex.split(command)[2:]])


def _reached(status: Status, results: Results, curves: Curves) -> dict[str, Any]:
    """Return what a row has from its phases."""
    last = results[max(results, key=PHASES.index)] if results and status == "finished" else None
    by_source = curves[last.phase].by_source if last and last.phase in curves else {}
    peaks = [curve.peak_memory for curve in curves.values() if curve.peak_memory is not None]
    return {
        "val_loss": last.best_val_loss if last else None,
        "bits_per_byte": last.bits_per_byte if last else None,
        "by_source": printable(", ".join(f"{name} {loss:.4f}" for name, loss in by_source.items())),
        "tokens_per_second": next(iter(curves.values())).tokens_per_second if curves else None,
        "peak_memory": max(peaks, default=None),
        "tokenizer": next((result.tokenizer for result in results.values() if result.tokenizer), None),
        "settings": _flat(results),
        "curves": curves,
    }


def _job(folder: Path) -> Job | None:
    """Return the job of a sweep's folder, None for a run of its own.

    Raises:
        ValueError: there is a record, but it is damaged.
    """
    job = read_job(folder)
    if job is None and (folder / JOB).exists():
        raise ValueError(f"{JOB} is damaged; delete it, and the same sweep again makes it anew")
    if job and job.status == "running" and not is_held(folder) and not is_held(folder.parent):
        return replace(job, status="interrupted", reason="its sweep was ended; the same command goes on")
    return job


def _as_job(folder: Path, results: Results, curves: Curves) -> Job:
    """Return what a run of its own would have as its record: a phase without a result has not ended."""
    overrides = _overrides(folder)
    ended = bool(results) and curves.keys() <= results.keys()
    return Job(
        number=0,
        overrides=overrides,
        command=shlex.join(["python", "scripts/train.py", *overrides]),
        config_hash="",
        status="finished" if ended else "interrupted",
        reason="" if ended else "a phase has no result: it was stopped, or still runs",
        seconds=sum(curve.seconds for curve in curves.values()),
    )


def _overrides(folder: Path) -> tuple[str, ...]:
    """Return the settings of the command line, as Hydra keeps them; the file may be from others."""
    path = folder / ".hydra" / "overrides.yaml"
    said = yaml.safe_load(read_text(path, LARGEST_OVERRIDES)) if path.exists() else []
    return tuple(word for word in said if isinstance(word, str)) if isinstance(said, list) else ()


def _flat(results: Results) -> Settings:
    """Return the settings of a run by Hydra's names: in a pipeline those of SFT begin with `sft.`."""
    done = [phase for phase in PHASES if phase in results]
    flat: Settings = {"phase": "pipeline" if len(done) > 1 else done[0]} if done else {}
    for at, phase in enumerate(done):
        flat |= dict(_leaves(results[phase].settings, "sft." if at else ""))
    return flat


def _leaves(tree: Settings, path: str) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def reached(folder: Path, objective: Sequence[str]) -> float | tuple[float, ...] | None:
    """Return the values that a run folder holds; None where the run did not finish.

    A loss is in bits per byte, since trials may differ in their tokenizers; memory is in bytes.
    None is what sweepers take for a failed trial and go on; nan ends an Optuna study.
    """
    row = read_row(folder)
    found = {"loss": row.bits_per_byte, "memory": row.peak_memory}
    values = [float(value) for name in objective if (value := found[name]) is not None]
    if row.val_loss is None or len(values) < len(objective):
        return None
    return values[0] if len(values) == 1 else tuple(values)


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


def seconds_after(tokens: Sequence[float], train_events: Sequence[dict[str, Any]]) -> list[float]:
    """Return the seconds of work that a phase took to see each number of `tokens`.

    The clock is made of the speeds, tokens over tokens a second from event to event, so that neither a resumed
    run's pause nor what it had to do twice counts. Between events it is linear; beyond the last it stands still.
    """
    seen, passed = [0.0], [0.0]
    for event in train_events:
        speed, more = event["tokens_per_second"], event["tokens"] - seen[-1]
        seen.append(event["tokens"])
        passed.append(passed[-1] + (more / speed if speed > 0 else 0.0))
    return [float(second) for second in np.interp(tokens, seen, passed)]
