"""A run folder as one row: what was asked for, how it stands, what it reached; read from the disk alone."""

import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from niels_gpt.plain import read_text
from niels_gpt.printable import printable
from train.folder import is_held
from train.metrics import METRICS
from train.result import RESULT, PhaseResult, read_results
from train.schema import PhaseName
from train.sweep.curve import Curve, read_curve
from train.sweep.job import JOB, Job, Status, read_job

PHASES: tuple[PhaseName, ...] = get_args(PhaseName)
LARGEST_OVERRIDES = 1 << 16  # bytes of overrides.yaml
MOST_SAID = 200  # characters of what is wrong with a damaged run
Settings = dict[str, Any]  # by Hydra's dotted names
Results = dict[PhaseName, PhaseResult]
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
